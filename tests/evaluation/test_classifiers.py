"""External classifiers: what each kind makes of scores, and what is said of files that can't be used."""

import json
from pathlib import Path

import numpy as np
import pytest

from adatad.evaluation.classifiers import ClassifierError, read_classifier
from adatad.evaluation.postprocess import WindowMeta, window_detections
from adatad.spec import load
from adatad.spec.schema import ClassifierSpec, NmsSpec, PostprocessSpec

CLASSIFIERS = sorted((Path(__file__).parents[2] / "configs" / "base" / "classifiers").glob("*.yaml"))
SEGMENTS = np.array([[0, 4], [2, 8]], np.float32)
SCORES = np.array([0.5, 0.4], np.float32)
NAMES = ["run", "jump", "fall"]


def classifier(tmp_path, scores, kind="cuhk", key="class", **options):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"results": {"v": scores}, key: NAMES}))
    return read_classifier(ClassifierSpec(kind=kind, file=str(path), **options))


@pytest.mark.parametrize("key", ["class", "classes"])
def test_segments_are_repeated_for_the_best_classes(tmp_path, key):
    made = classifier(tmp_path, [0.1, 0.3, 0.6], key=key, topk=2)
    segments, scores, labels = made.label("v", SEGMENTS, SCORES)
    assert labels == ["fall", "fall", "jump", "jump"]
    assert scores.tolist() == pytest.approx([0.3, 0.24, 0.15, 0.12])
    assert segments.tolist() == SEGMENTS.tolist() * 2


def test_fusion_of_each_kind(tmp_path):
    root = classifier(tmp_path, [0.1, 0.9, 0.0], "standard").label("v", SEGMENTS, SCORES)
    assert root[1].tolist() == pytest.approx(np.sqrt(SCORES * 0.9).tolist())
    logits = [0.0, np.log(3.0), -50.0]
    soft = classifier(tmp_path, logits, "standard", apply_softmax=True).label("v", SEGMENTS, SCORES)
    assert soft[1].tolist() == pytest.approx(np.sqrt(SCORES * 0.75).tolist())
    twice = classifier(tmp_path, [logits], "tcanet_hacs").label("v", SEGMENTS, SCORES)
    assert twice[1].tolist() == pytest.approx((SCORES * 1.5).tolist())


@pytest.mark.parametrize(("kind", "options"), [("standard", {"apply_softmax": True}), ("tcanet_hacs", {})])
def test_large_logits_do_not_overflow(tmp_path, kind, options):
    _, scores, labels = classifier(tmp_path, [800.0, 0.0, 1.0], kind, **options).label("v", SEGMENTS, SCORES)
    assert labels == ["run", "run"]
    assert np.isfinite(scores).all()
    assert (scores > 0.5).all()


def test_ties_are_decided_the_same_way_every_time(tmp_path):
    assert classifier(tmp_path, [0.5, 0.5, 0.1]).label("v", SEGMENTS, SCORES)[2] == ["run", "run"]
    assert classifier(tmp_path, [0.5, 0.5, 0.1], "standard").label("v", SEGMENTS, SCORES)[2] == ["jump", "jump"]


def test_rows_of_untrimmednet_are_numbers_in_names(tmp_path):
    scores = np.full((3, 101), 0.01)
    scores[1, 0], scores[1, 97 - 1], scores[1, 7 - 1] = 0.9, 0.5, 0.4
    np.save(tmp_path / "scores.npy", scores)
    made = read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npy"), topk=2))
    _, fused, labels = made.label("video_test_0000002", SEGMENTS, SCORES)
    # The first column isn't one of the 20 classes.
    assert labels == ["VolleyballSpiking"] * 2 + ["BaseballPitch"] * 2
    assert fused.tolist() == pytest.approx([0.25, 0.2, 0.2, 0.16])
    for video in ("video_test_0000004", "video_test_0000000", "no_number"):
        with pytest.raises(ClassifierError, match=rf"scores\.npy: has no scores of video '{video}'.*0001 to 0003"):
            made.label(video, SEGMENTS, SCORES)


