"""Scoring files: reads and checks an annotation file and a detections file, then scores one against the other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adatad.errors import UserError
from adatad.evaluation.detection_map import MapResult, evaluate


class FileError(UserError):
    """A file that can't be scored; the message names it, the video, and what was expected."""


def evaluate_files(ground_truth: Path, detections: Path, subset: str, tious: Sequence[float]) -> MapResult:
    """mAP of a detections file on a subset of an annotation file. Raises FileError before anything is scored."""
    truth = _read(ground_truth, "database", '{"database": {video: {"subset", "annotations"}}}')
    found = _read(detections, "results", '{"results": {video: [{"segment", "label", "score"}]}}')
    for video, entry in truth["database"].items():
        if not isinstance(entry, dict):
            raise FileError(f"{ground_truth}: video {video!r}: expected an object with subset and annotations")
    subsets = sorted({str(entry.get("subset")) for entry in truth["database"].values()})
    if subset not in subsets:
        raise FileError(f"{ground_truth}: no video of subset {subset!r}; the file has {', '.join(subsets)}")
    for video, entry in truth["database"].items():
        if entry.get("subset") == subset:
            _check(f"{ground_truth}: video {video!r}", "annotation", entry.get("annotations", []))
    for video, items in found["results"].items():
        _check(f"{detections}: video {video!r}", "detection", items, "score")
    return evaluate(truth, found, subset, tious)


def _check(where: str, what: str, items: Any, *scores: str) -> None:
    """Raise FileError if `items` isn't a list of segments with labels and these scores."""
    if not isinstance(items, list):
        raise FileError(f"{where}: expected a list of {what}s, got {items!r}")
    for number, item in enumerate(items):
        problem = _problem(item, scores)
        # An annotation without a length is left out when scoring; a detection like that comes from a mistake.
        if problem or (scores and item["segment"][1] < item["segment"][0]):
            problem = problem or "the segment ends before it starts"
            raise FileError(f"{where}, {what} {number}: {problem}, got {item!r}")


def _read(path: Path, key: str, form: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise FileError(f"{path}: expected {form}")
    return content


def _problem(item: Any, scores: Sequence[str]) -> str | None:
    """What is wrong with a segment, its label or its scores, if anything."""
    keys = ("segment", "label", *scores)
    if not isinstance(item, dict) or not set(keys) <= item.keys():
        return f"expected {', '.join(keys[:-1])} and {keys[-1]}"
    segment = item["segment"]
    numbers = (
        [*segment, *(item[score] for score in scores)] if isinstance(segment, list) and len(segment) == 2 else [None]
    )
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        return " and ".join(["expected segment [start, end]", *scores]) + " as finite numbers"
    if not isinstance(item["label"], str):
        return "expected a name as label"
    return None
