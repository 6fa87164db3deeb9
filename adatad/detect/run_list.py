"""Work on a list of videos, such as detection, one after the other: a broken one is reported, and the others go on."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import av

from adatad.detect.sources import SourceVideo
from adatad.errors import UserError
from adatad.files import FileError, reason, shown
from adatad.progress_bar import Task, progress

Result = TypeVar("Result")
HEADERS_AT_ONCE = 8
"""Headers of videos that are read at a time: on a network disk most of that is waiting."""
Report = Callable[[float], None]
"""Called with the seconds of a video that are done."""


class Failure(NamedTuple):
    """A video that couldn't be worked through, and why."""

    file: str
    reason: str


def work_through(
    todo: Sequence[SourceVideo],
    detect: Callable[[SourceVideo, Report], Result],
    keep: Callable[[Result], None],
    quiet: bool = False,
) -> list[Failure]:
    """Work through videos one after the other, and return those that couldn't be worked through.

    detect: returns the result of a video; what it raises is that video's failure, said on stderr at once. keep: takes
    each result as it comes; a FileError of it ends the work, another UserError is that video's failure. quiet: show no
    progress, as on all ranks but the first.
    """
    failures: list[Failure] = []
    lengths = lengths_seconds(todo)
    with progress("seconds of video", round(sum(lengths)), quiet) as bar:
        speed = Speed(bar)
        for video, length in zip(todo, lengths, strict=True):
            speed.begin(video, length)
            if failure := _failure(video, lambda: detect(video, speed.report), keep):  # noqa: B023, called at once
                failures.append(failure)
            speed.end()
    return failures


def _failure(video: SourceVideo, detect: Callable[[], Result], keep: Callable[[Result], None]) -> Failure | None:
    """Work one video through; return its failure, if it is one, after a line on stderr."""
    try:
        result = detect()
    # All of them: whatever one video does to a decoder or to the device's memory, the others are still to be done.
    except Exception as error:
        # The error of a defect, or of a library, is of use only with its place.
        if not isinstance(error, (UserError, OSError, MemoryError)):
            traceback.print_exception(error)
        return failure_of(video.file, error)
    try:
        keep(result)
    except FileError:
        # The next one couldn't be written, either.
        raise
    except UserError as error:
        return failure_of(video.file, error)
    return None


def failure_of(file: str, error: Exception) -> Failure:
    """Return an error as a video's failure, after a line on stderr."""
    text = reason(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason(error)}"
    # Errors of videos begin with the path.
    failure = Failure(file, shown(text.removeprefix(f"{os.path.abspath(file)}: ")))
    print(f"failed: {shown(file)}: {failure.reason}", file=sys.stderr, flush=True)
    return failure


class Speed:
    """Progress over a list of videos, with how many seconds of video a second takes."""

    def __init__(self, bar: Task):
        self.bar, self.before, self.length, self.name = bar, 0.0, 0.0, ""
        self.began = time.monotonic()

    def begin(self, video: SourceVideo, length_seconds: float) -> None:
        """Begin with a video."""
        self.length, self.name = length_seconds, shown(Path(video.file).name, 30)
        self.report(0.0)

    def report(self, seconds: float) -> None:
        """Show that so many seconds of the video are done."""
        # A length from a header may be wrong: the total stays what was announced.
        done = self.before + min(seconds, self.length)
        rate = done / max(time.monotonic() - self.began, 1e-9)
        self.bar.update(round(done), note=f"{rate:.1f}x real time  {self.name}")

    def end(self) -> None:
        """Count the video as done."""
        self.report(self.length)
        self.before += self.length


def lengths_seconds(videos: Sequence[SourceVideo]) -> list[float]:
    """Return what the headers of videos give as their lengths; 0 where they give none, or can't be read."""
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        return list(pool.map(_header_seconds, videos))


def _header_seconds(video: SourceVideo) -> float:
    # A pipe would be waited for.
    if not video.path.is_file():
        return 0.0
    try:
        with av.open(str(video.path), metadata_errors="ignore") as container:
            return max(container.duration or 0, 0) / av.time_base
    except (OSError, av.FFmpegError, ValueError):
        return 0.0
