"""Annotation files: what is read, what is left out, and what is said of a broken one."""

import gzip
import json

import numpy as np
import pytest

from adatad.data.annotation_file import AnnotationError, load_database, names_text, read_names
from adatad.data.annotations import EVALUATED, OUTSIDE, ground_truth, read_annotations
from adatad.evaluation.detection_map import evaluate
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.spec.quirks import Quirks

WHOLE = WindowSpec(kind="resize", size_grid=16)

ENTRY = {"subset": "training", "duration": 10.0, "frame": 100}


def segment(start: float, end: float, label: str = "run") -> dict:
    return {"segment": [start, end], "label": label}


@pytest.fixture
def read(tmp_path):
    """read(database, reference=..., class_agnostic=..., key=value of DataSpec) -> Annotations."""

    def read(database: object, reference: bool = False, class_agnostic: bool = False, **settings: object):
        path = tmp_path / "annotations.json"
        path.write_text(database if isinstance(database, str) else json.dumps({"database": database}))
        spec = DataSpec(annotations=str(path), videos="videos", **settings)
        return read_annotations(spec, Quirks.of("reference" if reference else "fixed"), class_agnostic)

    return read


def database(*instances: dict, **entry: object) -> dict:
    """One training video with these instances, and one validation video without."""
    train = {**ENTRY, **entry, "annotations": list(instances)}
    return {"t": train, "v": {"subset": "validation", "duration": 4.0, "frame": 100}}


def test_subsets_are_read_in_the_order_of_the_file(read):
    one = [segment(1, 2)]
    subsets = ("validation", "training", "test", "training", "train")
    found = read({f"v{n}": {**ENTRY, "subset": subset, "annotations": one} for n, subset in enumerate(subsets)})
    assert [video.name for video in found.train] == ["v1", "v3"]
    assert [video.name for video in found.validation] == ["v0"]


def test_a_file_without_training_videos_is_read_for_a_test_alone(tmp_path):
    content = {"database": {"v": {**ENTRY, "subset": "validation", "annotations": [segment(1, 2)]}}}
    (tmp_path / "test.json").write_text(json.dumps(content))
    spec = DataSpec(annotations=str(tmp_path / "test.json"), videos="videos")
    with pytest.raises(AnnotationError, match=r"no video of subset 'training'"):
        read_annotations(spec)
    found = read_annotations(spec, training=False)
    assert (found.train, found.train_report.videos, found.train_report.instances) == ((), 0, 0)
    assert [video.name for video in found.validation] == ["v"]


def test_a_video_without_segments_is_validated_but_not_trained_on(read):
    found = read({"a": {**ENTRY}, "b": {**ENTRY, "annotations": [segment(1, 2)]}, **database()})
    assert [video.name for video in found.train] == ["b"]
    assert [video.name for video in found.validation] == ["v"]
    assert found.validation[0].segments_seconds.shape == (0, 2)


def test_seconds_frames_and_rates(read):
    video = read(database(segment(1.26, 5.0), segment(0.0, 9.99))).train[0]
    assert (video.fps, video.frames, video.duration_seconds) == (10.0, 100, 10.0)
    np.testing.assert_array_equal(video.segments_seconds, [[1.26, 5.0], [0.0, 9.99]])
    np.testing.assert_array_equal(video.segments_frames, [[12, 50], [0, 99]])
    fixed = read(database(segment(1.26, 5.0)), fps=30.0).train[0]
    assert (fixed.fps, fixed.frames) == (30.0, 300)
    np.testing.assert_array_equal(fixed.segments_frames, [[37, 150]])


def test_classes_are_the_sorted_labels_of_all_subsets(read):
    content = database(segment(1, 2, "run"), segment(2, 3, "Ambiguous"))
    content["other"] = {**ENTRY, "subset": "test", "annotations": [segment(0, 1, "Jump")]}
    assert read(content).classes == ("Jump", "run")


