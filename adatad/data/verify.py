"""One pass over the videos of a data set: is each there, can it be decoded, is it as long as its annotations say?

What was found is kept video by video, so that an interrupted pass goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adatad.data.annotation_file import AMBIGUOUS, load_database, read_names
from adatad.data.annotations import in_subset, names_of
from adatad.data.classes import read_classes
from adatad.data.dataset import open_named, video_path
from adatad.data.decode import VideoError
from adatad.data.video_index import Heartbeat, VideoIndex, read_index
from adatad.spec.schema import DataSpec, Spec

JOURNAL = "checked.jsonl"
SAMPLED_FRAMES = 8
"""Frames, from the first to the last, that are decoded of a video unless all are."""
LENGTH_TOLERANCE, LENGTH_FRAMES = 0.02, 3
"""By which share, or by how many frames if that is more, a video may be longer or shorter than annotations say."""
LATE_SECONDS = 0.5
"""That an instance may end after its video: annotators' clocks and durations are rounded."""
BLOCKING = ("missing", "undecodable", "wrong length", "unreadable annotations")
"""Kinds of problems for which a video goes on the block list."""


class Checked(NamedTuple):
    """What was found of a video. problems: [kind, detail] each; seconds: 0 where its packets don't tell; stamp: of the
    file, by which a later pass knows that it is the same."""

    video: str
    problems: list[list[str]]
    frames: int = 0
    seconds: float = 0.0
    stamp: str = ""

    @property
    def is_blocked(self) -> bool:
        return any(kind in BLOCKING for kind, _ in self.problems)


def check_data_set(
    spec: Spec, folder: Path, workers: int, whole: bool, progress: Callable[[int, int], None]
) -> list[Checked]:
    """Check all videos of the spec's subsets, `workers` at a time; writes `JOURNAL` into `folder` as it goes.

    whole: decode every frame. progress: called with (videos done, videos). Videos whose file is as it was when an
    earlier pass looked at it aren't read again. Raises AnnotationError.
    """
    database = load_database(spec.data.annotations)
    labels = frozenset(read_classes(spec.data, database).numbers)
    subsets = names_of(spec.data.train_subset) + names_of(spec.data.validation_subset)
    blocked = read_names(spec.data.blocked_videos)
    wanted = {name: e for name, e in database.items() if in_subset(e, subsets) and name not in blocked}
    folder.mkdir(parents=True, exist_ok=True)
    known = read_journal(folder / JOURNAL)
    done = {
        name: known[name]
        for name, entry in wanted.items()
        if name in known and known[name].stamp == _stamp(spec.data, name, entry, whole, labels)
    }
    progress(len(done), len(wanted))
    with open(folder / JOURNAL, "a", encoding="utf-8") as journal, ProcessPoolExecutor(workers) as pool:
        check = partial(check_video, spec.data, whole=whole, labels=labels)
        # Ends a line that an interruption cut off.
        journal.write("\n")
        running = [pool.submit(check, name, entry) for name, entry in wanted.items() if name not in done]
        for future in as_completed(running):
            found = future.result()
            done[found.video] = found
            journal.write(json.dumps(found) + "\n")
            journal.flush()
            progress(len(done), len(wanted))
    return [done[name] for name in wanted]


