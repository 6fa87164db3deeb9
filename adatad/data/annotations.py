"""Annotation files in the ActivityNet / OpenTAD form: videos, their segments in seconds, and the classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adatad.errors import UserError
from adatad.spec.schema import DataSpec

AMBIGUOUS = "Ambiguous"
"""THUMOS-14's label for parts that are neither action nor background."""


class AnnotationError(UserError):
    """An annotation file that can't be used; the message names the file, the video and what was expected."""


@dataclass(frozen=True)
class Video:
    """One annotated video. segments_seconds: float64 [n, 2]; segments_frames: the same in whole frames, cut towards
    zero as the reference does; labels: int64 [n], numbers in the class list."""

    name: str
    duration_seconds: float
    fps: float
    frames: int
    segments_seconds: np.ndarray
    segments_frames: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says of the subsets that a spec names."""

    classes: tuple[str, ...]
    train: tuple[Video, ...]
    validation: tuple[Video, ...]


def read_annotations(spec: DataSpec, reference: bool = False) -> Annotations:
    """Read the annotation file of a spec.

    Duplicate, empty and "Ambiguous" segments are left out, and training videos without a segment. `reference`: the
    reference's quirks; empty segments stay, and frames are cut without regard to rounding.
    """
    database = load_database(spec.annotations)
    classes = read_classes(spec, database)
    numbers = {label: number for number, label in enumerate(classes)}
    subsets: dict[str, list[Video]] = {spec.train_subset: [], spec.validation_subset: []}
    for name, entry in database.items():
        if entry.get("subset") in subsets:
            video = _read_video(spec, name, entry, numbers, reference)
            subsets[entry["subset"]].append(video)
    for subset, videos in subsets.items():
        if not videos:
            there = sorted({str(entry.get("subset")) for entry in database.values()})
            raise AnnotationError(f"{spec.annotations}: no video of subset {subset!r}; the file has {', '.join(there)}")
    train = tuple(video for video in subsets[spec.train_subset] if len(video.labels))
    return Annotations(classes, train, tuple(subsets[spec.validation_subset]))


def load_database(path: str) -> dict[str, dict[str, Any]]:
    """The "database" of an annotation file, by video name."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{path}: not a readable JSON file: {error}") from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        raise AnnotationError(f'{path}: expected an object with a "database" of videos by name')
    return database


def read_classes(spec: DataSpec, database: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The class list: from the spec, from its text file, or the sorted labels of the whole annotation file."""
    if isinstance(spec.classes, str):
        lines = Path(spec.classes).read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if spec.classes is not None:
        return tuple(spec.classes)
    labels = {item["label"] for entry in database.values() for item in entry.get("annotations", ()) if "label" in item}
    return tuple(sorted(labels - {AMBIGUOUS}))


def _read_video(spec: DataSpec, name: str, entry: dict[str, Any], numbers: dict[str, int], reference: bool) -> Video:
    where = f"{spec.annotations}: video {name!r}"
    try:
        duration = float(entry["duration"])
        fps = spec.fps or float(entry["frame"]) / duration
        frames = int(entry["frame"]) if spec.fps is None else int(duration * fps)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise AnnotationError(
            f'{where}: expected "duration" in seconds and, unless data.fps is set, "frame" (a count): {error!r}'
        ) from error
    segments: list[tuple[float, float]] = []
    labels: list[int] = []
    for item in entry.get("annotations", ()):
        start, end, number = _read_instance(where, item, numbers)
        known = (start, end, number) in {(*segment, label) for segment, label in zip(segments, labels, strict=True)}
        if number is not None and not known and (end > start or reference):
            segments.append((start, end))
            labels.append(number)
    seconds = np.array(segments, np.float64).reshape(-1, 2)
    # A label that lies on a frame must not fall to the one before by rounding, which the reference lets happen.
    in_frames = np.trunc((seconds * fps if spec.fps else seconds / duration * frames) + (0.0 if reference else 1e-6))
    return Video(name, duration, fps, frames, seconds, in_frames, np.array(labels, np.int64))


def _read_instance(where: str, item: dict[str, Any], numbers: dict[str, int]) -> tuple[float, float, int | None]:
    """(start, end, class number) of one annotation; the number is None for "Ambiguous" outside the class list."""
    try:
        (start, end), label = item["segment"], item["label"]
        start, end = float(start), float(end)
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f'{where}: expected {{"segment": [start, end], "label": name}}, got {item!r}') from error
    if label not in numbers and label != AMBIGUOUS:
        raise AnnotationError(f"{where}: label {label!r} isn't in the class list of {len(numbers)} classes")
    return start, end, numbers.get(label)
