"""A data set of four grey videos of 12 s that trains in a second, and tables and annotations of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE, SECONDS = 8, 12
EVEN = [number / RATE for number in range(RATE * SECONDS)]
"""Presentation times of a video whose rate doesn't change, in seconds."""
SPEC = """\
name: {name}
data:
  annotations: {annotations}
  videos: v
  workers: 0
  size_pixels: 64
  window: {{size_grid: 64, frames_per_position: 1, stride_frames: 1}}
model:
  backbone: {{preset: tiny, weights: random, width: 16, depth: 1, heads: 2}}
  detector:
    {{width: 16, heads: 2, stem_blocks: 1, branch_blocks: 2, attention_window: 9, max_length: 64,
      regression_ranges: [[0, 6], [4, 12], [8, 10000]]}}
optimizer: {{backbone: {{custom: [{{name: adapter, lr: 1.0e-3}}]}}}}
schedule: {{warmup_epochs: 0, epochs: 1}}
train: {{global_batch: 2}}
"""
INSTANCES = {"k0": (1, 4, "pour"), "k1": (2, 5, "stir"), "k2": (2, 5, "stir"), "k3": (1, 3, "pour")}
SUBSETS = {"k0": "training", "k1": "training", "k2": "validation", "k3": "validation"}
ROWS = [f"{video},{start},{end},{label},{SUBSETS[video]}" for video, (start, end, label) in INSTANCES.items()]
TABLE = "\n".join(["video,start,end,label,subset", *ROWS, ""])


def write_video(
    path: Path, seconds: Iterable[float] = EVEN, shade: Callable[[float], int] = lambda second: 60,
    codec: str = "libx264", side: int = 64, ticks: int = 90_000,
) -> None:  # fmt: skip
    """A video with a frame at each of `seconds`, all of one grey: shade(second), 0 to 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        base = Fraction(1, ticks)
        stream.codec_context.time_base = stream.time_base = base
        for second in seconds:
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), shade(second), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(second / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def database(**changes: dict[str, Any]) -> dict[str, Any]:
    """The annotation file's content; changes: keys of single videos that are set, or removed where they are None."""
    videos = {
        name: {
            "subset": SUBSETS[name],
            "duration": float(SECONDS),
            "frame": len(EVEN),
            "annotations": [{"segment": [start, end], "label": label}],
        }
        for name, (start, end, label) in INSTANCES.items()
    }
    for name, change in changes.items():
        videos[name] = {key: value for key, value in {**videos[name], **change}.items() if value is not None}
    return {"database": videos}


def write_spec(folder: Path, name: str = "small", annotations: str = "annotations.json", more: str = "") -> Path:
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(name=name, annotations=annotations) + more)
    return path


def write_annotations(folder: Path, content: Any, name: str = "annotations.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def instance(start: float, end: float, label: Any = "pour") -> list[dict[str, Any]]:
    return [{"segment": [start, end], "label": label}]
