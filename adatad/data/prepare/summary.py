"""Summary of an annotation file as a spec reads it: counts, classes, durations, and what to look at before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from adatad.data.annotation_file import load_database
from adatad.data.annotations import (
    OUTSIDE,
    Annotations,
    LoadReport,
    Video,
    annotations_of,
    in_subset,
    names_of,
)
from adatad.files import listed, shown
from adatad.spec.data_sections import DataSpec
from adatad.spec.quirks import Quirks
from adatad.spec.schema import Spec

# Roughly logarithmic: actions last from parts of a second to minutes, videos to hours.
EDGES_SECONDS = (0, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, np.inf)
BAR = 12
"""Characters of a histogram's longest bar."""
RATE_TOLERANCE = 0.01
"""Share of the frame rate by which `frame` / `duration` may differ."""


class DataWarning(NamedTuple):
    """A warning about the data; by_video: how many times it holds for each video."""

    what: str
    by_video: Counter[str]


def print_summary(spec: Spec, console: Console) -> None:
    """Read the annotations of a spec as its training would, and print what was read and dropped. Raises
    AnnotationError."""
    database = load_database(spec.data.annotations)
    agnostic = spec.model.detector.class_agnostic
    quirks = Quirks.of(spec.compat)
    # Not read_annotations: an empty subset is one of the things to be shown.
    annotations = annotations_of(database, spec.data, quirks, agnostic)
    roles = (("training", annotations.train, annotations.train_report),
             ("validation", annotations.validation, annotations.validation_report))  # fmt: skip
    wanted = spec.data.train_subset, spec.data.validation_subset
    unused = Counter(
        str(entry.get("subset"))
        for entry in database.values()
        if not any(in_subset(entry, subset, quirks.match_subset_parts) for subset in wanted)
    )
    # No line breaks in sentences: they hold paths and names to copy and to search for.
    console.print(
        f"{spec.data.annotations}: {len(database)} videos, {len(annotations.classes)} classes", soft_wrap=True
    )
    if unused:
        names = ", ".join(f"{count} videos of {shown(name)}" for name, count in unused.items())
        console.print(f"not used: {names}", soft_wrap=True)
    console.print(_counts({role: report for role, _, report in roles}))
    console.print(_classes(annotations))
    videos = {role: read for role, read, _ in roles}
    bar = "#" if console.options.ascii_only else "█"
    console.print(_histogram("instances by seconds", {r: instance_seconds(v) for r, v in videos.items()}, bar))
    lengths = {role: np.array([video.duration_seconds for video in read]) for role, read in videos.items()}
    console.print(_histogram("videos by seconds", lengths, bar))
    for sentence in annotations.warnings:
        console.print(f"warning: {sentence}", style="yellow", soft_wrap=True)
    for role, read, report in roles:
        for warned in warnings(spec.data, database, read, report, quirks):
            sentence = f"{warned.by_video.total()} {warned.what}: {listed(list(warned.by_video))}"
            console.print(f"warning: {role}: {sentence}", style="yellow", soft_wrap=True)


def instance_seconds(videos: Iterable[Video]) -> np.ndarray:
    """Return the durations of all instances: float64 [n]."""
    # A first empty part, since there may be no video.
    return np.concatenate([np.zeros(0), *(np.diff(video.segments_seconds, axis=1)[:, 0] for video in videos)])


def warnings(
    spec: DataSpec,
    database: dict[str, dict[str, Any]],
    videos: Iterable[Video],
    report: LoadReport,
    quirks: Quirks = Quirks(),
) -> list[DataWarning]:
    """Return warnings about one subset; none of them stops a training."""
    found = (
        DataWarning("instances begin before their video", report.before_start),
        DataWarning("instances end after their video", report.past_end),
        DataWarning(f"instances lie {OUTSIDE}", report.outside),
        DataWarning(f"instances lie {OUTSIDE} and are left out", report.dropped.get(OUTSIDE, Counter())),
        DataWarning("videos without instances", Counter(report.without_instances)),
        DataWarning("segments carry two labels or more", _count(videos, _with_two_labels)),
        DataWarning("instances are shorter than one position of the window", _count(videos, lambda v: _short(v, spec))),
        DataWarning("instances are longer than a window", _count(videos, lambda v: _long(v, spec))),
        DataWarning(
            f"videos whose frame / duration is more than {RATE_TOLERANCE:.0%} off the fps",
            Counter(_wrong_rates(spec, database, report, quirks)),
        ),
    )
    return [warned for warned in found if warned.by_video]


