"""Check of a data set's videos: is each there, can it be decoded, is it as long as its annotations say, is it there
twice, and do labels begin and end where pictures change?

Results are kept video by video, so that an interrupted check continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adatad.data.annotation_file import AnnotationError, load_database, names_text, read_names
from adatad.data.annotations import in_subset, names_of
from adatad.data.classes import read_classes
from adatad.data.dataset import open_named, video_path
from adatad.data.decode import VideoError
from adatad.data.entry import OUT_OF_RANGE, UNREADABLE, entry_problems, read_item, read_length
from adatad.data.prepare.borders import frames_for_borders, suspicious_instances
from adatad.data.prepare.cells import grey_cells
from adatad.data.prepare.duplicates import LOOKS, Seen, duplicates, look_text
from adatad.data.time_check import (
    ROUNDING_SECONDS,
    TimeProblem,
    effect,
    facts_of,
    in_seconds,
    position_seconds,
    time_problems,
)
from adatad.data.video_index import Heartbeat, VideoIndex, read_index
from adatad.errors import UserError
from adatad.files import check_output_folder, shown, write_text
from adatad.spec.data_sections import DataSpec
from adatad.spec.schema import Spec
from adatad.stop_signals import leave_interruptions_to_the_parent

JOURNAL = "checked.jsonl"
RULES_VERSION = 4
"""Version of these rules: results of earlier ones don't count."""
CHUNK_FRAMES = 64
LENGTH_TOLERANCE, LENGTH_FRAMES = 0.02, 3
"""Share of the length, or number of frames if that is more, by which a video may differ from its annotations without
being blocked. It is named if it differs by more than a position of the grid."""
MAX_LATE_SECONDS = 0.5
"""Seconds by which an instance of a table may end after its video: annotators' clocks and durations are rounded."""
SUSPICIOUS = "suspicious borders"
BLOCKING = ("missing", "undecodable", UNREADABLE)
"""Kinds of problems that always put a video on the block list."""


class CheckReport(NamedTuple):
    """Result of checking a video. problems: [kind, detail] each; seconds: 0 if unknown; stamp: by which a later check
    sees that file and rules are the same; is_blocked: it shouldn't be used; look: pictures of it in a few numbers, by
    which copies are found."""

    video: str
    problems: list[list[str]]
    frames: int = 0
    seconds: float = 0.0
    stamp: str = ""
    is_blocked: bool = False
    look: str = ""


def check_data_set(
    spec: Spec, folder: Path, workers: int, whole: bool, progress: Callable[[int, int], None], borders: bool = False
) -> list[CheckReport]:
    """Check all videos of the spec's subsets, `workers` at a time; writes `JOURNAL` into `folder` as it goes.

    whole: decode every frame; progress: called with (videos done, videos); borders: hold labels against pictures.
    Videos that are unchanged since an earlier check aren't read again. Raises AnnotationError.
    """
    database = load_database(spec.data.annotations)
    labels = frozenset(read_classes(spec.data, database).numbers)
    subsets = names_of(spec.data.train_subset) + names_of(spec.data.validation_subset)
    # Never opened: some are on that list because decoders hang or crash on them.
    blocked = read_names(spec.data.blocked_videos)
    wanted = {name: e for name, e in database.items() if in_subset(e, subsets) and name not in blocked}
    check_output_folder(folder)
    known = read_journal(folder / JOURNAL)
    done = {
        name: known[name]
        for name, entry in wanted.items()
        if name in known and known[name].stamp == _stamp(spec.data, name, entry, whole, labels, borders)
    }
    progress(len(done), len(wanted))
    # Processes, not threads: decoding holds the interpreter, and a crash in a library must not end the check.
    pool = ProcessPoolExecutor(workers, initializer=leave_interruptions_to_the_parent)
    with open(folder / JOURNAL, "a", encoding="utf-8") as journal, pool:
        check = partial(check_video, spec.data, whole=whole, labels=labels, borders=borders)
        # An interruption may have cut off the last line: start a new one.
        journal.write("\n")
        running = [pool.submit(check, name, entry) for name, entry in wanted.items() if name not in done]
        for future in as_completed(running):
            try:
                found = future.result()
            except BrokenProcessPool as error:
                raise VideoError(
                    f"{folder}: a process that checks videos was ended from outside, perhaps because memory ran out; "
                    f"{len(done)} of {len(wanted)} videos are done. Start it again, with fewer --workers: it goes on"
                ) from error
            done[found.video] = found
            journal.write(json.dumps(found) + "\n")
            # Each line at once: what is in the file is what an interrupted check needn't do again.
            journal.flush()
            progress(len(done), len(wanted))
    return _with_duplicates(spec.data, wanted, [done[name] for name in wanted])


