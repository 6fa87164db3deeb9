"""What is in an annotation file as a spec reads it: counts, classes, durations, and what to look at before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from adatad.data.annotation_file import listed, load_database
from adatad.data.annotations import (
    OUTSIDE,
    Account,
    Annotations,
    Video,
    annotations_of,
    in_subset,
    names_of,
)
from adatad.files import shown
from adatad.spec.resolve import Quirks
from adatad.spec.schema import DataSpec, Spec

EDGES_SECONDS = (0, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, np.inf)
BAR = 12
"""Characters of a histogram's longest bar."""
RATE_TOLERANCE = 0.01
"""Of the frame rate, that `frame` / `duration` may differ by."""


class Warned(NamedTuple):
    """Something to look at; by_video: how many times."""

    what: str
    by_video: Counter[str]


def print_summary(spec: Spec, console: Console) -> None:
    """Read the annotations of a spec as its training would, and print what was read and dropped. Raises
    AnnotationError."""
    database = load_database(spec.data.annotations)
    agnostic = spec.model.detector.class_agnostic
    quirks = Quirks.of(spec.compat)
    annotations = annotations_of(database, spec.data, quirks, agnostic)
    roles = (("training", annotations.train, annotations.train_account),
             ("validation", annotations.validation, annotations.validation_account))  # fmt: skip
    wanted = spec.data.train_subset, spec.data.validation_subset
    unused = Counter(
        str(entry.get("subset"))
        for entry in database.values()
        if not any(in_subset(entry, subset, quirks.match_subset_parts) for subset in wanted)
    )
    # Sentences aren't broken into lines: they hold paths and names to copy and to search for.
    console.print(
        f"{spec.data.annotations}: {len(database)} videos, {len(annotations.classes)} classes", soft_wrap=True
    )
    if unused:
        names = ", ".join(f"{count} videos of {shown(name)}" for name, count in unused.items())
        console.print(f"not used: {names}", soft_wrap=True)
    console.print(_counts({role: account for role, _, account in roles}))
    console.print(_classes(annotations))
    videos = {role: read for role, read, _ in roles}
    bar = "#" if console.options.ascii_only else "█"
    console.print(_histogram("instances by seconds", {r: instance_seconds(v) for r, v in videos.items()}, bar))
    lengths = {role: np.array([video.duration_seconds for video in read]) for role, read in videos.items()}
    console.print(_histogram("videos by seconds", lengths, bar))
    for sentence in annotations.warnings:
        console.print(f"warning: {sentence}", style="yellow", soft_wrap=True)
    for role, read, account in roles:
        for warned in warnings(spec.data, database, read, account, quirks):
            console.print(f"warning: {role}: {_sentence(warned)}", style="yellow", soft_wrap=True)


def instance_seconds(videos: Iterable[Video]) -> np.ndarray:
    """Durations of all instances: float64 [n]."""
    return np.concatenate([np.zeros(0), *(np.diff(video.segments_seconds, axis=1)[:, 0] for video in videos)])


def warnings(
    spec: DataSpec,
    database: dict[str, dict[str, Any]],
    videos: Iterable[Video],
    account: Account,
    quirks: Quirks = Quirks(),
) -> list[Warned]:
    """What there is to look at in one subset; nothing of it stops a training."""
    found = (
        Warned("instances begin before their video", account.before_start),
        Warned("instances end after their video", account.past_end),
        Warned(f"instances lie {OUTSIDE}", account.outside),
        Warned(f"instances lie {OUTSIDE} and are left out", account.dropped.get(OUTSIDE, Counter())),
        Warned("videos without instances", Counter(account.without_instances)),
        Warned("segments carry two labels or more", _count(videos, _with_two_labels)),
        Warned("instances are shorter than one position of the window", _count(videos, lambda v: _short(v, spec))),
        Warned("instances are longer than a window", _count(videos, lambda v: _long(v, spec))),
        Warned(
            f"videos whose frame / duration is more than {RATE_TOLERANCE:.0%} off the fps",
            Counter(_wrong_rates(spec, database, account, quirks)),
        ),
    )
    return [warned for warned in found if warned.by_video]


