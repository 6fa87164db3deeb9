"""Decoding behind one small interface: open a video, ask for frames by number, get RGB.

The spec chooses the library; where that one is known to be wrong for a file, can't open it, fails or hangs, PyAV takes
its place, and a line in the log says so.
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
from adatad.files import reason

logger = logging.getLogger(__name__)

Decoder = Literal["decord", "pyav", "torchcodec"]
Backend = Literal["decord", "pyav", "torchcodec", "pyav_sequential"]
T = TypeVar("T")

DECORD_MAX_PIXELS = 640 * 360
"""Largest frame for decord: above, it is up to four times slower than PyAV and holds much more
(docs/decisions/decoders.md)."""
CHANGED_WHILE_READ = (
    "has changed while it was read: frames may be of another video, or at another time than its annotations mean; "
    "leave videos as they are while a run reads them, and start it again"
)
MAX_NUMBERS = 1 << 26
"""Most numbers of an even scale, two weeks at 50 a second: more come from a wrong rate, and would fill the memory."""
PIECE_FRAMES = 16
"""Frames that `VideoReader.frames` decodes at a time."""


class VideoReader:
    """Frames of a video by number: upright, RGB, of its best video stream, in display order.

    fps: number k is the frame shown at k / fps seconds (adatad/data/timeline.py); None: the k-th frame stored.
    frame_count: how many numbers there are; backend: the decoder in use; timeline, stamp: of the file as it was opened.
    """

    def __init__(self, index: VideoIndex, backend: Backend, timeout_seconds: float, fps: float | None = None):
        self.path, self.backend, self.timeline, self.stamp = index.path, backend, index.timeline, index.stamp
        self._fps = None if fps is None or index.timeline.follows(fps) else fps
        self.frame_count = index.frame_count if self._fps is None else index.timeline.count_at(fps)
        if self.frame_count > MAX_NUMBERS:
            raise VideoError(
                f"{index.path}: lasts {index.timeline.duration_seconds:.2f} s, and its annotation means {fps:g} frames "
                "a second; fix its duration, frame or fps in the annotation file, or data.fps"
            )
        self._index, self._timeout_seconds = index, timeout_seconds
        # Opened by the first read, so that a fallback is chosen in one place.
        # One retry for an open video, not for each chunk: a file that fails twice fails for good.
        self._retried = False
        self._source: FrameSource | None = None
        self._heart = Heartbeat()

    def chunks(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        """Yield frames in the order asked for, repeats included, `chunk_frames` at a time.

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
        # From numbers on the even scale to stored frames.
        if self._fps is not None:
            indices = self.timeline.frames_at(indices / self._fps)
        for start in range(0, len(indices), chunk_frames):
            # Libraries decode ascending numbers, each once; repeats and other orders are made from them here.
            numbers, places = np.unique(indices[start : start + chunk_frames], return_inverse=True)
            images = self._read(numbers)
            yield images if len(numbers) == len(places) and (np.diff(places) > 0).all() else images[places]

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """Return all of `chunks` at once: int [n] -> uint8 [n, height, width, 3]."""
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
        """Read, and once more with another backend if that fails."""
        try:
            return self._read_once(numbers)
        except (VideoError, IndexMismatchError) as error:
            if self._retried:
                raise _as_video_error(self.path, error) from error
            # PyAV after another library. It decodes from the start where its own frames weren't those announced, and
            # tries as before after any other error.
            moved = self.backend.startswith("pyav") and isinstance(error, IndexMismatchError)
            self._retried, self.backend = True, "pyav"
            if moved or self._index.unreliable_because:
                self.backend = "pyav_sequential"
            _log_once(str(self.path), f"{_as_video_error(self.path, error)}; trying again with {self.backend}")
        try:
            return self._read_once(numbers)
        except IndexMismatchError as error:
            raise _as_video_error(self.path, error) from error

    def _read_once(self, numbers: np.ndarray) -> np.ndarray:
        """Read with the present backend. Raises VideoError or IndexMismatchError, after which no source is held."""
        # The source is only kept after success: one that failed or hangs is in an unknown state.
        source, self._source = self._source, None
        if source is None:
            self._heart = heart = Heartbeat()
            opening = f"{self.path}: opening it with {self.backend}"
            source = _wait(
                lambda: _open_source(self._index, self.backend, heart), heart, self._timeout_seconds, opening
            )
        reading = f"{self.path}: decoding frames {numbers[0]} to {numbers[-1]} with {self.backend}"
        try:
            images = _wait(lambda: source.read(numbers), self._heart, self._timeout_seconds, reading)
        except DecodeTimeoutError:
            # The stuck thread is still inside the library: closing the source here would block, or crash. So it would
            # after a KeyboardInterrupt, which is no Exception and isn't caught below either.
            raise
        except Exception:
            source.close()
            raise
        self._source = source
        return images


class DecodeTimeoutError(VideoError):
    """Raised when a library doesn't return in time."""


