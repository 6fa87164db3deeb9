"""Annotation files: what is read, what is left out, and what is said of a broken one."""

import json

import numpy as np
import pytest

from adatad.data.annotations import AnnotationError, read_annotations
from adatad.spec.schema import DataSpec

ENTRY = {"subset": "training", "duration": 10.0, "frame": 100}


def segment(start: float, end: float, label: str = "run") -> dict:
    return {"segment": [start, end], "label": label}


@pytest.fixture
def read(tmp_path):
    """read(database, reference=..., key=value of DataSpec) -> Annotations."""

    def read(database: object, reference: bool = False, **settings: object):
        path = tmp_path / "annotations.json"
        path.write_text(database if isinstance(database, str) else json.dumps({"database": database}))
        return read_annotations(DataSpec(annotations=str(path), videos="videos", **settings), reference)

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
        ("{", "not a readable JSON file"),
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