def test_classes_from_a_list_or_a_file_give_the_numbers(read, tmp_path):
    content = database(segment(1, 2, "run"), segment(3, 4, "jump"))
    (tmp_path / "classes.txt").write_text("run\n\n fly \njump\n")
    for classes in (("run", "fly", "jump"), str(tmp_path / "classes.txt")):
        found = read(content, classes=classes)
        assert found.classes == ("run", "fly", "jump")
        np.testing.assert_array_equal(found.train[0].labels, [0, 2])


def test_a_class_list_of_another_length_than_expected_is_refused(read, tmp_path):
    content = database(segment(1, 2), segment(3, 4, "jump"))
    assert read(content, class_count=2).classes == ("jump", "run")
    with pytest.raises(AnnotationError, match=r"2 classes, but data\.class_count expects 20"):
        read(content, class_count=20)
    (tmp_path / "classes.txt").write_text("run\njump\nfly\n")
    with pytest.raises(AnnotationError, match=r"classes\.txt: 3 classes, but data\.class_count expects 2"):
        read(content, classes=str(tmp_path / "classes.txt"), class_count=2)


def test_ambiguous_is_left_out_unless_it_is_a_class(read):
    content = database(segment(1, 2, "Ambiguous"), segment(3, 4))
    np.testing.assert_array_equal(read(content).train[0].segments_seconds, [[3, 4]])
    np.testing.assert_array_equal(read(content, classes=("run", "Ambiguous")).train[0].labels, [1, 0])


@pytest.mark.parametrize("reference", [False, True])
def test_copies_are_dropped_but_another_label_is_no_copy(read, reference):
    found = read(database(segment(1, 2), segment(1, 2, "jump"), segment(1, 2)), reference).train[0]
    np.testing.assert_array_equal(found.labels, [1, 0])


def test_empty_segments_stay_only_in_the_reference(read):
    content = database(segment(2, 2), segment(3, 4), segment(6, 5))
    np.testing.assert_array_equal(read(content).train[0].segments_seconds, [[3, 4]])
    np.testing.assert_array_equal(read(content, reference=True).train[0].segments_seconds, [[2, 2], [3, 4], [6, 5]])


def test_a_label_on_a_frame_stays_there_but_for_the_reference(read):
    """1.16 s at 25 frames a second is frame 29, yet 1.16 / 4.0 * 100 is 28.999999999999996."""
    content = database(segment(1.16, 2.0), duration=4.0)
    np.testing.assert_array_equal(read(content).train[0].segments_frames, [[29, 50]])
    np.testing.assert_array_equal(read(content, reference=True).train[0].segments_frames, [[28, 50]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable as JSON"),
        ("[]", 'expected an object with a "database"'),
        ('{"database": {"t": 3}}', 'expected an object with a "database"'),
        (database(segment(1, 2), duration=None), "video 't': expected \"duration\" in seconds"),
        (database(segment(1, 2), duration=0), "video 't': expected \"duration\" in seconds"),
        (database(segment(1, 2), frame="many"), "video 't': expected \"frame\" (a count) or"),
        (database(segment(1, 2), frame=None), "video 't': has neither \"frame\""),
        (database({"segment": [1], "label": "run"}), "video 't': expected {\"segment\": [start, end]"),
        (database({"segment": [1, 2]}, segment(1, 2)), "video 't': expected {\"segment\": [start, end]"),
        (database({"segment": [1, 2], "verb": 3}), "no annotation has a 'label': they have verb; set data.label_key"),
        ({"t": {**ENTRY, "annotations": [segment(1, 2)]}}, "no video of subset 'validation'; the file has training"),
    ],
)
def test_broken_files_are_explained(read, content, message):
    with pytest.raises(AnnotationError) as caught:
        read(content)
    assert message in str(caught.value)
    assert "annotations.json" in str(caught.value)


