"""Frames through decord, for files in which it finds the same frames, key frames and times as the packets show."""

from __future__ import annotations

import decord
import numpy as np

from adatad.data.readers import IndexMismatchError
from adatad.data.video_index import Heartbeat, VideoError, VideoIndex
from adatad.files import reason

PIECE_BYTES = 32 << 20
"""Most bytes that decord is asked for at once; it holds them twice."""
TIME_TOLERANCE_SECONDS = 1e-3
"""Tolerance of times: decord's are float32."""


class DecordFrames:
    """A `FrameSource` through decord."""

    def __init__(self, index: VideoIndex, heart: Heartbeat):
        self._index, self._heart = index, heart
        try:
            # One thread: loader processes run side by side. Memory is released with the reader, not by decord's pools.
            self._reader = decord.VideoReader(str(index.path), ctx=decord.cpu(0), num_threads=1)
        # UnicodeEncodeError: of a name that is no UTF-8.
        except (decord.DECORDError, RuntimeError, AssertionError, UnicodeEncodeError) as error:
            raise VideoError(f"{index.path}: decord can't open it ({reason(error)})") from error
        # What decord found is compared with the packets; nothing is decoded for it.
        if len(self._reader) != index.frame_count:
            raise IndexMismatchError(f"decord counts {len(self._reader)} frames, its packets {index.frame_count}")
        # decord seeks by its own list of key frames: a wrong one gives wrong frames without an error.
        keys = np.searchsorted(index.pts, index.key_pts)
        if not np.array_equal(self._reader.get_key_indices(), keys):
            raise IndexMismatchError("decord finds other key frames than its packets show")
        seconds = self._reader.get_frame_timestamp(np.arange(index.frame_count))[:, 0]
        expected = (index.pts - index.pts[0]) * index.tick_seconds
        if not np.allclose(seconds - seconds[0], expected, rtol=0, atol=TIME_TOLERANCE_SECONDS):
            raise IndexMismatchError("decord finds other times than its packets show")

    def close(self) -> None:
        """Release the reader, which frees its memory."""
        self._reader = None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """See `FrameSource`; a piece at a time, so that a long list of frames isn't held twice."""
        piece = max(PIECE_BYTES // (3 * self._index.width * self._index.height), 1)
        parts = [self._read(numbers[start : start + piece]) for start in range(0, len(numbers), piece)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        try:
            images = self._reader.get_batch(numbers)
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(
                f"{self._index.path}: decord can't decode frames {numbers[0]} to {numbers[-1]} ({reason(error)})"
            ) from error
        # For each piece: the wait for this call ends if nothing beats for too long.
        self._heart.beats += 1
        # Whoever else uses decord in this process may have set another bridge; ours isn't forced on them.
        return images.asnumpy() if hasattr(images, "asnumpy") else np.asarray(images)
