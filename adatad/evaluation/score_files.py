"""Scores of files: read and check an annotation file and a detections file, then score one against the other."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from adatad.data.annotation_file import read_names
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.epic_map import Task, annotated_name, detected_name, evaluate_epic
from adatad.evaluation.proposal_recall import RecallResult, evaluate_recall
from adatad.evaluation.score_warnings import (
    blocked_warnings,
    dropped_warnings,
    label_warnings,
    list_quoted,
    quoted,
    repeated_detection_warnings,
    score_warnings,
    time_warnings,
    video_warnings,
)
from adatad.files import FileError, StandsTwiceError, collection_paused, read_json

MAX_NUMBER = 1e12
"""Largest magnitude of seconds and scores. A larger number is a mistake, and would overflow in sums of lengths."""
MAX_DIGITS = 9
"""Most digits of a class number."""
KEYS = ("database", "results", "annotations", "segment")
"""Keys of the files' own form; a duplicate key that is none of these is a video's name."""
MAX_SUBSETS_LISTED = 20
SHORT = reprlib.Repr()
"""Shortened values for messages: a file may hold anything."""
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60
SHORT.maxdict = 8


class Contents(NamedTuple):
    """An annotation file and a detections file, read and checked, and the videos that don't count."""

    ground_truth: dict[str, Any]
    detections: dict[str, Any]
    blocked: frozenset[str]


def evaluate_files(
    ground_truth: Path,
    detections: Path,
    subset: str,
    tious: Sequence[float],
    top_k: Sequence[int] = (),
    blocked: Path | None = None,
    keep_ambiguous: bool = False,
) -> MapResult:
    """Return the mAP of a detections file on a subset of an annotation file.

    Raises FileError, or AnnotationError for `blocked`, before anything is scored. top_k: also compute recall@kx;
    blocked: file with names of videos that don't count (`read_names`); keep_ambiguous: as in `evaluate`.
    """
    # Millions of detections, which hold no cycles.
    with collection_paused():
        read = read_contents(ground_truth, detections, subset, blocked)
        files = (read.ground_truth, read.detections, subset)
        result = evaluate(*files, tious, read.blocked, keep_ambiguous, top_k)
        warnings = score_warnings(*files, read.blocked, keep_ambiguous=keep_ambiguous)
        # For files alone: a run's own detections can't have been joined twice.
        repeated = repeated_detection_warnings(read.detections, read.blocked)
    return replace(result, warnings=(*blocked_warnings(read.ground_truth, read.blocked), *warnings, *repeated))


def evaluate_epic_files(
    ground_truth: Path,
    detections: Path,
    subset: str,
    tious: Sequence[float],
    task: Task,
    blocked: Path | None = None,
    misplace_classes: bool = False,
) -> MapResult:
    """Return the mAP of EPIC-Kitchens' files, by verb, noun or action; arguments as in `evaluate_files`."""
    keys = ("verb_label", "noun_label") if task == "action" else (f"{task}_label",)
    labels = {task: _not_pair if task == "action" else _not_number}
    read = _read_all(ground_truth, detections, subset, blocked, dict.fromkeys(keys, _not_id), labels)
    result = evaluate_epic(
        read.ground_truth, read.detections, subset, tious, task,
        blocked_videos=read.blocked, misplace_classes=misplace_classes,
    )  # fmt: skip
    files = (read.ground_truth, read.detections, subset, read.blocked)
    # The reference takes a number that isn't annotated for another class: nothing is left out there.
    unused = (
        () if misplace_classes else label_warnings(*files, partial(annotated_name, task), partial(detected_name, task))
    )
    warnings = (
        *blocked_warnings(read.ground_truth, read.blocked),
        *video_warnings(*files),
        *unused,
        *time_warnings(*files),
        *repeated_detection_warnings(read.detections, read.blocked),
    )
    return replace(result, warnings=warnings)


def evaluate_recall_files(
    ground_truth: Path,
    detections: Path,
    subset: str,
    tious: Sequence[float],
    most_per_video: int = 100,
    blocked: Path | None = None,
    keep_ambiguous: bool = False,
) -> RecallResult:
    """Return the average recall of the detections as proposals, whatever their labels."""
    read = _read_all(ground_truth, detections, subset, blocked, {"label": _not_name}, {})
    result = evaluate_recall(
        read.ground_truth, read.detections, subset, tious, most_per_video, read.blocked, keep_ambiguous
    )
    files = (read.ground_truth, read.detections, subset, read.blocked)
    warnings = (
        *blocked_warnings(read.ground_truth, read.blocked),
        *video_warnings(*files, "detections there count among the proposals, and find nothing"),
        *time_warnings(*files),
        *dropped_warnings(read.ground_truth, subset, read.blocked, keep_ambiguous),
        *repeated_detection_warnings(read.detections, read.blocked),
    )
    return replace(result, warnings=warnings)


def read_contents(ground_truth: Path, detections: Path, subset: str, blocked: Path | None = None) -> Contents:
    """Return both files' checked contents, whose labels are names. Raises FileError, or AnnotationError for
    `blocked`."""
    return _read_all(ground_truth, detections, subset, blocked, {"label": _not_name}, {"label": _not_name})