def test_a_label_outside_the_class_list_is_named_with_its_video(read):
    with pytest.raises(AnnotationError, match="video 't': label 'run' isn't in the class list of 1 classes"):
        read(database(segment(1, 2)), classes=("jump",))
    with pytest.raises(AnnotationError, match='expected "duration"'):
        read(database(segment(1, 2), duration=float("nan")), fps=30.0)


# ---- subsets, blocked videos, gzip


def subsets(*names: str) -> dict:
    return {f"v{n}": {**ENTRY, "subset": name, "annotations": [segment(1, 2)]} for n, name in enumerate(names)}


def test_several_subsets_are_one(read):
    found = read(subsets("train", "val", "test", "val"), train_subset=("train", "val"), validation_subset=("test",))
    assert [video.name for video in found.train] == ["v0", "v1", "v3"]
    assert [video.name for video in found.validation] == ["v2"]


def test_the_reference_takes_subsets_whose_name_lies_in_the_wanted_one(read):
    """The row "part of the wanted name" of docs/compat.md."""
    content = subsets("train", "training", "validation", "ing", "train2")
    assert [video.name for video in read(content).train] == ["v1"]
    assert [video.name for video in read(content, reference=True).train] == ["v0", "v1", "v3"]
    listed = read(content, reference=True, train_subset=("training", "train2"))
    assert [video.name for video in listed.train] == ["v1", "v4"]


def test_an_unknown_subset_names_the_key(read):
    with pytest.raises(AnnotationError, match=r"no video of subset 'a' or 'b'; .* set data\.train_subset"):
        read(subsets("training", "validation"), train_subset=("a", "b"))


@pytest.mark.parametrize("form", ["list", "text", "json"])
def test_blocked_videos_exist_nowhere(read, tmp_path, form):
    file = tmp_path / "blocked"
    file.write_text("v0\n\n v3 \nelsewhere\n" if form == "text" else json.dumps(["v0", "v3", "elsewhere"]))
    blocked = ("v0", "v3", "elsewhere") if form == "list" else str(file)
    found = read(subsets("training", "training", "validation", "validation"), blocked_videos=blocked)
    assert [video.name for video in found.train + found.validation] == ["v1", "v2"]
    assert (found.train_report.blocked, found.validation_report.blocked) == (["v0"], ["v3"])


def test_block_lists_of_another_form_are_refused(read, tmp_path):
    (tmp_path / "blocked").write_text('{"v0": 1}')
    with pytest.raises(AnnotationError, match="blocked: expected a JSON list of names"):
        read(subsets("training", "validation"), blocked_videos=str(tmp_path / "blocked"))


def test_gzip_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_bytes(gzip.compress(json.dumps({"database": database()}).encode()))
    assert load_database(str(path)) == database()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(AnnotationError, match=r"annotations\.json: can't be unpacked: it is cut off"):
        load_database(str(path))


# ---- instances


def test_what_is_dropped_is_counted_by_reason(read):
    kept = [segment(1, 2), segment(1, 2, "jump"), segment(5, 12)]
    bad = [segment(1, 2), segment(3, 3), segment(4, 3), segment(0, float("nan")), segment(1, 2, "Ambiguous")]
    found = read(
        {**database(*kept, *bad), "nothing": ENTRY, "late": {**ENTRY, "annotations": [segment(10.005, 10.009)]}}
    )
    report = found.train_report
    assert {reason: dict(by_video) for reason, by_video in report.dropped.items()} == {
        "copies": {"t": 1}, "empty (end <= start)": {"t": 2}, "without finite ends": {"t": 1}, "Ambiguous": {"t": 1},
        "too short to train on": {"late": 1},
    }  # fmt: skip
    assert (report.videos, report.instances, report.without_instances) == (1, 3, ["nothing", "late"])
    assert dict(report.past_end) == {"t": 1}
    assert report.line() == (
        "training: 1 videos, 3 instances; 1 copies dropped; 2 empty (end <= start) dropped; 1 without finite ends "
        "dropped; 1 Ambiguous dropped; 1 too short to train on dropped; 2 videos without instances; "
        "1 instances end after their video"
    )


