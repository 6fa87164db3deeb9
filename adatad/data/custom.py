"""Own videos: a table of instances (CSV) into an annotation file, a class list and a spec to begin with."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from adatad.data.official import write
from adatad.data.verify import LATE_SECONDS, seconds_of
from adatad.data.video_index import Heartbeat, VideoError, read_index
from adatad.errors import UserError

COLUMNS = ("video", "start", "end", "label")
SUBSETS = ("training", "validation")
WINDOWS_GRID = (96, 192, 384, 768)
"""Sizes that whole clips and the detector's six levels divide."""
POSITIONS_OF_SHORT = 4
"""Positions that the shortest twentieth of instances should at least have."""
SHOWN = 20
"""Problems that an error lists; it counts the rest."""


class TableError(UserError):
    """A table that can't be used; the message lists what is wrong by line."""


class Instance(NamedTuple):
    """A row of the table. subset: empty where the table doesn't say."""

    line: int
    video: str
    start_seconds: float
    end_seconds: float
    label: str
    subset: str


class Facts(NamedTuple):
    """Of a video file. name: in annotations, the file's without its ending; suffix: that ending."""

    name: str
    suffix: str
    frames: int
    seconds: float
    short_side_pixels: int


def make_annotations(table: Path, videos: Path, output: Path, validation_share: float = 0.2) -> Path:
    """Write annotations.json, classes.txt and spec.yaml into `output`; a spec that is there stays. Returns its path.

    table: CSV with a header that names `COLUMNS`, and maybe subset (training or validation); times in seconds. Without
    subsets, a share of the videos, always the same ones, is for validation. Raises TableError with all problems, before
    anything is written.
    """
    instances, wrong = read_table(table)
    facts, missing = _facts_of({instance.video for instance in instances}, videos)
    wrong += missing
    for instance in instances:
        known = facts.get(instance.video)
        if known and instance.end_seconds > known.seconds + LATE_SECONDS:
            wrong.append(
                f"line {instance.line}: ends at {instance.end_seconds:g} s, {known.name} at {known.seconds:.2f} s"
            )
    subsets, disputed = _subsets(instances, validation_share)
    wrong += disputed
    suffixes = sorted({known.suffix for known in facts.values()})
    if len(suffixes) > 1:
        wrong.append(f"{videos}: the files end in {', '.join(suffixes)}; a data set has one ending")
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        listed = "".join(f"\n  {line}" for line in wrong[:SHOWN] + more)
        raise TableError(f"{table}: {len(wrong)} problems; nothing was written:{listed}")
    database = {facts[video].name: _entry(video, instances, facts[video], subsets[video]) for video in sorted(facts)}
    classes = sorted({instance.label for instance in instances})
    spec = _spec(output, videos, suffixes[0], instances, list(facts.values()))
    files = {
        output / "annotations.json": json.dumps({"database": database}, indent=1),
        output / "classes.txt": "".join(f"{name}\n" for name in classes),
    }
    # Someone may have changed it since it was written.
    write(files if (output / "spec.yaml").exists() else {**files, output / "spec.yaml": spec})
    return output / "spec.yaml"


def read_table(path: Path) -> tuple[list[Instance], list[str]]:
    """Rows that can be read, and what is wrong with the others. Raises TableError for what is no such table."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            columns = [*(reader.fieldnames or ())]
    except (OSError, ValueError, csv.Error) as error:
        raise TableError(f"{path}: not a readable CSV file: {error}") from error
    absent = [name for name in COLUMNS if name not in columns]
    if absent or not rows:
        what = f"no column {', '.join(absent)}" if absent else "no rows"
        raise TableError(f"{path}: {what}; expected a first line {','.join(COLUMNS)} and one instance a line")
    instances, wrong = [], []
    for line, row in rows:
        video, label, subset = ((row.get(key) or "").strip() for key in ("video", "label", "subset"))
        try:
            start, end = float(row["start"]), float(row["end"])
        except (TypeError, ValueError):
            wrong.append(f"line {line}: start and end are seconds, got {row['start']!r} and {row['end']!r}")
            continue
        if not (math.isfinite(end) and 0 <= start < end):
            wrong.append(f"line {line}: expected 0 <= start < end, got {start:g} and {end:g}")
        elif not video or not label:
            wrong.append(f"line {line}: has no {'video' if label else 'label'}")
        elif subset and subset not in SUBSETS:
            wrong.append(f"line {line}: subset is {' or '.join(SUBSETS)}, got {subset!r}")
        else:
            instances.append(Instance(line, video, start, end, label, subset))
    return instances, wrong


def _facts_of(names: set[str], folder: Path) -> tuple[dict[str, Facts], list[str]]:
    """Of the videos' files by the table's names, which may have their ending or not; and what is wrong with them."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    facts, wrong = {}, [] if folder.is_dir() else [f"{folder}: there is no such folder"]
    for name in sorted(names) if files else ():
        found = [path for path in files if name in (path.name, path.stem)]
        if len(found) != 1:
            wrong.append(f"video {name!r}: {len(found)} files of that name in {folder}")
            continue
        try:
            index = read_index(found[0], Heartbeat())
        except VideoError as error:
            wrong.append(str(error))
            continue
        seconds = seconds_of(index)
        if not seconds:
            wrong.append(f"{found[0]}: doesn't tell how long it lasts ({index.doubt}); transcode it to H.264 in MP4")
            continue
        side = min(index.width, index.height)
        frames = index.timeline.count_at(index.timeline.usual_fps)
        facts[name] = Facts(found[0].stem, found[0].suffix, frames, seconds, side)
    return facts, wrong


