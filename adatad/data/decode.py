"""Decoding behind one small interface: open a video, ask for frames by number, get RGB.

Which library decodes is the spec's choice; where that one is known to be wrong for a file, can't open it, fails or
hangs, PyAV takes its place, and a line in the log says so.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from adatad.data.readers import FrameSource, IndexMismatchError
from adatad.data.readers.pyav import PyavFrames
from adatad.data.video_index import Heartbeat, VideoError, VideoIndex, read_index, stamp_of

logger = logging.getLogger(__name__)

Decoder = Literal["decord", "pyav", "torchcodec"]
Way = Literal["decord", "pyav", "torchcodec", "pyav in order"]
T = TypeVar("T")

DECORD_MAX_PIXELS = 640 * 360
"""Of a frame. Above, decord is up to four times slower than PyAV and holds much more (docs/decisions/decoders.md)."""
CHANGED = (
    "has changed while it was read: frames may be of another video, or at another time than its annotations mean; "
    "leave videos as they are while a run reads them, and start it again"
)
MAX_NUMBERS = 1 << 26
"""Numbers of an even scale: two weeks at 50 a second."""
PIECE_FRAMES = 16
"""Frames that `VideoReader.frames` decodes at a time."""


class VideoReader:
    """Frames of a video by number: upright, RGB, of its best video stream, in the order they are shown.

    fps: number k is the frame that is shown at k / fps seconds (adatad/data/timeline.py); None: the k-th frame stored.
    frame_count: numbers that can be asked for; way: what decodes them; timeline: of the file; stamp: as it was opened.
    """

    def __init__(self, index: VideoIndex, way: Way, timeout_seconds: float, fps: float | None = None):
        self.path, self.way, self.timeline, self.stamp = index.path, way, index.timeline, index.stamp
        self._fps = None if fps is None or index.timeline.follows(fps) else fps
        self.frame_count = index.frame_count if self._fps is None else index.timeline.count_at(fps)
        if self.frame_count > MAX_NUMBERS:
            raise VideoError(
                f"{index.path}: lasts {index.timeline.duration_seconds:.2f} s, and its annotation means {fps:g} frames "
                "a second; fix its duration, frame or fps in the annotation file, or data.fps"
            )
        self._index, self._timeout_seconds = index, timeout_seconds
        self._retried = False
        self._source: FrameSource | None = None
        self._heart = Heartbeat()

    def chunks(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        """Frames in the order asked for, repeats included, `chunk_frames` at a time.

        int [n] -> uint8 [<= chunk_frames, height, width, 3] each, of one size. No more than a chunk is held; ascending
        numbers are decoded once. Raises VideoError, which names the file.
        """
        indices = np.asarray(indices, np.int64)
        if not len(indices):
            raise ValueError(f"{self.path}: no frames were asked for")
        if indices.min() < 0 or indices.max() >= self.frame_count:
            raise VideoError(
                f"{self.path}: frame {indices.max() if indices.min() >= 0 else indices.min()} was asked for; "
                f"it has frames 0 to {self.frame_count - 1}"
            )
        if self._fps is not None:
            indices = self.timeline.frames_at(indices / self._fps)
        for start in range(0, len(indices), chunk_frames):
            numbers, places = np.unique(indices[start : start + chunk_frames], return_inverse=True)
            images = self._read(numbers)
            yield images if len(numbers) == len(places) and (np.diff(places) > 0).all() else images[places]

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """All of `chunks` at once: int [n] -> uint8 [n, height, width, 3]."""
        images: np.ndarray | None = None
        done = 0
        for chunk in self.chunks(indices, PIECE_FRAMES):
            if images is None:
                images = np.empty((len(indices), *chunk.shape[1:]), np.uint8)
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
        return images

    def close(self) -> None:
        """Release what the library holds."""
        if self._source is not None:
            self._source.close()
        self._source = None

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """Read, and once more in another way if that fails."""
        try:
            return self._try(numbers)
        except (VideoError, IndexMismatchError) as error:
            if self._retried:
                raise _as_video_error(self.path, error) from error
            self._retried, self.way = True, _second_way(self._index, self.way, error)
            _log_once(str(self.path), f"{_as_video_error(self.path, error)}; trying again with {self.way}")
        try:
            return self._try(numbers)
        except IndexMismatchError as error:
            raise _as_video_error(self.path, error) from error

    def _try(self, numbers: np.ndarray) -> np.ndarray:
        """Raises VideoError or IndexMismatchError, after which no source is held."""
        source, self._source = self._source, None
        if source is None:
            self._heart = heart = Heartbeat()
            opening = f"{self.path}: opening it with {self.way}"
            source = _wait(lambda: _open_source(self._index, self.way, heart), heart, self._timeout_seconds, opening)
        reading = f"{self.path}: decoding frames {numbers[0]} to {numbers[-1]} with {self.way}"
        try:
            images = _wait(lambda: source.read(numbers), self._heart, self._timeout_seconds, reading)
        except StuckError:
            # Its thread is still inside: closing it would wait, or crash. So it would when the wait is interrupted.
            raise
        except Exception:
            source.close()
            raise
        self._source = source
        return images


class StuckError(VideoError):
    """A library that didn't come back in time."""