def test_segments_past_the_end_stay_as_they_are(read):
    np.testing.assert_array_equal(read(database(segment(5, 12))).train[0].segments_frames, [[50, 120]])


def test_short_instances_are_not_trained_on_but_for_the_reference(read):
    """Within a frame of 0.1 s; of whole videos, 1 % of 10 s."""
    content = database(segment(1.02, 1.08), segment(4, 4.1), segment(6, 6.2))
    content["v"]["annotations"] = [segment(1.02, 1.03)]
    assert read(content).train[0].segments_seconds[:, 0].tolist() == [4, 6]
    assert read(content, filter_short=False).train[0].segments_seconds[:, 0].tolist() == [1.02, 4, 6]
    assert read(content, reference=True).train[0].segments_seconds[:, 0].tolist() == [1.02, 4, 6]
    assert read(content, reference=True, filter_short=True).train[0].segments_seconds[:, 0].tolist() == [4, 6]
    for reference in (False, True):
        found = read(content, reference, window=WHOLE)
        assert found.train[0].segments_seconds[:, 0].tolist() == [6]
        assert len(found.validation[0].labels) == 1
    assert read(content, window=WHOLE, filter_short=False).train[0].segments_seconds[:, 0].tolist() == [1.02, 4, 6]


def test_copies_in_frames_are_copies_in_training(read):
    content = database(segment(1.01, 2.02), segment(1.05, 2.09))
    content["v"]["annotations"] = content["t"]["annotations"]
    found = read(content)
    assert (len(found.train[0].labels), len(found.validation[0].labels)) == (1, 2)
    assert len(read(content, window=WHOLE).train[0].labels) == 2


def test_without_classes_all_labels_are_one_and_copies_more(read):
    content = database(segment(1, 2), segment(1, 2, "jump"), segment(3, 4, "jump"))
    content["v"]["annotations"] = content["t"]["annotations"]
    found = read(content, class_agnostic=True)
    assert (found.train[0].labels.tolist(), found.validation[0].labels.tolist()) == ([0, 0], [1, 0, 0])
    assert found.classes == ("jump", "run")


def test_ambiguous_is_a_class_in_the_reference_s_list_yet_never_trained_on(read):
    content = database(segment(1, 2, "Ambiguous"), segment(3, 4))
    found = read(content, reference=True)
    assert found.classes == ("Ambiguous", "run")
    assert found.train[0].labels.tolist() == [1]
    assert read(content).classes == ("run",)


def test_frames_come_from_the_count_or_a_rate(read):
    content = {**database(segment(1.26, 5.0), frame=None, fps=25.0)}
    video = read(content).train[0]
    assert (video.fps, video.frames) == (25.0, 250)
    np.testing.assert_array_equal(video.segments_frames, [[31, 125]])
    content["t"]["frame"] = 100
    assert read(content).train[0].fps == 10.0
    assert read(content, fps=30.0).train[0].frames == 300


def test_whole_videos_need_no_rate(read):
    content = database(segment(1, 2), frame=None)
    assert read(content, window=WHOLE).train[0].frames == 0
    with pytest.raises(AnnotationError, match=r"video 't': has neither .* set data\.fps"):
        read(content)


# ---- instances before the start and past the end


def test_instances_outside_their_video_are_counted_apart_and_not_trained_on(read):
    content = database(segment(-1, 2), segment(-3, -1), segment(8, 12), segment(1000, 4000))
    content["v"] |= {"duration": 10.0, "annotations": content["t"]["annotations"]}
    found = read(content)
    train, validation = found.train_report, found.validation_report
    assert found.train[0].segments_seconds.tolist() == [[-1, 2], [8, 12]]
    assert dict(train.dropped[OUTSIDE]) == {"t": 2}
    assert len(found.validation[0].labels) == 4, "scored as everybody scores them"
    for report in (train, validation):
        counts = report.before_start.total(), report.past_end.total(), report.outside.total()
        assert counts == (1, 1, 2 if report is validation else 0)
    assert train.line().endswith(
        "2 wholly outside their video dropped; 1 instances begin before their video; 1 instances end after their video"
    )
    assert validation.line().endswith("2 instances lie wholly outside their video")
    assert len(read(content, reference=True).train[0].labels) == 4


