"""Small copies of videos whose frames are reached fast: a short side of 256 pixels, a key frame every few frames.

A copy has the frames of the original, upright, each at its own time, or those shown at another rate: annotations in
seconds hold for both. Its times are compared with the original's before it appears.
"""

from __future__ import annotations

import filecmp
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any, NamedTuple

import av
import numpy as np

from adatad.data.decode import VideoError, VideoReader, open_video
from adatad.data.prepare.video_files import files_below
from adatad.data.video_index import Heartbeat, VideoIndex, open_container, read_index
from adatad.files import check_output_folder
from adatad.stop_signals import leave_interruptions_to_the_parent

logger = logging.getLogger(__name__)

CHUNK_FRAMES = 32
"""Frames that are held at full size at once."""
RATE_TOLERANCE = 0.01
"""Share by which the rate of an existing copy may differ."""
# A copy is written to all the time; none stands still for an hour and goes on.
ABANDONED_SECONDS = 3600
"""Seconds since the last write after which an unfinished copy counts as abandoned."""
# 24000/1001, 30000/1001 and so on.
FINEST_RATE = 1001 * 240
"""Largest denominator of a copy's rate: all broadcast rates are exact."""
TICK = Fraction(1, 90000)
"""Unit of times in copies of a changing rate: that of broadcasts, fine enough for any camera."""
MEASURED_VIDEOS, MEASURED_FRAMES, MEASURED_STRIDE = 8, 64, 4
"""Videos that `speed_up` reads, the frames of each, and the distance between these."""


class Failed(NamedTuple):
    """A video that couldn't be copied, and why."""

    source: Path
    reason: str


class FolderContent(NamedTuple):
    """Content of a folder. videos: to be copied; repeated: files equal, byte by byte, to one of those; disputed: names,
    without endings, that different files share; others: files that are no videos by their ending."""

    videos: list[Path]
    repeated: list[Path]
    disputed: list[str]
    others: list[Path]


def find_videos(folder: Path) -> FolderContent:
    """Find the videos in a folder and its subfolders, the first of equal files (HACS has one for each class of a
    video)."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    others = []
    for file in files_below(folder):
        if file.is_video:
            by_name[file.path.stem].append(file.path)
        else:
            others.append(file.path)
    # Two different videos of one name would overwrite each other's copy.
    disputed = [
        stem
        for stem, (first, *rest) in by_name.items()
        # Of another ending counts as another video: a.avi and a.mp4 would both become a.mp4.
        if not all(path.name == first.name and filecmp.cmp(first, path, shallow=False) for path in rest)
    ]
    repeated = [path for _, *rest in by_name.values() for path in rest]
    return FolderContent([paths[0] for paths in by_name.values()], repeated, disputed, others)


def check_copies(sources: list[Path], output: Path, short_side_pixels: int, fps: float | None) -> None:
    """Raise VideoError if existing copies have another rate or size than asked for: they would stay beside the new
    ones."""
    # Copies that are there stay: one look at all before hours of work.
    there = [source for source in sources if copy_path(source, output).is_file()]
    wrong = [(source, text) for source in there if (text := _copy_problem(source, output, short_side_pixels, fps))]
    if wrong:
        source, text = wrong[0]
        raise VideoError(
            f"{copy_path(source, output)}: already there, {text}; {len(wrong)} of {len(there)} copies in {output} "
            "aren't as asked for: name another folder, or delete them"
        )


def _copy_problem(source: Path, output: Path, short_side_pixels: int, fps: float | None) -> str:
    """Return how a copy differs from what is asked for; empty if it doesn't, or if the original can't be read."""
    path = copy_path(source, output)
    before, copy = _readable(_header, source), _readable(_header, path)
    if copy is None:
        return "but can't be read"
    if before is None:
        return ""
    short = min(copy_size(before.height, before.width, short_side_pixels))
    # Sides are rounded to even numbers.
    if abs(short - min(copy.height, copy.width)) > 2:
        return f"with a short side of {min(copy.height, copy.width)} pixels instead of {short}"
    if not _differ(copy.fps, fps or before.fps):
        return ""
    # Headers may be wrong where the rate changes: look at the packets before saying so.
    rate = _readable(_rate_of_frames, path)
    wanted = fps or _readable(_rate_of_frames, source) or 0.0
    if rate is None:
        return "but can't be read"
    return f"at another rate ({rate:.4g} instead of {wanted:.4g} frames a second)" if _differ(rate, wanted) else ""


def _readable(read: Callable[[Path], Any], path: Path) -> Any:
    """Return what `read` finds in a video; None if it can't be read."""
    try:
        return read(path)
    except (VideoError, OSError, ValueError, av.FFmpegError):
        return None


def _rate_of_frames(path: Path) -> float:
    return read_index(path, Heartbeat()).timeline.fps


class _Header(NamedTuple):
    """Size and rate of a video by its header. fps: 0 if unknown."""

    height: int
    width: int
    fps: float