def _with_duplicates(
    data: DataSpec, entries: dict[str, dict[str, Any]], checked: list[CheckReport]
) -> list[CheckReport]:
    """Return the results with what only shows of several videos together."""
    # Anew at each check, and never in the journal: another video may have come since.
    subsets = {"training": data.train_subset, "validation": data.validation_subset}
    seen = []
    for found in checked:
        try:
            path = video_path(data, found.video)
        except UserError:
            # A name that no file can have, which is a problem of its own.
            continue
        roles = tuple(role for role, subset in subsets.items() if in_subset(entries[found.video], subset))
        seen.append(Seen(found.video, path, found.seconds, found.look, roles))
    problems = duplicates(seen)
    return [found._replace(problems=[*found.problems, *problems.get(found.video, [])]) for found in checked]


def read_journal(path: Path) -> dict[str, CheckReport]:
    """Return the results of earlier checks, by video; a truncated line is skipped."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            checked = CheckReport(*json.loads(line))
        except (ValueError, TypeError):
            continue
        # Later lines win: a video that was checked again, after it was repaired, has two.
        found[checked.video] = checked
    return found


def _stamp(
    data: DataSpec, name: str, entry: dict[str, Any], whole: bool, labels: frozenset[str | int], borders: bool
) -> str:
    """Return a text that changes with the file, its annotations, the valid labels and the thoroughness of the check;
    empty for no file."""
    try:
        facts = video_path(data, name).stat()
    except (OSError, ValueError, UserError):
        # OSError and ValueError also come for names that no file can have.
        return ""
    # A digest, because a class list may be long and the stamp is written for every video.
    classes = hashlib.sha256(repr(sorted(map(repr, labels))).encode()).hexdigest()[:16]
    depth = f"{RULES_VERSION} {whole} {borders}"
    rules = f"{depth} {data.fps} {data.label_key} {data.time} {data.window} {classes}"
    return f"{facts.st_size} {facts.st_mtime_ns} {rules} {json.dumps(entry, sort_keys=True)}"


def check_video(
    data: DataSpec,
    name: str,
    entry: dict[str, Any],
    whole: bool,
    labels: frozenset[str | int],
    borders: bool = False,
) -> CheckReport:
    """Check a video and its annotations. labels: valid labels; borders: hold instances against pictures."""
    # What is wrong with the annotation, first: it shows without the video.
    length = _length(data, entry)
    wrong = [[problem.kind, problem.text] for problem in entry_problems(data, name, entry, labels)]
    try:
        path = video_path(data, name)
    except UserError as error:
        return _checked(name, [*wrong, ["missing", shown(error)]])
    stamp = _stamp(data, name, entry, whole, labels, borders)
    if not stamp:
        missing = ["missing", f"there is no file {shown(path)}"]
        return _checked(name, [missing, *wrong, *_out_of_range(data, entry, 0.0, length)])
    try:
        index = read_index(path, Heartbeat())
        seconds_of_frames = _label_times(data, index, length)
        # First and last frame are among them: a file that was cut off fails at its end.
        looked_at = np.unique(np.linspace(0, index.frame_count - 1, LOOKS).astype(np.int64))
        kept = np.union1d(looked_at, frames_for_borders(seconds_of_frames)) if borders else looked_at
        cells = _decoded_cells(data, name, np.arange(index.frame_count) if whole else kept, kept)
    except VideoError as error:
        broken = ["undecodable", str(error)]
        return _checked(name, [broken, *wrong, *_out_of_range(data, entry, 0.0, length)], stamp=stamp)
    # By its packets: headers of cut files still give the whole length.
    seconds = index.timeline.duration_seconds
    blocks = False
    if length is not None:
        found = time_problems(facts_of(index.timeline), *length, data.window)
        wrong += [[problem.kind, f"{problem.detail}; {effect(data)}"] for problem in found]
        blocks = any(_blocks(problem, *length, data) for problem in found)
    wrong += _out_of_range(data, entry, seconds, length, index.timeline.first_seconds)
    if borders and len(seconds_of_frames):
        wrong += _suspicious(data, entry, seconds_of_frames[kept], cells)
    look = look_text(cells[np.isin(kept, looked_at)])
    return _checked(name, wrong, index.frame_count, seconds, stamp, blocks, look)


def _checked(
    name: str, wrong: list[list[str]], frames: int = 0, seconds: float = 0.0, stamp: str = "", blocks: bool = False,
    look: str = "",
) -> CheckReport:  # fmt: skip
    blocks = blocks or any(kind in BLOCKING for kind, _ in wrong)
    return CheckReport(name, wrong, frames, seconds, stamp, blocks, look)


def _decoded_cells(data: DataSpec, name: str, numbers: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Decode frames of a video, and return the grey cells of those in `kept`: float32 [n, c]. Raises VideoError."""
    found, done = [], 0
    with open_named(data, name) as reader:
        # Reduced chunk by chunk: whole frames of a long video would fill the memory.
        for images in reader.chunks(numbers, CHUNK_FRAMES):
            found.append(grey_cells(images[np.isin(numbers[done : done + len(images)], kept)]))
            done += len(images)
    return np.concatenate(found)