def _subsets(instances: list[Instance], validation_share: float) -> tuple[dict[str, str], list[str]]:
    """Subset of each video, and lines about tables that are of two minds."""
    said = defaultdict(set)
    for instance in instances:
        said[instance.video].add(instance.subset)
    if any(subset for named in said.values() for subset in named):
        wrong = [f"video {video!r}: expected one subset on all its lines" for video, named in said.items()
                 if len(named) > 1 or "" in named]  # fmt: skip
        return {video: min(named) for video, named in said.items()}, wrong
    # By their names' digests, so that the choice stays when videos are added.
    order = sorted(said, key=lambda video: hashlib.sha256(video.encode()).digest())
    count = min(max(1, round(validation_share * len(order))), len(order) - 1)
    wrong = [] if len(order) > 1 else ["one video is too few: some train, others validate"]
    return {video: SUBSETS[place < count] for place, video in enumerate(order)}, wrong


def _entry(video: str, instances: list[Instance], facts: Facts, subset: str) -> dict:
    annotations = [
        {"segment": [i.start_seconds, min(i.end_seconds, facts.seconds)], "label": i.label}
        for i in instances
        if i.video == video
    ]
    return {"subset": subset, "duration": facts.seconds, "frame": facts.frames, "annotations": annotations}


def _spec(output: Path, videos: Path, suffix: str, instances: list[Instance], facts: list[Facts]) -> str:
    """A spec to begin with: VideoMAE-S with adapters, and windows that suit the videos and their instances."""
    rate = float(np.median([known.frames / known.seconds for known in facts]))
    short = float(np.quantile([i.end_seconds - i.start_seconds for i in instances], 0.05))
    stride = int(np.clip(short * rate / POSITIONS_OF_SHORT, 1, 4))
    longest = max(known.frames for known in facts) / stride
    size = next((size for size in WINDOWS_GRID if size >= longest), WINDOWS_GRID[-1])
    window = {"size_grid": size, "frames_per_position": 1, "stride_frames": stride, "overlap": 0.5}
    pixels = min(160, *(known.short_side_pixels // 16 * 16 for known in facts))
    content = {
        "name": output.name,
        "data": {
            "annotations": f"{output}/annotations.json", "classes": f"{output}/classes.txt", "videos": str(videos),
            "pattern": f"{{name}}{suffix}", "window": window, "size_pixels": max(pixels, 32), "augment": {"flip": 0.5},
        },
        "model": {
            "backbone": {
                "preset": "small",
                "weights": "pretrained/vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth",
            },
            "detector": {"max_length": size},
        },
        "optimizer": {"lr": 1e-4, "backbone": {"custom": [{"name": "adapter", "lr": 2e-4}]}},
        "schedule": {"warmup_epochs": 5, "epochs": 60},
    }  # fmt: skip
    head = (
        f"# Written by tools/prepare_data/custom.py out of {len(facts)} videos and {len(instances)} instances.\n"
        f"# Videos of about {rate:.2f} frames a second; one in twenty instances is shorter than {short:.2f} s.\n"
        "# augment.flip: 0 if left and right mirrored would be another action.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False)