def _header(path: Path) -> _Header:
    with open_container(path) as container:
        stream = container.streams.best("video")
        return _Header(stream.codec_context.height, stream.codec_context.width, float(stream.average_rate or 0))


def _differ(rate: float, wanted: float) -> bool:
    """Return whether both rates are known and more than rounding apart."""
    return rate > 0 and wanted > 0 and abs(rate - wanted) > RATE_TOLERANCE * wanted


def transcode_all(
    sources: list[Path],
    output: Path,
    short_side_pixels: int,
    key_frames: int,
    workers: int,
    progress: Callable[[int, int], None],
    fps: float | None = None,
) -> list[Failed]:
    """Copy videos into `output`, `workers` at a time; existing copies stay. Returns what couldn't be copied.

    key_frames: frames from one key frame to the next; progress: called with (done, of); fps: None for each its own.
    """
    check_output_folder(output)
    waiting = [source for source in sources if not copy_path(source, output).is_file()]
    _remove_unfinished(output, waiting)
    failed, done = [], len(sources) - len(waiting)
    progress(done, len(sources))
    copy = partial(transcode, output=output, short_side_pixels=short_side_pixels, key_frames=key_frames, fps=fps)
    with ProcessPoolExecutor(workers, initializer=leave_interruptions_to_the_parent) as pool:
        running = {pool.submit(copy, source): source for source in waiting}
        for future in as_completed(running):
            try:
                future.result()
            except BrokenProcessPool as error:
                raise VideoError(
                    f"{output}: a process that copies videos was ended from outside, perhaps because memory ran out; "
                    "start it again, with fewer --workers: copies that are there stay"
                ) from error
            # One broken video costs its own copy; the others are made.
            except (VideoError, OSError, ValueError, av.FFmpegError) as error:
                failed.append(Failed(running[future], str(error)))
            done += 1
            progress(done, len(sources))
    return sorted(failed)


def copy_path(source: Path, output: Path) -> Path:
    """Return the path of a video's copy."""
    return output / f"{source.stem}.mp4"


def _unfinished_path(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}.unfinished")


def _remove_unfinished(output: Path, waiting: list[Path]) -> None:
    """Remove unfinished copies of killed runs, but not those that another run may be writing now."""
    ours = {_unfinished_path(copy_path(source, output)) for source in waiting}
    for path in output.glob(".*.mp4.unfinished"):
        with suppress(OSError):
            if path in ours or time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def transcode(source: Path, output: Path, short_side_pixels: int, key_frames: int, fps: float | None = None) -> Path:
    """Write the copy of one video, which appears only when complete and at the original's times; frames are never
    enlarged.

    Raises VideoError.
    """
    target = copy_path(source, output)
    unfinished = _unfinished_path(target)
    # crf 18 is visually lossless; fixed key frame intervals and no B-frames make every frame quickly reachable.
    options = {"crf": "18", "g": str(key_frames), "keyint_min": str(key_frames), "sc_threshold": "0", "bf": "0"}
    try:
        # PyAV always: copies must not depend on which libraries are installed.
        with open_video(source, "pyav", fps=None) as reader, av.open(str(unfinished), "w", format="mp4") as container:
            shown = _frames_of_copy(read_index(source, Heartbeat()), fps)
            _encode(container, reader, shown, short_side_pixels, options)
        _check_times(source, unfinished, shown)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


class Shown(NamedTuple):
    """Frames of a copy. numbers: int64 [n], of the original; seconds: float64 [n + 1], start of each and end of the
    last; rate: frames a second, on average; is_even: they come at exactly that rate, from 0 on."""

    numbers: np.ndarray
    seconds: np.ndarray
    rate: Fraction
    is_even: bool


def _frames_of_copy(index: VideoIndex, fps: float | None) -> Shown:
    """Return the frames of a copy and their times. fps: its rate; None for the times of the original."""
    timeline, rate = index.timeline, _rate(index)
    seconds, numbers = frame_seconds(index, rate), np.arange(index.frame_count)
    if fps is not None:
        rate, numbers = Fraction(fps).limit_denominator(FINEST_RATE), shown_at(seconds, fps)
    elif timeline.has_times and not timeline.follows(timeline.fps):
        return Shown(numbers, seconds, rate, is_even=False)
    return Shown(numbers, np.arange(len(numbers) + 1) / float(rate), rate, is_even=True)