def read_detections(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the checked "results" of a detections file whose labels are names. Raises FileError."""
    results = _read(path, "results", '{"results": {video: [{"segment", "label", "score"}]}}')["results"]
    for video, items in results.items():
        _check(f"{path}: video {quoted(video)}", "detection", items, {"label": _not_name}, "score")
    return results


Labels = dict[str, Callable[[Any], str | None]]
"""Label keys of an item, each with a check that returns what the value should be; None if it is right."""


def _not_name(value: Any) -> str | None:
    return None if isinstance(value, str) else "a name"


def _not_id(value: Any) -> str | None:
    right = isinstance(value, str) and _is_number(value.removeprefix("id_"))
    return None if right else 'a number like "id_12"'


def _not_number(value: Any) -> str | None:
    right = type(value) in (int, str) and _is_number(str(value))
    return None if right else "a number"


def _not_pair(value: Any) -> str | None:
    parts = value.split(",") if isinstance(value, str) else []
    return None if len(parts) == 2 and all(map(_is_number, parts)) else 'a pair of numbers like "3,12"'


def _is_number(text: str) -> bool:
    """Return whether a text is a class number."""
    # Limited, so that a verb's and a noun's number together fit into 64 bits.
    return text.isdecimal() and len(text) <= MAX_DIGITS


def _read_all(
    ground_truth: Path, detections: Path, subset: str, blocked: Path | None, annotated: Labels, detected: Labels
) -> Contents:
    """Read and check both files; only what is scored is looked at closely."""
    # The form of both files first: an error in the second shows before the first is checked entry by entry.
    truth = _read(ground_truth, "database", '{"database": {video: {"subset", "annotations"}}}')
    found = _read(detections, "results", '{"results": {video: [{"segment", "label", "score"}]}}')
    names = read_names(blocked)
    for video, entry in truth["database"].items():
        if not isinstance(entry, dict):
            raise FileError(f"{ground_truth}: video {quoted(video)}: expected an object with subset and annotations")
    # Entries of other subsets are never read: they may hold anything.
    _check_subset(ground_truth, truth["database"], subset)
    for video, entry in truth["database"].items():
        if entry.get("subset") == subset:
            _check(f"{ground_truth}: video {quoted(video)}", "annotation", entry.get("annotations", []), annotated)
    # All videos, also of other subsets: their detections count as wrong.
    for video, items in found["results"].items():
        _check(f"{detections}: video {quoted(video)}", "detection", items, detected, "score")
    return Contents(truth, found, names)


def _check_subset(path: Path, database: dict[str, dict[str, Any]], subset: str) -> None:
    """Raise FileError if no video is in the subset; the message names the subsets of the file."""
    # Otherwise the score of nothing would be 0 without an error.
    subsets = [entry.get("subset") for entry in database.values()]
    if subset not in subsets:
        there = sorted({name if isinstance(name, str) else SHORT.repr(name) for name in subsets})
        raise FileError(
            f"{path}: no video of subset {quoted(subset)}; "
            + (
                f"the file has {list_quoted(there, most=MAX_SUBSETS_LISTED)}; --subset names one"
                if there
                else "it has none"
            )
        )


def _check(where: str, what: str, items: Any, labels: Labels, *scores: str) -> None:
    """Raise FileError if `items` isn't a list of segments with labels and these scores."""
    if not isinstance(items, list):
        raise FileError(f"{where}: expected a list of {what}s, got {SHORT.repr(items)}")
    for number, item in enumerate(items):
        problem = _problem(item, labels, scores)
        # An annotation without a length is left out when scoring; a detection like that comes from a mistake.
        if problem or (scores and item["segment"][1] < item["segment"][0]):
            problem = problem or "the segment ends before it starts"
            raise FileError(f"{where}, {what} {number}: {problem}, got {SHORT.repr(item)}")


def _read(path: Path, key: str, form: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except StandsTwiceError as error:
        # A key whose value is a list or an object is a video's; keys of annotations hold numbers and names.
        video = "video " if isinstance(error.value, (dict, list)) and error.key not in KEYS else ""
        raise FileError(
            f"{path}: {video}{quoted(error.key)} appears twice; keep one of the two, or join them"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        other = {"database": "results", "results": "database"}[key]
        hint = (
            f'; it has "{other}": are the two files in the wrong order?'
            if isinstance(content, dict) and other in content
            else ""
        )
        raise FileError(f"{path}: expected {form}{hint}")
    return content


def _problem(item: Any, labels: Labels, scores: Collection[str]) -> str | None:
    """Return what is wrong with a segment, its labels or its scores; None if nothing is."""
    keys = ("segment", *labels, *scores)
    if not isinstance(item, dict) or not set(keys) <= item.keys():
        return f"expected {', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else f"expected {keys[0]}"
    segment = item["segment"]
    # [None] fails the test of numbers below, with the same message.
    numbers = (
        [*segment, *(item[score] for score in scores)] if isinstance(segment, list) and len(segment) == 2 else [None]
    )
    # True and false are numbers to Python; NaN is in no range.
    if not all(type(number) in (int, float) and abs(number) <= MAX_NUMBER for number in numbers):
        return " and ".join(["expected segment [start, end]", *scores]) + " as finite numbers"
    for key, wrong in labels.items():
        if expected := wrong(item[key]):
            return f"expected {expected} as {key}"
    return None
