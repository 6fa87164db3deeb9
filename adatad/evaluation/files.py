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
    subsets = sorted({str(entry.get("subset")) for entry in truth["database"].values()})
    if subset not in subsets:
        raise FileError(f"{ground_truth}: no video of subset {subset!r}; the file has {', '.join(subsets)}")
    for video, items in found["results"].items():
        if not isinstance(items, list):
            raise FileError(f"{detections}: video {video!r}: expected a list of detections")
        for number, item in enumerate(items):
            problem = _problem(item)
            if problem:
                raise FileError(f"{detections}: video {video!r}, detection {number}: {problem}, got {item!r}")
    return evaluate(truth, found, subset, tious)


def _read(path: Path, key: str, form: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise FileError(f"{path}: expected {form}")
    return content


def _problem(item: Any) -> str | None:
    """What is wrong with a detection, if anything."""
    if not isinstance(item, dict) or not {"segment", "label", "score"} <= item.keys():
        return "expected segment, label and score"
    segment = item["segment"]
    numbers = [*segment, item["score"]] if isinstance(segment, list) and len(segment) == 2 else [None]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        return "expected segment [start, end] and score as finite numbers"
    if segment[1] < segment[0]:
        return "the segment ends before it starts"
    return None
