"""Small copies of videos whose frames are reached fast: a short side of 256 pixels, a key frame every few frames.

A copy has as many frames as the original, upright, at the original's average rate, or those that are shown at another
rate: annotations in seconds hold for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import av
import numpy as np

from adatad.data.decode import VideoError, VideoReader, open_video
from adatad.data.verify import seconds_of
from adatad.data.video_index import Heartbeat, VideoIndex, open_container, read_index

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".flv", ".wmv", ".ts")
CHUNK_FRAMES = 32
FINEST_RATE = 1001 * 240
"""Largest denominator of a copy's rate: all broadcast rates are exact."""
MEASURED_VIDEOS, MEASURED_FRAMES, MEASURED_STRIDE = 8, 64, 4


class Failed(NamedTuple):
    """A video that couldn't be copied, and why."""

    source: Path
    reason: str


def find_videos(folder: Path) -> tuple[list[Path], list[str]]:
    """The videos in a folder and its folders, of copies (HACS has one for each class of a video) the first; and the
    names, without endings, that different files share."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            by_name[path.stem].append(path)
    disputed = [stem for stem, paths in by_name.items() if len({(p.name, p.stat().st_size) for p in paths}) > 1]
    return [paths[0] for paths in by_name.values()], disputed


def transcode_all(
    sources: list[Path],
    output: Path,
    short_side_pixels: int,
    key_frames: int,
    workers: int,
    progress: Callable[[int, int], None],
    fps: float | None = None,
) -> list[Failed]:
    """Copy videos into `output`, `workers` at a time; copies that are there stay. Returns what couldn't be copied.

    key_frames: frames from one key frame to the next. progress: called with (done, of). fps: None for each its own.
    """
    output.mkdir(parents=True, exist_ok=True)
    waiting = [source for source in sources if not copy_path(source, output).is_file()]
    failed, done = [], len(sources) - len(waiting)
    progress(done, len(sources))
    copy = partial(transcode, output=output, short_side_pixels=short_side_pixels, key_frames=key_frames, fps=fps)
    with ProcessPoolExecutor(workers) as pool:
        running = {pool.submit(copy, source): source for source in waiting}
        for future in as_completed(running):
            try:
                future.result()
            except (VideoError, OSError, av.FFmpegError) as error:
                failed.append(Failed(running[future], str(error)))
            done += 1
            progress(done, len(sources))
    return sorted(failed)


def copy_path(source: Path, output: Path) -> Path:
    return output / f"{source.stem}.mp4"


def transcode(source: Path, output: Path, short_side_pixels: int, key_frames: int, fps: float | None = None) -> Path:
    """Write the copy of one video, which appears only when whole. Frames are never made larger. Raises VideoError."""
    target = copy_path(source, output)
    unfinished = target.with_name(f".{target.name}.unfinished")
    options = {"crf": "18", "g": str(key_frames), "keyint_min": str(key_frames), "sc_threshold": "0", "bf": "0"}
    try:
        with open_video(source, "pyav") as reader, av.open(str(unfinished), "w", format="mp4") as container:
            index = read_index(source, Heartbeat())
            rate, numbers = _rate(index), np.arange(reader.frame_count)
            if fps is not None:
                rate, numbers = Fraction(fps).limit_denominator(FINEST_RATE), shown_at(frame_seconds(index, rate), fps)
            _encode(container, reader, rate, numbers, short_side_pixels, options)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _encode(
    container: av.container.OutputContainer,
    reader: VideoReader,
    rate: Fraction,
    numbers: np.ndarray,
    short_side_pixels: int,
    options: dict[str, str],
) -> None:
    """These frames of a video as H.264."""
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.codec_context.thread_count = 1
    stream.pix_fmt = "yuv420p"
    sizes: tuple[int, int] | None = None
    for images in reader.chunks(numbers, CHUNK_FRAMES):
        if sizes is None:
            sizes = copy_size(*images.shape[1:3], short_side_pixels)
            stream.height, stream.width = sizes
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            small = frame.reformat(height=sizes[0], width=sizes[1], format="yuv420p", interpolation="AREA")
            container.mux(stream.encode(small))
    container.mux(stream.encode())


def copy_size(height: int, width: int, short_side_pixels: int) -> tuple[int, int]:
    """Height and width of a copy: even, with the original's shape, not larger than the original."""
    scale = min(1.0, short_side_pixels / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _rate(index: VideoIndex) -> Fraction:
    """Frames a second, averaged over the video."""
    seconds = seconds_of(index)
    if seconds:
        return Fraction(index.frame_count / seconds).limit_denominator(FINEST_RATE)
    with open_container(index.path) as container:
        rate = container.streams.best("video").average_rate
    if not rate:
        raise VideoError(f"{index.path}: doesn't tell its frame rate; it can't be copied")
    return Fraction(rate)


def frame_seconds(index: VideoIndex, rate: Fraction) -> np.ndarray:
    """float64 [frames + 1]: when each frame comes, from 0, and when the last one goes; evenly by `rate` where packets
    aren't trusted."""
    seconds = seconds_of(index)
    if seconds:
        return np.append((index.pts - index.pts[0]) * index.tick_seconds, seconds)
    return np.arange(index.frame_count + 1) / float(rate)


def shown_at(seconds: np.ndarray, fps: float) -> np.ndarray:
    """Numbers of the frames of a copy at another rate: frame k is the last one that comes nearer to k / fps than to
    what follows, so that some are left out or come twice (as ffmpeg's fps filter does it).

    seconds: as `frame_seconds` gives them. int64 [round(last x fps)].
    """
    count = max(1, round(float(seconds[-1]) * fps))
    return np.searchsorted(seconds[:-1], (np.arange(count) + 0.5) / fps, side="left") - 1


def speed_up(pairs: list[tuple[Path, Path]]) -> float:
    """How many times faster windows of `MEASURED_FRAMES` frames are read from copies than from originals: median over
    the first videos of (original, copy), both read in turn."""
    ratios = []
    for source, copy in pairs[:MEASURED_VIDEOS]:
        seconds = [min(_read_seconds(path) for _ in range(2)) for path in (source, copy)]
        ratios.append(seconds[0] / seconds[1])
    return median(ratios)


def _read_seconds(path: Path) -> float:
    """Of a window that ends with the video."""
    with open_video(path) as reader:
        last = reader.frame_count - 1
        numbers = np.maximum(last - MEASURED_STRIDE * np.arange(MEASURED_FRAMES)[::-1], 0)
        begin = perf_counter()
        reader.frames(numbers)
        return perf_counter() - begin