def test_an_instance_within_rounding_of_the_end_is_inside(read):
    found = read(database(segment(-0.005, 1), segment(9, 10.005)))
    assert not found.train_report.before_start
    assert not found.train_report.past_end


# ---- names that stand twice, look alike, or are in no entry


def test_a_video_that_stands_twice_is_refused(read):
    entry = json.dumps({**ENTRY, "annotations": [segment(1, 2)]})
    with pytest.raises(AnnotationError, match=r"annotations\.json: video 'k0' stands twice in the file"):
        read('{"database": {"k0": %s, "k0": %s}}' % (entry, entry))  # noqa: UP031
    with pytest.raises(AnnotationError, match=r"annotations\.json: 'duration' stands twice"):
        read('{"database": {"k0": {"duration": 3, "duration": 4}}}')


@pytest.mark.parametrize("content", ["[" * 100_000, '{"database": ' * 5_000])
def test_nesting_without_end_is_refused(read, content):
    with pytest.raises(AnnotationError, match="nested too deeply"):
        read(content)


def test_blocked_names_that_are_in_no_entry_are_named_with_what_may_be_meant(read):
    found = read(subsets("training", "validation"), blocked_videos=("v_v0", "v1.mp4", "elsewhere"))
    assert found.warnings == (
        "3 blocked names aren't in the annotation file: elsewhere, v1.mp4 (is v1 meant?), v_v0 (is v0 meant?)",
    )


def test_videos_and_subsets_that_may_be_meant_are_named(read):
    content = subsets("training", "validation", "Training", "test")
    content["V1.mp4"] = content["v3"]
    assert read(content).warnings == (
        "videos v1, V1.mp4 differ in case, blanks or an ending alone; are they one video?",
        "1 of 5 videos are in neither subset: 1 of 'Training'; the spec asks for 'training' and 'validation': set "
        "data.train_subset / data.validation_subset, or correct the file",
    )


def test_videos_whose_subset_is_written_in_another_way_or_missing_are_counted(read):
    content = subsets("training", "validation", "train", "train", "Val", "test", "trainings set", "", "x")
    content["v8"]["subset"] = None
    (warning,) = read(content).warnings
    assert warning.startswith(
        "6 of 9 videos are in neither subset: 2 of 'train', 1 of 'Val', 1 of 'trainings set', 2 of none; "
    )
    assert read(subsets("training", "validation", "test", "extra")).warnings == ()
    assert read(content, blocked_videos=("v2", "v3", "v4", "v6", "v7", "v8")).warnings == ()
    assert read(content, train_subset=("training", "train"), blocked_videos=("v4", "v6", "v7", "v8")).warnings == ()


def test_a_subset_of_which_nothing_is_left_is_refused(read):
    content = subsets("training", "validation")
    with pytest.raises(
        AnnotationError, match=r"no video of subset 'training' is left: 0 videos, 0 instances; 1 videos b"
    ):
        read(content, blocked_videos=("v0",))
    with pytest.raises(AnnotationError, match=r"no video of subset 'validation' is left: "):
        read(content, blocked_videos=("v1",))
    content["v0"]["annotations"] = [segment(50, 60)]
    with pytest.raises(
        AnnotationError, match=r"'training' is left: .* 1 wholly outside their video dropped; 1 videos wi"
    ):
        read(content)


