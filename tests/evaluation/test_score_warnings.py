"""What is said beside a score: names that don't meet, times outside of their video, what was left out."""

import copy

import pytest

from adatad.evaluation.score_warnings import (
    blocked_warnings,
    list_quoted,
    name_key,
    repeated_detection_warnings,
    score_warnings,
    video_key,
)

TRUTH = {
    "database": {
        "k0": {"subset": "training", "duration": 12.0, "annotations": [{"segment": [1, 4], "label": "pour"}]},
        "k2": {"subset": "validation", "duration": 12.0, "annotations": [{"segment": [2, 5], "label": "stir"}]},
        "k3": {"subset": "validation", "duration": 12.0, "annotations": [{"segment": [1, 3], "label": "pour"}]},
    }
}
FOUND = {
    "results": {
        "k2": [{"segment": [2, 5], "label": "stir", "score": 0.9}],
        "k3": [{"segment": [1, 3], "label": "pour", "score": 0.9}],
    }
}


def warnings(change_truth=None, change_found=None, **options) -> str:
    """All that is said of the two files after a change of their videos."""
    truth, found = copy.deepcopy(TRUTH), copy.deepcopy(FOUND)
    if change_truth:
        change_truth(truth["database"])
    if change_found:
        change_found(found["results"])
    return "\n".join(score_warnings(truth, found, "validation", **options))


def relabel(video, label, **more):
    return lambda results: results[video][0].update(label=label, **more)


def instance(video, start, end, label="stir"):
    return lambda database: database[video]["annotations"].append({"segment": [start, end], "label": label})


def test_nothing_is_said_of_files_that_fit():
    assert warnings() == ""


@pytest.mark.parametrize("label", ["Stir", "stir ", " STIR", "st\u0131r"])
def test_a_label_that_no_annotation_has_is_named_with_the_one_that_was_meant(label):
    text = warnings(None, relabel("k2", label))
    assert f"1 detection with 1 label that no annotation has (left out of the score): {label!r}" in text
    assert ("(there is 'stir')" in text) == (name_key(label) == "stir")
    assert "the annotations have 'pour', 'stir'" in text


def test_only_the_first_of_many_names_are_listed():
    def many(results):
        results["k2"] = [{"segment": [2, 5], "label": f"other {n}", "score": 0.5} for n in range(500)]

    text = warnings(None, many)
    assert "500 detections with 500 labels" in text
    assert "'other 2' and 497 more" in text
    assert "other 3'" not in text


@pytest.mark.parametrize("name", ["k2.mp4", "v_k2", "K2", "k2 ", "k2.MKV"])
def test_a_video_under_another_name_is_named_from_both_sides(name):
    text = warnings(None, lambda results: results.update({name: results.pop("k2")}))
    assert (
        f"1 video with detections but in no annotation (detections there count as wrong): {name!r} (there is 'k2')"
        in text
    )
    assert "1 of 2 videos of subset 'validation' not in the detections file at all (1 instance missed" in text
    assert f"'k2' (there is {name!r})" in text


def test_videos_of_other_subsets_and_missing_ones_are_counted_apart():
    def move(results):
        results["k0"] = results.pop("k3")

    text = warnings(None, move)
    assert "1 video with detections but not of subset 'validation'" in text
    assert "1 of 2 videos of subset 'validation' not in the detections file" in text
    assert warnings(None, lambda results: results.update(k0=[])) == "", "nothing was found there"
    assert warnings(None, lambda results: results.update(k3=[])) == "", "it was looked at"


def test_blocked_videos_are_left_alone_and_blocked_names_must_exist():
    assert warnings(lambda d: d["k3"].update(duration=0.5), lambda r: r.pop("k3"), blocked={"k3"}).count("\n") == 0
    assert list(blocked_warnings(TRUTH, {"k0", "k3"})) == []
    (line,) = blocked_warnings(TRUTH, {"v_k2", "k0.mp4", "k3"})
    assert line.startswith("2 of 3 blocked names in no annotation")
    assert "'k0.mp4' (there is 'k0'), 'v_k2' (there is 'k2')" in line


