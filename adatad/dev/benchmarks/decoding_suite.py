"""Cost of a frame through each decoding library, cost of finding frames by time, and growth of memory over openings.

The videos are made here: a texture that moves, with key frames 60 or 250 frames apart.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import av
import numpy as np
import psutil

from adatad.data import video_index
from adatad.data.decode import Backend, VideoReader, missing_library, open_video
from adatad.data.prepare.demo import make_demo
from adatad.data.video_index import Heartbeat, read_index
from adatad.dev.benchmarks.tables import Result

WINDOW_FRAMES, STRIDE_FRAMES = 96, 4
LONG_WINDOW_FRAMES, LONG_STRIDE_FRAMES = 1536, 3
REPEATS = 3
COLD_STARTS = 5
TIMED_REPEATS, MAX_TIME_RATIO = 60, 1.03
"""Windows that are read in either way, and the allowed ratio of finding frames by time to counting them."""
OPENS, OPENS_BEFORE = 2000, 200
MAX_GROWTH_BYTES = 16 << 10
"""Bytes for each opening of a video, from the 200th on."""


class VideoSize(NamedTuple):
    """Size of a made-up video; key_gap: frames from one key frame to the next; fps: frames a second."""

    width: int
    height: int
    frames: int
    key_gap: int
    fps: int = 30

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.width}x{self.height}, a key frame every {self.key_gap}"


LONG = (VideoSize(320, 180, 6000, 60), VideoSize(320, 180, 6000, 250))
SHORT = (
    VideoSize(228, 128, 800, 60),
    VideoSize(454, 256, 800, 60),
    VideoSize(640, 360, 800, 60),
    VideoSize(1280, 720, 800, 60),
)


def run() -> list[Result]:
    """Measure every library that is installed; several minutes."""
    results: list[Result] = []
    backends: list[Backend] = [name for name in ("decord", "pyav", "torchcodec") if not missing_library(name)]
    with TemporaryDirectory() as folder:
        for video in (*LONG, *SHORT):
            path = write_video(Path(folder) / "video.mp4", video)
            compared = [*backends, "pyav_sequential"] if video in LONG else backends
            results += [
                Result(f"{video.name}: {backend}", milliseconds, note="CPU ms a frame")
                for backend, milliseconds in frame_costs(path, compared).items()
            ]
            if video == LONG[0]:
                for backend, milliseconds in window_costs(path, backends).items():
                    note = f"frames a CPU second, a window of {LONG_WINDOW_FRAMES}"
                    results.append(Result(f"{video.name}: {backend}", 1e3 / milliseconds, note=note))
        note = "CPU s from a cold start to the first batch, built-in data"
        results += [Result(f"first batch: {name}", value, note=note) for name, value in cold_starts(backends).items()]
        path = write_video(Path(folder) / "small.mp4", SHORT[0])
        note = "CPU time over counted frames, constant rate"
        results.append(Result("frames by their time", time_ratio(path), MAX_TIME_RATIO, note=note))
        for backend in backends:
            # In a process of its own: memory given back by what ran before would hide the growth.
            with get_context("spawn").Pool(1) as pool:
                growth = pool.apply(growth_bytes, (path, backend)) / 1024
            note = f"KiB an opening, {OPENS} openings"
            results.append(Result(f"growth of memory: {backend}", growth, MAX_GROWTH_BYTES / 1024, note=note))
    return results


def write_video(path: Path, video: VideoSize) -> Path:
    """Write a moving texture, with key frames where `video` wants them."""
    # Blocks of 8 x 8 in random colours: flat pictures would be decoded faster than real ones.
    blocks = np.random.default_rng(0).integers(0, 256, (video.height // 4 + 2, video.width // 4 + 2, 3), np.uint8)
    texture = blocks.repeat(8, 0).repeat(8, 1)
    options = {"crf": "26", "preset": "veryfast", "x264-params": f"bframes=3:keyint={video.key_gap}"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=video.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        for number in range(video.frames):
            top = int((np.sin(number / 40) + 1) * video.height / 2)
            left = int((np.cos(number / 55) + 1) * video.width / 2)
            image = np.ascontiguousarray(texture[top : top + video.height, left : left + video.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def frame_costs(path: Path, backends: list[Backend]) -> dict[Backend, float]:
    """Return the CPU milliseconds for each frame of a window from the middle, opening included; medians of interleaved
    runs."""
    # From the middle, where seeking costs most.
    middle = read_index(path, Heartbeat()).frame_count // 2
    return _costs(path, backends, middle + np.arange(WINDOW_FRAMES) * STRIDE_FRAMES)


def window_costs(path: Path, backends: list[Backend]) -> dict[Backend, float]:
    """Return the same for a long window, from the video's start."""
    return _costs(path, backends, np.arange(LONG_WINDOW_FRAMES) * LONG_STRIDE_FRAMES)


def _costs(path: Path, backends: list[Backend], numbers: np.ndarray) -> dict[Backend, float]:
    times: dict[Backend, list[float]] = {backend: [] for backend in backends}
    for _ in range(REPEATS):
        # Interleaved, so that a busy machine slows down all of them.
        for backend in backends:
            started = time.process_time()
            _read(path, backend, numbers)
            times[backend].append((time.process_time() - started) / len(numbers) * 1e3)
    return {backend: median(found) for backend, found in times.items()}


def cold_starts(backends: list[Backend]) -> dict[Backend, float]:
    """Return the CPU seconds that a new process takes to load the first window of the built-in data set; medians of
    interleaved runs."""
    times: dict[Backend, list[float]] = {backend: [] for backend in backends}
    with TemporaryDirectory() as folder:
        make_demo(Path(folder) / "data" / "demo", train_videos=2, validation_videos=1)
        command = [sys.executable, "-m", "adatad", "data", "benchmark", "configs/demo/tia.yaml", "--windows", "1"]
        command += ["--set", f"data.root={folder}", "data.workers=0"]
        for _ in range(COLD_STARTS):
            for backend in backends:
                before = _children_seconds()
                subprocess.run([*command, f"data.decoder={backend}"], check=True, stdout=subprocess.DEVNULL)
                times[backend].append(_children_seconds() - before)
    return {backend: median(found) for backend, found in times.items()}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_ratio(path: Path) -> float:
    """Return the CPU time of a window whose frames are found by time, over that of one whose frames are counted;
    medians of many windows, read in turn."""
    numbers = 100 + np.arange(WINDOW_FRAMES) * STRIDE_FRAMES
    times: dict[float | None, list[float]] = {None: [], 30.0: []}
    for _ in range(TIMED_REPEATS):
        for fps, found in times.items():
            video_index._indices.clear()  # the process's cache: each window reads the file anew
            started = time.process_time()
            with open_video(path, "pyav", fps=fps) as reader:
                for _ in reader.chunks(numbers, 16):
                    pass
            found.append(time.process_time() - started)
    return median(times[30.0]) / median(times[None])


def growth_bytes(path: Path, backend: Backend) -> float:
    """Return the resident bytes that each opening adds."""
    process, numbers = psutil.Process(), np.arange(0, 40, 8)
    for _ in range(OPENS_BEFORE):
        _read(path, backend, numbers)
    # The first openings fill caches of libraries.
    gc.collect()
    before = process.memory_info().rss
    for _ in range(OPENS):
        _read(path, backend, numbers)
    gc.collect()
    return (process.memory_info().rss - before) / OPENS


def _read(path: Path, backend: Backend, numbers: np.ndarray) -> None:
    reader = VideoReader(read_index(path, Heartbeat()), backend, timeout_seconds=600.0)
    for _ in reader.chunks(numbers, 16):
        pass
    reader.close()
