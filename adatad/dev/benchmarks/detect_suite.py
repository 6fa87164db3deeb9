"""Time of detection in a new video on the CPU: as a stream with decoding beside it, over windows with decoding before.

The demo's model, untrained, and a video of five minutes made here. Both ways run in one process, in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from adatad.data.frame_stream import small_frames
from adatad.dev.benchmarks.decoding_suite import VideoSize, write_video
from adatad.dev.benchmarks.tables import ROOT, Result
from adatad.library import Detector, build_detector, load_spec

VIDEO_SECONDS = 300
VIDEO = VideoSize(320, 180, VIDEO_SECONDS * 8, 60, fps=8)
"""At the rate of the demo's videos, and larger than they are."""
RUNS = 5
MAX_TIME_RATIO = 1 / 1.7
WEIGHTS = ROOT / "configs" / "demo" / "tiny_backbone.safetensors"


def run() -> list[Result]:
    """Measure both ways several times; about half a minute on two cores that have nothing else to do."""
    spec = load_spec("demo/tia", [f"model.backbone.weights={WEIGHTS}"])
    detector = build_detector(spec, [f"class {number}" for number in range(6)], "cpu")
    with TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video.mp4", VIDEO)
        ways: dict[str, Callable[[], object]] = {
            "stream": lambda: detector(path),
            "windows": lambda: by_windows(detector, path),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        # The first round compiles and opens what all others find ready; rounds are interleaved, so that a busy machine
        # slows down both ways.
        for number in range(RUNS + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if number:
                    seconds[name].append(time.perf_counter() - started)
    ratio = median(ours / naive for ours, naive in zip(seconds["stream"], seconds["windows"], strict=True))
    results = [Result("stream over windows, time", ratio, MAX_TIME_RATIO, note=f"{1 / ratio:.2f} times the throughput")]
    for name, found in seconds.items():
        middle = median(found)
        note = f"s, {VIDEO_SECONDS / middle:.1f} x real time, {VIDEO.frames / middle:.0f} frames a second"
        results.append(Result(name, middle, note=note))
    return results


def by_windows(detector: Detector, path: Path) -> None:
    """Decode a whole video, then run every window of its frames."""
    from adatad.detect.video import open_file

    with open_file(path, detector.spec.data) as (source, video):
        numbers = np.arange(source.frame_count)
        (frames,) = small_frames(source, numbers, detector.spec.data.size_pixels, len(numbers))
    detector.detect(frames.permute(1, 2, 3, 0).numpy(), video.fps)