def _encode(
    container: av.container.OutputContainer,
    reader: VideoReader,
    shown: Shown,
    short_side_pixels: int,
    options: dict[str, str],
) -> None:
    """Encode these frames of a video as H.264."""
    stream = container.add_stream("libx264", rate=shown.rate, options=options)
    # One thread an encoder: videos are encoded side by side.
    stream.codec_context.thread_count = 1
    stream.pix_fmt = "yuv420p"
    ticks: np.ndarray | None = None
    if not shown.is_even:
        stream.codec_context.time_base = stream.time_base = TICK
        # An encoder refuses two frames at one tick: make ticks strictly ascending. Subtracting 0, 1, 2, ... turns that
        # into non-descending, which a running maximum gives.
        ticks = np.round(shown.seconds / float(TICK)).astype(np.int64) - np.arange(len(shown.seconds))
        ticks = np.maximum.accumulate(ticks) + np.arange(len(shown.seconds))
    stays = {} if ticks is None else dict(zip(ticks[:-1].tolist(), np.diff(ticks).tolist(), strict=True))

    def mux(packets: list[av.Packet]) -> None:
        """Write packets, each with the duration of its own frame."""
        for packet in packets:
            # The encoder gives the last frame the average duration; without its own the copy's length would differ.
            packet.duration = stays.get(packet.pts, packet.duration)
            container.mux(packet)

    sizes: tuple[int, int] | None = None
    number = 0
    for images in reader.chunks(shown.numbers, CHUNK_FRAMES):
        if sizes is None:
            sizes = copy_size(*images.shape[1:3], short_side_pixels)
            stream.height, stream.width = sizes
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            # AREA averages what becomes one pixel; interpolation between neighbours alone would alias.
            small = frame.reformat(height=sizes[0], width=sizes[1], format="yuv420p", interpolation="AREA")
            if ticks is not None:
                small.time_base, small.pts = TICK, int(ticks[number])
            mux(stream.encode(small))
            number += 1
    # The encoder holds frames back until it is told that no more come.
    mux(stream.encode())


def _check_times(source: Path, copy: Path, shown: Shown) -> None:
    """Raise VideoError for a copy of which a frame is shown more than an interval off."""
    timeline = read_index(copy, Heartbeat()).timeline
    times = shown.seconds[:-1]
    if timeline.frame_count != len(times) or not timeline.has_times:
        raise VideoError(f"{source}: its copy holds {timeline.frame_count} of {len(times)} frames; it was removed")
    # By reading the copy again, not by what was asked of the encoder.
    off = float(np.abs(timeline.seconds - times).max())
    if off > 1 / float(shown.rate):
        raise VideoError(
            f"{source}: its copy shows frames up to {off:.2f} s off their times; it was removed. Give the copies a "
            "constant rate: --fps"
        )


def copy_size(height: int, width: int, short_side_pixels: int) -> tuple[int, int]:
    """Return height and width of a copy: even, with the original's aspect ratio, not larger than the original."""
    scale = min(1.0, short_side_pixels / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _rate(index: VideoIndex) -> Fraction:
    """Return frames a second, on average from the first picture on."""
    if index.timeline.has_times:
        return Fraction(index.timeline.fps).limit_denominator(FINEST_RATE)
    with open_container(index.path) as container:
        rate = container.streams.best("video").average_rate
    if not rate:
        raise VideoError(f"{index.path}: doesn't tell its frame rate; it can't be copied")
    logger.warning(
        "%s: %s; its copy shows %.4g frames a second, as its header says: look whether it lasts as long",
        index.path, index.timeline.unreliable_because, float(rate),
    )  # fmt: skip
    return Fraction(rate)


def frame_seconds(index: VideoIndex, rate: Fraction) -> np.ndarray:
    """Return the start of each frame and the end of the last, from the start of the video: float64 [frames + 1].

    They are spaced evenly by `rate` where the file gives no times.
    """
    timeline = index.timeline
    if timeline.has_times:
        return np.append(timeline.seconds, timeline.duration_seconds)
    return np.arange(index.frame_count + 1) / float(rate)


def shown_at(seconds: np.ndarray, fps: float) -> np.ndarray:
    """Return the numbers of the frames of a copy at another rate: int64 [round(last x fps)].

    Frame k is the last one that comes nearer to k / fps than to what follows, so that some are left out or come twice
    (as in ffmpeg's fps filter); the first one before any comes. seconds: from `frame_seconds`.
    """
    count = max(1, round(float(seconds[-1]) * fps))
    return np.maximum(np.searchsorted(seconds[:-1], (np.arange(count) + 0.5) / fps, side="left") - 1, 0)


def speed_up(pairs: list[tuple[Path, Path]]) -> float:
    """Return how many times faster windows of `MEASURED_FRAMES` frames are read from copies than from originals: the
    median over the first pairs (original, copy), both read in turn."""
    ratios = []
    for source, copy in pairs[:MEASURED_VIDEOS]:
        # The better of two reads: the first may wait for the disk.
        seconds = [min(_read_seconds(path) for _ in range(2)) for path in (source, copy)]
        ratios.append(seconds[0] / seconds[1])
    return median(ratios)


def _read_seconds(path: Path) -> float:
    """Return the seconds to read a window that ends with the video."""
    with open_video(path, fps=None) as reader:
        last = reader.frame_count - 1
        # The last frames: without key frames nearby, everything before them has to be decoded.
        numbers = np.maximum(last - MEASURED_STRIDE * np.arange(MEASURED_FRAMES)[::-1], 0)
        begin = perf_counter()
        reader.frames(numbers)
        return perf_counter() - begin