def _count(videos: Iterable[Video], of_video: Any) -> Counter[str]:
    counts = {video.name: int(of_video(video)) for video in videos}
    return Counter({name: count for name, count in counts.items() if count})


def _with_two_labels(video: Video) -> int:
    pairs = {(*segment, label) for segment, label in zip(video.segments_seconds.tolist(), video.labels, strict=True)}
    return sum(labels > 1 for labels in Counter(pair[:2] for pair in pairs).values())


def _short(video: Video, spec: DataSpec) -> int:
    window = spec.window
    if window.kind == "resize":
        position = video.duration_seconds / window.size_grid
    else:
        position = window.stride_frames / video.fps
    return (np.diff(video.segments_seconds, axis=1) < position).sum()


def _long(video: Video, spec: DataSpec) -> int:
    if spec.window.kind == "resize":
        return 0
    window = spec.window.size_grid * spec.window.stride_frames / video.fps
    return (np.diff(video.segments_seconds, axis=1) > window).sum()


def _wrong_rates(
    spec: DataSpec, database: dict[str, dict[str, Any]], account: Account, quirks: Quirks
) -> Iterator[str]:
    # Nobody has looked at the values of those.
    blocked = frozenset(account.blocked)
    for name, entry in database.items():
        fps = spec.fps or entry.get("fps")
        if (
            fps
            and entry.get("frame")
            and in_subset(entry, account.subset, quirks.match_subset_parts)
            and name not in blocked
        ):
            difference = float(entry["frame"]) / float(entry["duration"]) - float(fps)
            if abs(difference) > RATE_TOLERANCE * float(fps):
                yield name


def _sentence(warned: Warned) -> str:
    return f"{warned.by_video.total()} {warned.what}: {listed(list(warned.by_video))}"


def _counts(accounts: dict[str, Account]) -> Table:
    """Videos and instances of each subset, and what was left out for which reason."""
    table = Table(
        Column(no_wrap=True),
        *(Column(f"{r} ({shown(', '.join(names_of(a.subset)))})", justify="right") for r, a in accounts.items()),
    )
    reasons = dict.fromkeys(reason for account in accounts.values() for reason in account.dropped)
    rows = {
        "videos": [account.videos for account in accounts.values()],
        "videos blocked": [len(account.blocked) for account in accounts.values()],
        "videos without instances": [len(account.without_instances) for account in accounts.values()],
        "instances": [account.instances for account in accounts.values()],
    }
    for reason in reasons:
        rows[f"dropped: {reason}"] = [account.dropped.get(reason, Counter()).total() for account in accounts.values()]
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _classes(annotations: Annotations) -> Table:
    """Instances of each class in both subsets."""
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
    for name, train, validation in zip(annotations.classes, *counts, strict=True):
        table.add_row(shown(name), f"{train:,}", f"{validation:,}", style=None if train else "yellow")
    return table


def _histogram(title: str, seconds: dict[str, np.ndarray], bar: str) -> Table:
    """Counts by duration, one column of numbers and one of bars for each subset."""
    table = Table(Column(title, no_wrap=True))
    counts = {}
    for role, values in seconds.items():
        table.add_column(role, justify="right")
        table.add_column("")
        counts[role] = np.histogram(values, EDGES_SECONDS)[0]
    used = np.flatnonzero(sum(counts.values()))
    for row in range(used[0], used[-1] + 1) if len(used) else ():
        low, high = EDGES_SECONDS[row : row + 2]
        cells = [f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"]
        for count in counts.values():
            cells += [f"{count[row]:,}", bar * int(np.ceil(BAR * count[row] / max(count.max(), 1)))]
        table.add_row(*cells)
    return table
