"""Made-up data sets of any size for the scale suite: videos that are links to one clip, instances and detections."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from adatad.data.prepare.demo import make_demo

SECONDS = 27.125
FRAMES = 217
"""Length of the clip, as `make_demo` draws it at seed 0."""


def make_videos(folder: Path, videos: int, instances: int = 6, classes: int = 8) -> Path:
    """Make a data set of so many videos, half of them for training; return its folder.

    The files are hard links to one clip of the demo: a start looks at each by its name, and reads few.
    """
    clip = next((make_demo(folder / "clip", train_videos=1, validation_videos=1).parent / "videos").glob("*training*"))
    (folder / "videos").mkdir(parents=True)
    for name in names_of(videos):
        os.link(clip, folder / "videos" / f"{name}{clip.suffix}")
    write_annotations(folder / "annotations.json", videos, instances, classes)
    return folder


def names_of(videos: int) -> list[str]:
    """Return the names of the videos."""
    return [f"video_{number:06d}" for number in range(videos)]


def write_annotations(path: Path, videos: int, instances: int, classes: int) -> None:
    """Write an annotation file with `instances` of each video, every second video in "validation"."""
    database = truth(videos, instances, classes)["database"]
    for number, entry in enumerate(database.values()):
        entry["subset"] = ("training", "validation")[number % 2]
    path.write_text(json.dumps({"database": database}))


def truth(videos: int, instances: int, classes: int) -> dict[str, Any]:
    """Return the content of an annotation file, subset "validation": instances of 0.5 to 4 s, anywhere."""
    draw = np.random.default_rng(0)
    start = draw.uniform(0, SECONDS - 4, (videos, instances)).round(2)
    end = (start + draw.uniform(0.5, 4, (videos, instances))).round(2)
    # Classes in turn, so that each has instances however few there are.
    label = (np.arange(videos)[:, None] * instances + np.arange(instances)) % classes
    return {
        "database": {
            name: {
                "subset": "validation",
                "duration": SECONDS,
                "frame": FRAMES,
                "annotations": [
                    {"segment": [a, b], "label": f"class_{c:04d}"} for a, b, c in zip(*columns, strict=True)
                ],
            }
            for name, *columns in zip(names_of(videos), start.tolist(), end.tolist(), label.tolist(), strict=True)
        }
    }


def detections(videos: int, each: int, instances: int, classes: int) -> dict[str, Any]:
    """Return the content of a detections file for `truth`: half of each video's are near one of its instances."""
    database, draw = truth(videos, instances, classes)["database"], np.random.default_rng(1)
    results = {}
    for name, entry in database.items():
        own = entry["annotations"]
        near = draw.integers(0, len(own), each)
        segments = np.array([item["segment"] for item in own])[near] + draw.normal(0, 0.3, (each, 2))
        segments[each // 2 :, 0] = draw.uniform(0, SECONDS - 4, each - each // 2)
        starts = np.clip(segments[:, 0], 0, SECONDS - 1)
        ends = np.maximum(segments[:, 1], starts + 0.1)
        scores = draw.uniform(0.01, 1, each)
        columns = (starts.round(2), ends.round(2), scores.round(4), near)
        results[name] = [
            {"segment": [a, b], "score": s, "label": own[n]["label"]}
            for a, b, s, n in zip(*(column.tolist() for column in columns), strict=True)
        ]
    return {"results": results}