def read_journal(path: Path) -> dict[str, Checked]:
    """What earlier passes found, by video; a line that was cut off is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            checked = Checked(*json.loads(line))
        except (ValueError, TypeError):
            continue
        found[checked.video] = checked
    return found


def _stamp(data: DataSpec, name: str, entry: dict[str, Any], whole: bool, labels: frozenset[str | int]) -> str:
    """Changes with the file, its annotations, what they may say, and how closely it is looked at; empty for no file."""
    try:
        facts = video_path(data, name).stat()
    except OSError:
        return ""
    classes = hashlib.sha256(repr(sorted(map(repr, labels))).encode()).hexdigest()[:16]
    rules = f"{whole} {data.fps} {data.label_key} {classes}"
    return f"{facts.st_size} {facts.st_mtime_ns} {rules} {json.dumps(entry, sort_keys=True)}"


def check_video(data: DataSpec, name: str, entry: dict[str, Any], whole: bool, labels: frozenset[str | int]) -> Checked:
    """All that is wrong with a video and its annotations. labels: what annotations may call a class."""
    stamp, path = _stamp(data, name, entry, whole, labels), video_path(data, name)
    if not stamp:
        return Checked(name, [["missing", f"there is no file {path}"], *_instance_problems(data, entry, labels)])
    try:
        index = read_index(path, Heartbeat())
        _decode(data, name, index, whole)
    except VideoError as error:
        wrong = [["undecodable", str(error)], *_instance_problems(data, entry, labels)]
        return Checked(name, wrong, stamp=stamp)
    seconds = seconds_of(index)
    wrong = [*_length_problems(data, entry, index.frame_count, seconds)]
    wrong += _instance_problems(data, entry, labels, seconds)
    return Checked(name, wrong, index.frame_count, seconds, stamp)


def _decode(data: DataSpec, name: str, index: VideoIndex, whole: bool) -> None:
    """Raises VideoError where a frame can't be had."""
    last = index.frame_count - 1
    numbers = np.arange(last + 1) if whole else np.unique(np.linspace(0, last, SAMPLED_FRAMES).astype(np.int64))
    with open_named(data, name) as reader:
        for _ in reader.chunks(numbers, 64):
            pass


def seconds_of(index: VideoIndex) -> float:
    """How long a video is shown, by the times of its packets; 0 where they aren't trusted."""
    pts = index.pts
    return float(pts[-1] - pts[0]) * index.tick_seconds * len(pts) / (len(pts) - 1) if len(pts) > 1 else 0.0


def _length_problems(data: DataSpec, entry: dict[str, Any], frames: int, seconds: float) -> Iterator[list[str]]:
    try:
        duration, listed = float(entry["duration"]), float(entry.get("frame") or 0)
        rate = float(data.fps or entry.get("fps") or 0)
    except (KeyError, TypeError, ValueError) as error:
        yield ["unreadable annotations", f"duration in seconds, frame and fps are expected as numbers: {error!r}"]
        return
    if seconds and abs(seconds - duration) > max(LENGTH_TOLERANCE * duration, LENGTH_FRAMES * seconds / frames):
        yield ["wrong length", f"lasts {seconds:.2f} s, annotations say {duration:.2f} s"]
    expected = duration * rate or listed
    if expected and abs(frames - expected) > max(LENGTH_TOLERANCE * expected, LENGTH_FRAMES):
        yield ["wrong length", f"has {frames} frames, annotations mean {math.floor(expected)}"]


def _instance_problems(
    data: DataSpec, entry: dict[str, Any], labels: frozenset[str | int], seconds: float = 0.0
) -> Iterator[list[str]]:
    """seconds: of the video, 0 if that isn't known. "Ambiguous" is no class, and no mistake."""
    for item in entry.get("annotations") or ():
        try:
            (start, end), label = map(float, item["segment"]), item[data.label_key]
            known = label in labels or label == AMBIGUOUS
        except (KeyError, TypeError, ValueError):
            expected = f"a segment [start, end] in seconds and a {data.label_key}"
            yield ["unreadable annotations", f"expected {expected}, got {item!r}"]
            continue
        if not known:
            yield ["unknown label", f"{label!r} isn't in the class list"]
        if seconds and end > seconds + LATE_SECONDS:
            yield ["label out of range", f"{start:g} to {end:g} s, the video lasts {seconds:.2f} s"]


def write_block_list(checked: list[Checked], path: Path) -> int:
    """Names of what can't be used, one a line, for `data.blocked_videos`. Returns how many."""
    names = [found.video for found in checked if found.is_blocked]
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return len(names)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