def test_labels_that_look_alike_are_named_with_their_counts(read):
    content = database(segment(1, 2, "Pour"), segment(3, 4, "pour "), segment(5, 6, "pours"), segment(7, 8, "stir"))
    warning, lacking = read({**content, "v": {**content["t"], "subset": "validation"}}).warnings, read(content).warnings
    assert warning == ("labels 'Pour' (2), 'pour ' (2), 'pours' (2) differ in case, blanks or a plural alone; are they "
                       "one class?",)  # fmt: skip
    assert lacking[1:] == ("validation has no instance: nothing can be scored",)


def test_classes_that_a_subset_lacks_are_named(read):
    content = database(segment(1, 2, "run"), segment(3, 4, "jump"))
    content["v"]["annotations"] = [segment(1, 2, "run"), segment(1, 2, "fly")]
    assert read(content).warnings == (
        "1 of 3 classes have no instance in training: fly",
        "1 of 3 classes have no instance in validation: jump",
    )


def test_without_classes_none_is_said_to_have_no_instance_in_training(read):
    content = database(segment(1, 2, "run"), segment(3, 4, "jump"))
    content["v"]["annotations"] = [segment(1, 2, "run")]
    assert read(content, class_agnostic=True).warnings == ("1 of 2 classes have no instance in validation: jump",)


def test_a_label_s_error_names_the_class_that_may_be_meant(read):
    with pytest.raises(AnnotationError, match="label 'Run ' isn't in the class list of 2 classes; the list has 'run'"):
        read(database(segment(1, 2, "Run ")), classes=("run", "jump"))


@pytest.mark.parametrize("names", [["a", "[b"], ["[a]", "b"], ["{a", "b"], ["two\nlines"], [" blank"], []])
def test_what_is_written_as_a_list_of_names_comes_back(tmp_path, names):
    (tmp_path / "names").write_text(names_text(names))
    assert read_names(tmp_path / "names") == frozenset(names)


# ---- labels that are numbers, class lists, ground truth


def test_whole_numbers_with_a_point_are_whole_numbers(read):
    """pandas writes them so where a column has gaps."""
    content = database(segment(1, 2, 1.0), segment(3, 4, 2.0), segment(5, 6, 2))
    found = read(content)
    assert (found.classes, found.train[0].labels.tolist()) == (("1", "2"), [0, 1, 1])


@pytest.mark.parametrize("label", [1.5, True, None, ["run"], "", "two\nlines"])
def test_labels_that_are_neither_names_nor_numbers_are_shown(read, label):
    with pytest.raises(AnnotationError, match=r"labels are names or whole numbers, got"):
        read(database(segment(1, 2, label)))


IDS = [{"segment": [1, 2], "verb": 12, "noun": 3}, {"segment": [3, 4], "verb": 5, "noun": 3}]