def _count(videos: Iterable[Video], of_video: Any) -> Counter[str]:
    """Count by video what `of_video` counts in one; videos without any are left out."""
    counts = {video.name: int(of_video(video)) for video in videos}
    return Counter({name: count for name, count in counts.items() if count})


def _with_two_labels(video: Video) -> int:
    """Count the segments of a video that carry several labels."""
    # As a set: exact copies aren't two labels.
    pairs = {(*segment, label) for segment, label in zip(video.segments_seconds.tolist(), video.labels, strict=True)}
    return sum(labels > 1 for labels in Counter(pair[:2] for pair in pairs).values())


def _short(video: Video, spec: DataSpec) -> int:
    """Count the instances shorter than one position of the window."""
    window = spec.window
    # Windows of whole videos have positions of different lengths, each its own video's.
    if window.kind == "resize":
        position = video.duration_seconds / window.size_grid
    else:
        position = window.stride_frames / video.fps
    return (np.diff(video.segments_seconds, axis=1) < position).sum()


def _long(video: Video, spec: DataSpec) -> int:
    """Count the instances longer than a window."""
    if spec.window.kind == "resize":
        return 0
    window = spec.window.size_grid * spec.window.stride_frames / video.fps
    return (np.diff(video.segments_seconds, axis=1) > window).sum()


def _wrong_rates(
    spec: DataSpec, database: dict[str, dict[str, Any]], report: LoadReport, quirks: Quirks
) -> Iterator[str]:
    # The values of blocked videos are unchecked.
    blocked = frozenset(report.blocked)
    for name, entry in database.items():
        fps = spec.fps or entry.get("fps")
        if (
            fps
            and entry.get("frame")
            and in_subset(entry, report.subset, quirks.match_subset_parts)
            and name not in blocked
        ):
            # Training takes `frame`; where it contradicts the rate, one of the two is wrong.
            difference = float(entry["frame"]) / float(entry["duration"]) - float(fps)
            if abs(difference) > RATE_TOLERANCE * float(fps):
                yield name


def _counts(reports: dict[str, LoadReport]) -> Table:
    """Return a table of each subset's videos and instances, and of what was left out for which reason."""
    table = Table(
        Column(no_wrap=True),
        *(Column(f"{r} ({shown(', '.join(names_of(a.subset)))})", justify="right") for r, a in reports.items()),
    )
    reasons = dict.fromkeys(reason for report in reports.values() for reason in report.dropped)
    rows = {
        "videos": [report.videos for report in reports.values()],
        "videos blocked": [len(report.blocked) for report in reports.values()],
        "videos without instances": [len(report.without_instances) for report in reports.values()],
        "instances": [report.instances for report in reports.values()],
    }
    for reason in reasons:
        rows[f"dropped: {reason}"] = [report.dropped.get(reason, Counter()).total() for report in reports.values()]
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _classes(annotations: Annotations) -> Table:
    """Return a table of the instances of each class in both subsets."""
    table = Table(
        Column("class", no_wrap=True), Column("training", justify="right"), Column("validation", justify="right")
    )
    counts = [
        np.bincount(
            np.concatenate([np.zeros(0, np.int64), *(video.labels for video in videos)]),
            minlength=len(annotations.classes),
        )
        for videos in (annotations.train, annotations.validation)
    ]
    # Yellow: a class without a training instance can't be learned.
    for name, train, validation in zip(annotations.classes, *counts, strict=True):
        table.add_row(shown(name), f"{train:,}", f"{validation:,}", style=None if train else "yellow")
    return table


def _histogram(title: str, seconds: dict[str, np.ndarray], bar: str) -> Table:
    """Return a table of counts by duration, one column of numbers and one of bars for each subset."""
    table = Table(Column(title, no_wrap=True))
    counts = {}
    for role, values in seconds.items():
        table.add_column(role, justify="right")
        table.add_column("")
        counts[role] = np.histogram(values, EDGES_SECONDS)[0]
    # Rows from the shortest to the longest duration that occurs; all subsets share them.
    used = np.flatnonzero(sum(counts.values()))
    for row in range(used[0], used[-1] + 1) if len(used) else ():
        low, high = EDGES_SECONDS[row : row + 2]
        cells = [f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"]
        for count in counts.values():
            # Rounded up, so that a single instance has a bar too.
            cells += [f"{count[row]:,}", bar * int(np.ceil(BAR * count[row] / max(count.max(), 1)))]
        table.add_row(*cells)
    return table