def _label_times(data: DataSpec, index: VideoIndex, length: tuple[float, float] | None) -> np.ndarray:
    """Return the second of every frame on the clock of the labels: float64 [frames]; empty if it is unknown."""
    if data.time == "count" and length is not None and length[1]:
        return np.arange(index.frame_count) / length[1]
    return index.timeline.seconds


def _suspicious(data: DataSpec, entry: dict[str, Any], seconds: np.ndarray, cells: np.ndarray) -> Iterator[list[str]]:
    """Yield instances at whose borders the pictures don't change."""
    items, instances = entry.get("annotations"), []
    for item in items if isinstance(items, list) else ():
        try:
            start, end, _ = read_item(data, item)
        except AnnotationError:
            # Named already, by `entry_problems`.
            continue
        instances += [(start, end)] if math.isfinite(start) and math.isfinite(end) else []
    for found in suspicious_instances(seconds, cells, instances):
        shift = found.better_shift_seconds
        more = f"; labels of this video would fit better {abs(shift):g} s {'later' if shift > 0 else 'earlier'}"
        span = f"{found.start_seconds:g} to {found.end_seconds:g} s"
        yield [SUSPICIOUS, f"{span}: the pictures change no more at its borders than elsewhere{more if shift else ''}"]


def _blocks(problem: TimeProblem, duration_seconds: float, fps: float, data: DataSpec) -> bool:
    """Return whether a problem is a reason not to use a video: by its length it is another one, or it lost a part; or
    labels lie on wrong frames."""
    # By presentation time labels find their frames, whatever the rate; only a missing part is lost.
    if problem.kind != "wrong length" and data.time != "count":
        return False
    return problem.off_seconds > max(LENGTH_TOLERANCE * duration_seconds, LENGTH_FRAMES / fps if fps else 0.0)


def _length(data: DataSpec, entry: dict[str, Any]) -> tuple[float, float] | None:
    """Return (duration in seconds, fps) of a video by its annotation, as training reads it, fps 0 if unknown; None if
    it can't be read."""
    try:
        length = read_length(data, entry)
    except AnnotationError:
        return None
    return length.duration_seconds, length.fps


def _out_of_range(
    data: DataSpec, entry: dict[str, Any], seconds: float, length: tuple[float, float] | None, first: float = 0.0
) -> Iterator[list[str]]:
    """Yield instances that the video doesn't show, or not to their end, except those that `entry_problems` names.

    seconds: length of the video, 0 if unknown; length: of its annotation; first: time of its first picture.
    """
    items = entry.get("annotations")
    # The video's own length if it could be read, else the annotation's.
    lasts = seconds or (length[0] if length else math.inf)
    late = ROUNDING_SECONDS + (position_seconds(*length, data.window) if length else 0.0)
    for item in items if isinstance(items, list) else ():
        try:
            start, end, _ = read_item(data, item)
        except AnnotationError:
            continue
        if not (math.isfinite(start) and 0 < end < math.inf and start < end):
            continue
        span = f"{start:g} to {end:g} s"
        if end <= first:
            yield [OUT_OF_RANGE, f"{span} lies wholly before the first picture, at {in_seconds(first)}"]
        elif start >= lasts:
            yield [OUT_OF_RANGE, f"{span} lies wholly after its video, which lasts {in_seconds(lasts)}"]
        elif end > lasts + late:
            yield [OUT_OF_RANGE, f"{span}, the video lasts {in_seconds(lasts)}"]


def write_block_list(checked: list[CheckReport], path: Path, kept: Iterable[str] = ()) -> int:
    """Write the names of unusable videos, one a line, for `data.blocked_videos`; return how many.

    kept: names that the spec blocks already, which weren't checked: they stay on the list.
    """
    names = list(dict.fromkeys([*(found.video for found in checked if found.is_blocked), *kept]))
    write_text(path, names_text(names))
    return len(names)


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