@contextmanager
def open_video(
    path: str | Path, decoder: Decoder = "decord", timeout_seconds: float = 120.0, fps: float | None = 0.0
) -> Iterator[VideoReader]:
    """Open a video for as long as the context lasts.

    timeout_seconds: the longest that opening, or the wait for one more frame, may take. fps: the even scale on which
    frames are numbered by their times; 0 for the file's usual rate; None to count them as they
    are stored, whatever their times. Raises VideoError, which names the file.
    """
    path = Path(path)
    index = _find_index(path, timeout_seconds)
    way, reason = _choose_way(index, decoder)
    if reason:
        _log_once(str(path), f"{path}: {reason}; read with {way}")
    reader = VideoReader(index, way, timeout_seconds, (index.timeline.usual_fps or None) if fps == 0 else fps)
    try:
        yield reader
    finally:
        reader.close()
        if stamp_of(path) != index.stamp:
            _log_once(f"{path} {index.stamp}", f"{path}: {CHANGED}")


def _find_index(path: Path, timeout_seconds: float) -> VideoIndex:
    """Look into a file; once more if that hung."""
    for last_try in (False, True):
        heart = Heartbeat()
        try:
            return _wait(lambda heart=heart: read_index(path, heart), heart, timeout_seconds, f"{path}: opening it")
        except StuckError as error:
            if last_try:
                raise
            _log_once(str(path), f"{error}; trying again")
    raise AssertionError("unreachable")


def _choose_way(index: VideoIndex, decoder: Decoder) -> tuple[Way, str]:
    """How a file is read, and why otherwise than the spec says; the reason is empty where it isn't."""
    missing = missing_library(decoder)
    if missing:
        _log_once(decoder, f"data.decoder {decoder} can't be used here ({missing}); videos are read with pyav")
    wanted = "pyav" if missing else decoder
    if index.doubt:
        return "pyav in order", index.doubt
    if wanted == "pyav":
        return "pyav", ""
    doubt = index.decord_doubt if wanted == "decord" else index.library_doubt
    if doubt:
        return "pyav", doubt
    if wanted == "decord" and index.width * index.height > DECORD_MAX_PIXELS:
        _log_once("decord is slow", "decord is slower than pyav at large frames; they are read with pyav")
        return "pyav", ""
    return wanted, ""


@cache
def missing_library(decoder: Decoder) -> str:
    """Why a library can't be imported; empty if it can."""
    try:
        match decoder:
            case "decord":
                import adatad.data.readers.decord
            case "torchcodec":
                import adatad.data.readers.torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().split("\n")[0].split(". ")[0]
    return ""


def _open_source(index: VideoIndex, way: Way, heart: Heartbeat) -> FrameSource:
    match way:
        case "decord":
            from adatad.data.readers.decord import DecordFrames

            return DecordFrames(index, heart)
        case "torchcodec":
            from adatad.data.readers.torchcodec import TorchcodecFrames

            return TorchcodecFrames(index, heart)
        case "pyav":
            return PyavFrames(index, heart, in_order=False)
        case "pyav in order":
            return PyavFrames(index, heart, in_order=True)


def _second_way(index: VideoIndex, way: Way, error: Exception) -> Way:
    """PyAV after another library; PyAV in order after it found other frames than announced; else the same again."""
    if index.doubt or (way.startswith("pyav") and isinstance(error, IndexMismatchError)):
        return "pyav in order"
    return "pyav"


def _as_video_error(path: Path, error: VideoError | IndexMismatchError) -> VideoError:
    return error if isinstance(error, VideoError) else VideoError(f"{path}: {error}")


def _wait(function: Callable[[], T], heart: Heartbeat, seconds: float, what: str) -> T:
    """Call a function that may hang. Raises StuckError after `seconds` in which the heart didn't beat.

    A call into a library can't be ended from outside: its thread is left behind, and doesn't keep the process alive.
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        beats = heart.beats
        try:
            result, error = outcome.get(timeout=seconds)
        except queue.Empty:
            if heart.beats == beats:
                raise StuckError(
                    f"{what} hangs: nothing came for {seconds:g} s; fetch the file again if it is damaged, or raise "
                    "data.decode_timeout_seconds if its disk is slow"
                ) from None
            continue
        if error is not None:
            raise error
        return result


def _log_once(key: str, line: str) -> None:
    """One line about each thing for the life of the process."""
    if key not in _logged:
        _logged.add(key)
        logger.warning("%s", line)


_logged: set[str] = set()
