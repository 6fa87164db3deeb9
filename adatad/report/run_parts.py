"""Parts of the data of a run's page: rows of classes, timelines, the time of a step's parts, errors of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adatad.cluster.status import errors_by_rank
from adatad.data.annotations import Annotations, Video
from adatad.errors import UserError
from adatad.files import read_json, shown
from adatad.report.run_files import is_number, is_there

MAX_DETECTIONS = 200
"""Detections of a timeline, the best by score."""
MAX_PARTS = 40
"""Parts of a step on a page."""
MAX_ERROR_CHARACTERS = 2000
TIME_DIGITS, SCORE_DIGITS = 2, 4


def class_rows(
    result: dict[str, Any], classes: Sequence[str], annotations: Annotations | None = None
) -> list[dict[str, Any]]:
    """Return a row for each class: its number in `classes`, instances in validation (None if unknown), average AP, and
    AP by tIoU; best first, and last those without an instance, whose average is None. Empty without a result."""
    scored = {label: values for label, values in result.get("ap_per_class", {}).items() if values}
    counts = None
    if annotations:
        counts = [0] * len(annotations.classes)
        for video in annotations.validation:
            for label in video.labels.tolist():
                counts[label] += 1
    rows = [
        {
            "class": number,
            "instances": counts[number] if counts and number < len(counts) else None,
            "average": sum(scored[label]) / len(scored[label]) if label in scored else None,
            "values": scored.get(label, []),
        }
        for number, label in enumerate(classes)
    ]
    # Classes without instances last: they have no average to sort by.
    return sorted(rows, key=lambda row: (row["average"] is None, -(row["average"] or 0.0))) if scored else []


def class_names(annotations: Annotations | None, result: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return all labels, those of the class list first: a class has the look of its place in every part of the page."""
    others = {*result.get("ap_per_class", {}), *(item["label"] for items in found.values() for item in items)}
    return list(dict.fromkeys([*(annotations.classes if annotations else ()), *sorted(others)]))


def result_row(result: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result without the parts that the page has elsewhere; None if there is none."""
    return {key: value for key, value in result.items() if key != "ap_per_class"} if result else None


def timeline(video: Video, found: Iterable[dict[str, Any]], number: dict[str, int]) -> dict[str, Any]:
    """Return one video's segments: [class, start seconds, end seconds], detections with their score."""
    best = sorted(found, key=lambda item: -item["score"])
    more = best[MAX_DETECTIONS:]
    return {
        "name": video.name,
        "duration": round(video.duration_seconds, TIME_DIGITS),
        "truth": [
            [label, *(round(time, TIME_DIGITS) for time in segment)]
            for segment, label in zip(video.segments_seconds.tolist(), video.labels.tolist(), strict=True)
        ],
        "found": [
            [number[item["label"]], *(round(float(time), TIME_DIGITS) for time in item["segment"]),
             round(float(item["score"]), SCORE_DIGITS)]
            for item in best[:MAX_DETECTIONS]
        ],
        "left_out": len(more),
        "left_out_below": round(float(more[0]["score"]), SCORE_DIGITS) if more else None,
    }  # fmt: skip


def rank_errors(run: Path) -> list[list[str]]:
    """Return [rank, error] of the last attempt's logs, of ranks that ran out of memory, and of ranks that were ended
    because nothing went on."""
    rows = [[shown(name), shown(text, MAX_ERROR_CHARACTERS)] for name, text in errors_by_rank(run / "slurm" / "logs")]
    for file in sorted(run.glob("out_of_memory_rank*.json")):
        content = read_json(file)
        error = content.get("error") if isinstance(content, dict) else None
        rows.append(
            [shown(file.stem.removeprefix("out_of_memory_")), f"out of memory: {shown(error, MAX_ERROR_CHARACTERS)}"]
        )
    # The file is there for every rank, and has something in it once its rank was ended.
    for file in sorted(run.glob("stacks/rank-*.txt")):
        if file.stat().st_size:
            rows.append([shown(file.stem), f"was ended, as it or another rank hung or failed: {file.relative_to(run)}"])
    return rows


def profile_rows(path: Path) -> list[dict[str, Any]]:
    """Return rows of a step's parts: name, milliseconds, share in 0..1; none without the file. Raises UserError."""
    if not is_there(path):
        return []
    content = read_json(path)
    rows = content.get("parts") if isinstance(content, dict) else None
    kept = [
        {"part": shown(row["part"], 200), "milliseconds": row["milliseconds"], "share": row.get("share")}
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict) and isinstance(row.get("part"), str) and is_number(row.get("milliseconds"))
    ]
    if not kept:
        raise UserError(f'{path}: expected {{"parts": [{{"part", "milliseconds", "share"}}]}}')
    return kept[:MAX_PARTS]