def test_classes_without_an_instance_are_named():
    text = warnings(lambda d: d["k3"].update(annotations=[]))
    effect = "left out of the mean, and 1 detection with them"
    assert text == f"1 of 2 classes without an instance in subset 'validation' ({effect}): 'pour'"
    nothing = warnings(lambda d: [d[video].update(annotations=[]) for video in ("k2", "k3")])
    assert nothing.endswith("no instance in subset 'validation': nothing is scored")


def test_instances_wholly_outside_are_counted_apart_from_those_that_end_late():
    def change(database):
        for place in ((-3, -1), (1000, 4000), (11, 12.5), (-0.5, 1)):
            instance("k2", *place)(database)

    lines = warnings(change).splitlines()
    assert lines == [
        "2 instances wholly outside of the video, where nothing can be found: "
        "'k2' (-3 to -1 s of 12 s), 'k2' (1000 to 4000 s of 12 s)",
        "1 instance with an end after the video's: 'k2' (11 to 12.5 s of 12 s)",
        "1 instance with a start before 0 s: 'k2' (-0.5 to 1 s of 12 s)",
    ]  # fmt: skip


@pytest.mark.parametrize("duration", [None, "12", float("nan"), 10**400, -1, True])
def test_a_duration_that_is_none_is_not_believed(duration):
    assert warnings(lambda d: d["k2"].update(duration=duration)) == ""
    assert "wholly outside" in warnings(lambda d: (d["k2"].update(duration=duration), instance("k2", -3, -1)(d)))


def test_detections_outside_of_their_video_are_counted():
    text = warnings(None, relabel("k2", "stir", segment=[13, 15]))
    assert text == "1 detection wholly outside of the video: 'k2' (13 to 15 s of 12 s)"
    # What is cut to the video's end has no length there.
    assert warnings(None, relabel("k2", "stir", segment=[12.0, 12.0])) == ""


def test_annotations_that_do_not_count_are_counted():
    def change(database):
        for place in ((5, 5), (7, 6), (2, 5), (2.0004, 5)):
            instance("k2", *place)(database)

    assert warnings(change).splitlines() == [
        "2 annotations without a length (end <= start), left out: 'k2'", "2 repeated annotations, left out: 'k2'",
    ]  # fmt: skip


def test_ambiguous_is_no_class_unless_it_is_kept():
    change = instance("k0", 1, 2, "Ambiguous")
    assert warnings(change) == ""
    assert "1 of 3 classes without an instance" in warnings(change, keep_ambiguous=True)


def test_names_that_differ_in_their_spelling_alone_are_shown():
    text = warnings(instance("k0", 6, 8, "Stir"))
    assert (
        "2 annotated labels alike but for case, blanks or ending (scored as different classes): 'Stir' and 'stir'"
        in text
    )
    text = warnings(lambda d: d.update({"k0.mp4": d["k0"]}))
    assert "2 annotated videos alike" in text
    assert "'k0' and 'k0.mp4'" in text


@pytest.mark.parametrize("annotations", [None, 3, ["x", {"label": ["y"]}, {}], {"label": "z"}])
def test_other_subsets_may_hold_anything(annotations):
    assert "left out of the score): 'pour'" not in warnings(lambda d: d["k0"].update(annotations=annotations))


def test_keys_and_listed_names():
    assert name_key(" A\tb\u00a0 C ") == "a b c"
    assert name_key("e\u0301") == name_key("\u00e9")
    assert video_key("V_clip.MOV") == "clip"
    assert list_quoted(["\x1b[31mred", "x" * 500]) == repr("\x1b[31mred") + ", '" + "x" * 77 + "...'"


def test_detections_that_stand_several_times_are_counted():
    def repeated(results, blocked=()):
        return list(repeated_detection_warnings({"results": results}, blocked))

    (item,) = FOUND["results"]["k2"]
    assert repeated({"k2": [item, {**item, "score": 0.8}, {**item, "label": "pour"}], "k3": [item]}) == []
    (line,) = repeated({"k2": [item, item, {**item, "segment": [2.0, 5.0]}, dict(item)], "k3": [item]})
    assert line.startswith("3 detections repeated (each repetition counts as wrong): 'k2'")
    assert repeated({"k2": [item] * 3}, {"k2"}) == []
