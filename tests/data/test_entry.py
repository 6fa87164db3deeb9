"""Entries of annotation files: what one reader refuses every reader refuses, with the same words."""

import pytest

from adatad.data.annotation_file import AnnotationError
from adatad.data.annotations import annotations_of
from adatad.data.entry import UNREADABLE, entry_problems
from adatad.spec.data_sections import DataSpec

SPEC = DataSpec(annotations="annotations.json", videos="")


def segment(start: object, end: object, label: object = "run") -> dict:
    return {"segment": [start, end], "label": label}


def database(*instances: dict, **entry: object) -> dict:
    """One training video with these instances, and one validation video without."""
    train = {"subset": "training", "duration": 10.0, "frame": 100, **entry, "annotations": list(instances)}
    return {"t": train, "v": {"subset": "validation", "duration": 4.0, "frame": 100}}


@pytest.mark.parametrize(
    "values",
    [
        {"duration": float("nan")}, {"duration": float("inf")}, {"duration": -3}, {"duration": 1e308},
        {"duration": 10**400}, {"duration": True}, {"duration": [10]}, {"duration": "soon"}, {"duration": None},
        {"frame": float("nan")}, {"frame": float("inf")}, {"frame": -1}, {"frame": 1e308}, {"frame": 10**400},
        {"frame": "many"}, {"frame": True}, {"fps": float("inf")}, {"fps": -25}, {"fps": "nan"}, {"fps": 1e308},
        {"frame": 10**9, "duration": 0.001}, {"frame": None, "fps": 0.01, "duration": 3}, {"annotations": {"a": 1}},
        {"annotations": [3]}, {"annotations": [{"segment": [1, 2, 3], "label": "run"}]},
        {"annotations": [{"segment": "12", "label": "run"}]}, {"annotations": [segment(1, 10**400)]},
        {"annotations": [segment(0, 1e308)]}, {"annotations": [segment(False, True)]},
        {"annotations": [segment(1, 2, "")]}, {"annotations": [segment(1, 2, "  ")]},
        {"annotations": [segment(1, 2, "\u200b")]},
        {"annotations": [segment(1, 2, None)]},
        {"annotations": [segment(1, 2, ["run"])]}, {"annotations": [segment(1, 2, True)]},
        {"annotations": [segment(1, 2, 1.5)]}, {"annotations": [segment(1, 2, "two\nlines")]},
        {"annotations": [segment(1, 2, "page\u2028break")]}, {"annotations": [segment(1, 2, "walk")]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("fps", [None, 30.0])
def test_what_the_check_finds_training_refuses_too(values, fps):
    content = database(segment(1, 2))
    content["t"] |= {"annotations": [segment(1, 2)], **values}
    spec = DataSpec(annotations="annotations.json", videos="", fps=fps)
    problems = entry_problems(spec, "t", content["t"], {"run": 0})
    if fps and values.keys() == {"frame", "fps", "duration"}:
        assert problems == []
        return
    assert problems
    assert problems[0].kind in ("unreadable annotations", "unknown label")
    with pytest.raises(AnnotationError, match=r"annotations\.json: video 't': ") as caught:
        annotations_of(content, spec.model_copy(update={"classes": ("run",)}))
    assert problems[0].text in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_instance_without_length_or_ends_is_counted_by_training_and_named_by_the_check():
    content = database(segment(5, 3), segment(float("nan"), 3), segment(-3, -1), segment(-1, 2), segment(1, 2))
    problems = entry_problems(SPEC, "t", content["t"], {"run": 0})
    assert [problem.kind for problem in problems] == [
        "instance left out", "instance left out", "label out of range", "label out of range",
    ]  # fmt: skip
    assert "-1 to 2 s begins before the video does" in problems[-1].text
    assert annotations_of(content, SPEC).train_report.instances == 2


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "escape\x1b[2J", "x" * 252, "folder/" + "x" * 252])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(AnnotationError, match="name"):
        annotations_of({name: database(segment(1, 2))["t"], **database(segment(1, 2))}, SPEC)


def test_text_of_a_plain_number_is_a_number():
    """HACS writes durations so."""
    video = annotations_of(database(segment(1, 2), duration="10.0", frame="100"), SPEC).train[0]
    assert (video.duration_seconds, video.frames) == (10.0, 100)


@pytest.mark.parametrize("name", ["../v/k0", "/etc/passwd", "a/../../b"])
def test_a_name_that_leaves_the_folder_of_videos_is_refused(name):
    content = database(segment(1, 2))
    assert [problem.kind for problem in entry_problems(SPEC, name, content["t"], {"run": 0})] == [UNREADABLE]
    with pytest.raises(AnnotationError, match=r"leaves the folder of videos; a name has no \.\. and"):
        annotations_of({name: content["t"], **content}, SPEC)
    assert entry_problems(SPEC, "a/k0..b", content["t"], {"run": 0}) == []