def test_a_missing_video_is_named_with_the_file(tmp_path):
    made = classifier(tmp_path, [0.1, 0.3, 0.6])
    with pytest.raises(
        ClassifierError, match=r"scores\.json: has no scores of video 'w'; it has 1 videos, such as 'v'"
    ):
        made.label("w", SEGMENTS, SCORES)


@pytest.mark.parametrize("scores", [[0.1], "many", [[0.1, 0.2, 0.3]], [0.1, float("nan"), 0.2]])
def test_wrong_scores_of_a_video_are_named(tmp_path, scores):
    with pytest.raises(ClassifierError, match=r"scores\.json: video 'v': expected"):
        classifier(tmp_path, scores).label("v", SEGMENTS, SCORES)


@pytest.mark.parametrize("text", ["", "[]", '{"results": {}}', '{"results": {}, "class": "run"}', '{"class": []}'])
def test_unusable_files_are_named(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ClassifierError, match=r"scores\.json: (expected|not a readable|is not readable)"):
        read_classifier(ClassifierSpec(kind="cuhk", file=str(tmp_path / "scores.json")))


@pytest.mark.parametrize("array", [np.zeros(101), np.zeros((3, 20)), np.array([{}], object)])
def test_unusable_arrays_are_named(tmp_path, array):
    np.save(tmp_path / "scores.npy", array, allow_pickle=True)
    with pytest.raises(ClassifierError, match=r"scores\.npy: (expected|not a readable)"):
        read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npy")))


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A file with this header, as numpy writes them."""
    text = header.encode() + b"\n"
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + content


FLOATS = "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(200), b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x80\x04K\x01.",
        npy(FLOATS % "(9999999999999, 101)"), npy(FLOATS % "(-1, 101)"), npy(FLOATS % "(0, 101)"),
        npy(FLOATS % f"(1{'0' * 400}, 101)"), npy(FLOATS % "(2, 101)", bytes(8 * 201)), npy("(" * 3000), npy("{'a': "),
        npy(FLOATS % "(1, 101)", bytes(8 * 101), b"\x03\x00"), npy(FLOATS % "(1, 101)", bytes(8 * 101), b"\x09\x00"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 101), }", bytes(8 * 101)),
        npy("{'descr': '<c16', 'fortran_order': False, 'shape': (1, 101), }", bytes(16 * 101)),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1, 101), }", bytes(8 * 101)),
        npy("__import__('os').abort()"),
    ],
)  # fmt: skip
def test_an_array_is_believed_only_as_far_as_its_file_is_long(tmp_path, content):
    (tmp_path / "scores.npy").write_bytes(content)
    with pytest.raises(ClassifierError, match=r"scores\.npy: (expected|not a readable)"):
        read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npy")))


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "scores.npz", np.zeros((1, 101)))
    with pytest.raises(ClassifierError, match=r"scores\.npz: not a readable \.npy array"):
        read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npz")))


@pytest.mark.filterwarnings("error")
def test_numbers_of_any_width_are_taken_and_what_is_none_is_refused_with_its_video(tmp_path):
    for kind in map(np.dtype, (np.half, np.single, np.double, np.longdouble)):
        header = FLOATS.replace("<f8", kind.str) % "(1, 101)"
        (tmp_path / "scores.npy").write_bytes(npy(header, b"\xff" * (kind.itemsize * 101)))
        made = read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npy")))
        with pytest.raises(ClassifierError, match="row 1, of video 'video_0001': expected finite scores"):
            made.label("video_0001", SEGMENTS, SCORES)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_either_order_are_read_alike(tmp_path, order):
    scores = np.arange(303.0).reshape(3, 101).astype(np.float32, order=order)
    np.save(tmp_path / "scores.npy", scores)
    made = read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npy")))
    assert (made.scores == scores).all()
    scores[1, 6] = np.nan
    np.save(tmp_path / "scores.npy", scores)
    made = read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(tmp_path / "scores.npy")))
    made.label("video_0003", SEGMENTS, SCORES)
    with pytest.raises(ClassifierError, match="row 2, of video 'video_0002': expected finite scores"):
        made.label("video_0002", SEGMENTS, SCORES)


@pytest.mark.parametrize(
    "scores",
    ["[1, 2]", "{}", "null", "[1, 2, NaN]", "[1, 2, 1e999]", f"[1, 2, 1{'0' * 400}]", "[1, [2], 3]", "[[1, 2, 3]]"],
)
def test_scores_of_a_video_must_be_one_number_a_class(tmp_path, scores):
    path = tmp_path / "scores.json"
    path.write_text(f'{{"results": {{"v": {scores}}}, "class": {json.dumps(NAMES)}}}')
    made = read_classifier(ClassifierSpec(kind="cuhk", file=str(path)))
    with pytest.raises(ClassifierError, match="video 'v': expected"):
        made.check(["v"])


def test_roots_are_taken_of_probabilities_alone(tmp_path):
    classifier(tmp_path, [0.1, -0.3, 0.6]).check(["v"])
    classifier(tmp_path, [0.1, -0.3, 0.6], kind="standard", apply_softmax=True).check(["v"])
    with pytest.raises(ClassifierError, match="scores below 0; expected probabilities"):
        classifier(tmp_path, [0.1, -0.3, 0.6], kind="standard").check(["v"])


def test_a_class_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "scores.json").write_text('{"results": {}, "class": ["a", "b", "a"]}')
    with pytest.raises(ClassifierError, match="class 'a' appears twice"):
        read_classifier(ClassifierSpec(kind="cuhk", file=str(tmp_path / "scores.json")))


def test_detections_of_a_video_carry_the_classifier_s_labels(tmp_path):
    spec = PostprocessSpec(nms=NmsSpec(multiclass=False, min_score=0.0))
    meta = WindowMeta("v", 8.0, resize_grid=8)
    made = classifier(tmp_path, [0.1, 0.3, 0.6], topk=2)
    found = window_detections(SEGMENTS, SCORES[:, None], meta, ("action",), spec, False, made)
    assert [item["label"] for item in found] == ["fall", "fall", "jump", "jump"]
    pseudo = read_classifier(ClassifierSpec(kind="pseudo", pseudo_label="event"))
    found = window_detections(SEGMENTS, SCORES[:, None], meta, ("action",), spec, False, pseudo)
    assert [item["label"] for item in found] == ["event", "event"]
    assert found[0]["score"] == 0.5


def test_all_videos_that_the_file_lacks_are_listed_at_once(tmp_path):
    made = classifier(tmp_path, [0.1, 0.3, 0.6])
    made.check(["v"])
    with pytest.raises(ClassifierError, match=r"scores\.json: has no scores of 2 videos that are to be labelled: a, b"):
        made.check(["a", "v", "b"])
    wrong = classifier(tmp_path, [0.1])
    with pytest.raises(ClassifierError, match=r"(?s)video 'v': expected 3 finite.*has no scores of 1 videos.*: a;"):
        wrong.check(["a", "v"])
    read_classifier(ClassifierSpec(kind="pseudo", pseudo_label="run")).check(["anything"])


@pytest.mark.parametrize("path", CLASSIFIERS, ids=lambda path: path.stem)
def test_every_classifier_is_named_by_a_spec_of_its_own(path, tmp_path):
    over = tmp_path / "own.yaml"
    row = path.parents[2] / "activitynet" / "g_768x224_adapter.yaml"
    over.write_text(f"base: [{row}, {path}]\n")
    mine, theirs = load(over, check_files=False), load(row, check_files=False)
    kinds = {"internvideo": "standard", "internvideo2": "standard"}
    assert mine.postprocess.classifier.kind == kinds.get(path.stem, path.stem)
    assert mine.model == theirs.model, "the same checkpoint fits"
    assert mine.postprocess.nms == theirs.postprocess.nms


def test_the_real_scores_of_untrimmednet_name_every_test_video(shared_folder):
    file = shared_folder / "data" / "annotations" / "thumos_unet_test.npy"
    made = read_classifier(ClassifierSpec(kind="untrimmednet_thumos", file=str(file), topk=2))
    database = json.loads((shared_folder / "data" / "annotations" / "thumos_14_anno.json").read_text())["database"]
    videos = {name: entry for name, entry in database.items() if entry["subset"] == "validation"}
    made.check(videos)
    right = 0
    for name, entry in videos.items():
        labels = set(made.label(name, SEGMENTS, SCORES)[2])
        right += bool(labels & {item["label"] for item in entry["annotations"]})
    assert right > 0.85 * len(videos)