@contextmanager
def open_video(
    path: str | Path, decoder: Decoder = "pyav", timeout_seconds: float = 120.0, fps: float | None = 0.0
) -> Iterator[VideoReader]:
    """Open a video for as long as the context lasts.

    timeout_seconds: longest wait for opening, or for one more frame. fps: even scale on which frames are numbered by
    their times; 0 for the file's usual rate; None to count them as they are stored, whatever their times. Raises
    VideoError, which names the file.
    """
    path = Path(path)
    index = _find_index(path, timeout_seconds)
    backend, why = _choose_backend(index, decoder)
    if why:
        _log_once(str(path), f"{path}: {why}; read with {backend}")
    reader = VideoReader(index, backend, timeout_seconds, (index.timeline.usual_fps or None) if fps == 0 else fps)
    try:
        yield reader
    finally:
        reader.close()
        # Looked at when done: a file that is replaced meanwhile is read half old, half new, and no library says so.
        if stamp_of(path) != index.stamp:
            _log_once(f"{path} {index.stamp}", f"{path}: {CHANGED_WHILE_READ}")


def _find_index(path: Path, timeout_seconds: float) -> VideoIndex:
    """Read a file's index; once more if that hung."""
    # A network file system may hang once and answer the second time.
    for last_try in (False, True):
        heart = Heartbeat()
        try:
            return _wait(lambda heart=heart: read_index(path, heart), heart, timeout_seconds, f"{path}: opening it")
        except DecodeTimeoutError as error:
            if last_try:
                raise
            _log_once(str(path), f"{error}; trying again")
    raise AssertionError("unreachable")


def _choose_backend(index: VideoIndex, decoder: Decoder) -> tuple[Backend, str]:
    """Return the backend for a file, and why it isn't the spec's decoder; the reason is empty where it is."""
    # The order matters: a file's own faults go before the spec's choice, and the slow way before the wrong one.
    missing = missing_library(decoder)
    if missing:
        _log_once(decoder, f"data.decoder {decoder} can't be used here ({missing}); videos are read with pyav")
    # PyAV is a package that the project needs: it is always there.
    wanted = "pyav" if missing else decoder
    if index.unreliable_because:
        return "pyav_sequential", index.unreliable_because
    if wanted == "pyav":
        return "pyav", ""
    why = index.decord_unreliable_because if wanted == "decord" else index.libraries_unreliable_because
    if why:
        return "pyav", why
    if wanted == "decord" and index.width * index.height > DECORD_MAX_PIXELS:
        _log_once("decord is slow", "decord is slower than pyav at large frames; they are read with pyav")
        return "pyav", ""
    return wanted, ""


@cache
def missing_library(decoder: Decoder) -> str:
    """Return why a library can't be imported; empty if it can."""
    try:
        match decoder:
            case "decord":
                import adatad.data.readers.decord
            case "torchcodec":
                import adatad.data.readers.torchcodec  # noqa: F401
    # OSError: its shared libraries can't be loaded; RuntimeError: torchcodec found no FFmpeg.
    except (ImportError, OSError, RuntimeError) as error:
        return reason(error).split(". ")[0]
    return ""


def _open_source(index: VideoIndex, backend: Backend, heart: Heartbeat) -> FrameSource:
    # Imported where they are chosen: each of these libraries may be absent.
    match backend:
        case "decord":
            from adatad.data.readers.decord import DecordFrames

            return DecordFrames(index, heart)
        case "torchcodec":
            from adatad.data.readers.torchcodec import TorchcodecFrames

            return TorchcodecFrames(index, heart)
        case "pyav":
            return PyavFrames(index, heart, sequential=False)
        case "pyav_sequential":
            return PyavFrames(index, heart, sequential=True)


def _as_video_error(path: Path, error: VideoError | IndexMismatchError) -> VideoError:
    return error if isinstance(error, VideoError) else VideoError(f"{path}: {error}")


def _wait(function: Callable[[], T], heart: Heartbeat, seconds: float, what: str) -> T:
    """Call a function that may hang. Raises DecodeTimeoutError after `seconds` without a beat of the heart.

    A call into a library can't be ended from outside: its thread is left behind, and doesn't keep the process alive.
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        """Hand over the result, or the error."""
        try:
            outcome.put((function(), None))
        # All of them: an error that stays in the thread would look like a hang.
        except BaseException as error:
            outcome.put((None, error))

    # A daemon: a thread that hangs in a library must not keep the process from ending.
    threading.Thread(target=run, daemon=True).start()
    while True:
        # Slow isn't stuck: the time begins anew whenever something was done in it.
        beats = heart.beats
        try:
            result, error = outcome.get(timeout=seconds)
        except queue.Empty:
            if heart.beats == beats:
                raise DecodeTimeoutError(
                    f"{what} hangs: nothing came for {seconds:g} s; fetch the file again if it is damaged, or raise "
                    "data.decode_timeout_seconds if its disk is slow"
                ) from None
            continue
        if error is not None:
            raise error
        return result


def _log_once(key: str, line: str) -> None:
    """Log a line, but only one for each `key` in this process: windows of one video are read in every epoch."""
    if key not in _logged:
        _logged.add(key)
        logger.warning("%s", line)


# Of this process: each loader process logs a file once.
_logged: set[str] = set()