def test_ids_are_labels_by_the_key_that_is_named(read, tmp_path):
    found = read(database(*IDS), label_key="verb")
    assert (found.classes, found.train[0].labels.tolist()) == (("5", "12"), [1, 0])
    assert read(database(*IDS), label_key="noun").classes == ("3",)
    (tmp_path / "verbs.txt").write_text("0\ttake\n5\tput on\n12\twash\n")
    named = read(database(*IDS), label_key="verb", classes=str(tmp_path / "verbs.txt"))
    assert (named.classes, named.train[0].labels.tolist()) == (("take", "put on", "wash"), [2, 1])
    with pytest.raises(AnnotationError, match="video 't': label 12 isn't in the class list of 1 classes"):
        read(database(*IDS), label_key="verb", classes=("wash",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no class"),
        ("run\njump\nrun\n", "names class 'run' twice"),
        ("1\trun\n1\tjump\n", "gives the id 1 to two classes"),
        ("run\nform\ffeed\n", ".*holds a line break, a tab or another control character"),
        ('["run", "run"]', "names class 'run' twice"),
        ('{"0": "run"}', "is a JSON object; expected one name a line, one id"),
        ('[{"name": "run"}]', "is a JSON list of something else than names; expected"),
        ("1 run\n1 jump\n", "gives the id 1 to two classes"),
    ],
)
def test_class_files_that_make_no_sense(read, tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(AnnotationError, match=f"classes.txt: {message}"):
        read(database(segment(1, 2)), classes=str(tmp_path / "classes.txt"))


@pytest.mark.parametrize(
    "text",
    [
        "7 run\n9 jump high\n", "7  run\n 9 jump high\n", "7\trun\n9\tjump high\n", "7,run\n9,jump high\n",
        'id,name\n7,run\n9,"jump high"\n', "class_id\tclass_name\n7\trun\n9\tjump high\n",
        "name,id,count\nrun,7,3\njump high,9,2\n", "id,key,instances\n7,run,\"['run', 'runs']\"\n9,jump high,[]\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("labels", [("run", "jump high"), (7, 9)])
def test_class_lists_of_ids_and_names_are_read_in_every_form(read, tmp_path, text, labels):
    (tmp_path / "classes.txt").write_text(text)
    found = read(database(segment(1, 2, labels[1]), segment(3, 4, labels[0])), classes=str(tmp_path / "classes.txt"))
    assert (found.classes, found.train[0].labels.tolist()) == (("run", "jump high"), [1, 0])


def test_names_that_begin_with_a_number_stay_whole_where_annotations_have_them(read, tmp_path):
    (tmp_path / "classes.txt").write_text("2 point shot\n3 point shot\n")
    assert read(database(segment(1, 2, "3 point shot")), classes=str(tmp_path / "classes.txt")).train[0].labels == [1]
    (tmp_path / "classes.txt").write_text("run;7\njump;9\n")
    with pytest.raises(AnnotationError, match=r"a whole line is a class there, 'run;7' for one: expected one name a"):
        read(database(segment(1, 2, "run")), classes=str(tmp_path / "classes.txt"))


def test_names_and_numbers_side_by_side_need_a_class_list(read):
    with pytest.raises(AnnotationError, match=r"some labels are names and some numbers \('run' and 7\); give the"):
        read(database(segment(1, 2), segment(3, 4, 7)))


def test_the_ground_truth_is_of_the_videos_that_are_evaluated(read, tmp_path):
    """Ambiguous is in it for the reference alone, or if it was asked for as a class."""
    content = subsets("val", "val", "dev", "training", "validation")
    content["v0"]["annotations"] += [segment(3, 4, "Ambiguous"), segment(float("nan"), 2), segment(5, 5)]
    read(content, validation_subset=("val", "dev"), train_subset="training", blocked_videos=("v1",))
    spec = DataSpec(
        annotations=str(tmp_path / "annotations.json"), videos="", validation_subset=("val", "dev"),
        blocked_videos=("v1",),
    )  # fmt: skip
    truth = ground_truth(spec)
    assert {name: len(entry["annotations"]) for name, entry in truth["database"].items()} == {"v0": 2, "v2": 1}
    asked = spec.model_copy(update={"classes": ("run", "Ambiguous")})
    for labelled in (ground_truth(spec, keep_ambiguous=True), ground_truth(asked)):
        assert [item["label"] for item in labelled["database"]["v0"]["annotations"]] == ["run", "Ambiguous", "run"]
    found = {"results": {"v0": [{**segment(1, 2), "score": 1.0}]}}
    assert evaluate(truth, found, EVALUATED, [0.5]).average_mAP == pytest.approx(0.5)


def test_the_ground_truth_calls_ids_by_their_names(read, tmp_path):
    (tmp_path / "verbs.txt").write_text("5\tput\n12\twash\n")
    content = database(*IDS)
    content["v"]["annotations"] = IDS
    settings = {"label_key": "verb", "classes": str(tmp_path / "verbs.txt")}
    read(content, **settings)
    truth = ground_truth(DataSpec(annotations=str(tmp_path / "annotations.json"), videos="", **settings))
    assert [item["label"] for item in truth["database"]["v"]["annotations"]] == ["wash", "put"]


# ---- the field's own files

FILES = [
    ("thumos14.json", {"train_subset": "Validation", "validation_subset": "Test"}, 20,
     (200, 3007 - 4, {OUTSIDE: 4}, 0, 0), (212, 3358, {}, 0, 26)),
    ("thumos_14_anno.json", {}, 20,
     (200, 3007 - 4, {"Ambiguous": 89, OUTSIDE: 4}, 0, 0), (213, 3358, {"Ambiguous": 99}, 0, 26)),
    ("multithumos_anno.json.gz", {}, 65, (200, 18482 - 11, {"empty (end <= start)": 3, OUTSIDE: 8}, 2, 0),
     (213, 20208 - 4, {"empty (end <= start)": 4}, 3, 52)),
    # Five of the 19,607 segments past the end are empty besides.
    ("charades.json.gz", {"validation_subset": "testing", "fps": 30}, 157,
     (7985 - 174, 49809 - 7, {"empty (end <= start)": 7}, 14578, 0), (1863, 16691, {}, 5024, 0)),
    ("anet_1_3.json.gz", {"window": WHOLE}, 200,
     (9649 - 46, 14859 - 306, {"empty (end <= start)": 9, "copies": 31, "too short to train on": 266}, 7, 0),
     (4728, 7293 - 22, {"empty (end <= start)": 3, "copies": 19}, 6, 0)),
    ("anet_1_3.json.gz", {"window": WHOLE, "validation_subset": "testing", "filter_short": False}, 200,
     (9649 - 8, 14859 - 40, {"empty (end <= start)": 9, "copies": 31}, 7, 0), (4851, 0, {}, 0, 0)),
    ("epic_kitchens_partial.json.gz", {"label_key": "verb", "train_subset": "train", "validation_subset": "val",
     "classes": "epic_verb_classes.txt"}, 97, (148, 16115 - 2, {"copies": 2}, 0, 0), (138, 9668, {}, 1, 0)),
    ("epic_kitchens_partial.json.gz", {"label_key": "noun", "train_subset": "train", "validation_subset": "val",
     "classes": "epic_noun_classes.txt", "fps": 30}, 300, (148, 16115 - 3, {"copies": 3}, 0, 0), (138, 9668, {}, 1, 0)),
]  # fmt: skip
"""File, settings, classes, and of both subsets: videos, instances, what is dropped, segments past the end and wholly
outside."""


@pytest.mark.parametrize(("name", "settings", "classes", "train", "validation"), FILES)
def test_files_of_the_field_load_completely(shared_folder, name, settings, classes, train, validation):
    folder = shared_folder / "data" / "annotations"
    settings = {key: str(folder / value) if key == "classes" else value for key, value in settings.items()}
    found = read_annotations(DataSpec(annotations=str(folder / name), videos="", **settings))
    assert len(found.classes) == classes
    for videos, report, expected in (
        (found.train, found.train_report, train),
        (found.validation, found.validation_report, validation),
    ):
        dropped = {reason: by_video.total() for reason, by_video in report.dropped.items()}
        ends = report.past_end.total(), report.outside.total()
        assert (len(videos), report.instances, dropped, *ends) == expected
        assert report.instances == sum(len(video.labels) for video in videos)


def test_labels_that_differ_in_the_form_of_their_accents_are_shown_apart(read):
    content = database(segment(1, 2, "caf\u00e9"), segment(3, 4, "cafe\u0301"))
    content["v"]["annotations"] = list(content["t"]["annotations"])
    (warning,) = read(content).warnings
    assert warning.startswith(r"labels 'cafe\u0301' (2), 'caf\xe9' (2) differ in ")
    with pytest.raises(AnnotationError, match=r"the list has 'caf\\xe9', this is 'cafe\\u0301': write accents as one"):
        read(content, classes=("caf\u00e9",))
