"""Frames through torchcodec, which takes FFmpeg's libraries from the system."""

from __future__ import annotations

import numpy as np
from torchcodec.decoders import VideoDecoder

from adatad.data.readers import IndexMismatchError
from adatad.data.video_index import Heartbeat, VideoError, VideoIndex


class TorchcodecFrames:
    """A `FrameSource` through torchcodec."""

    def __init__(self, index: VideoIndex, heart: Heartbeat):
        self._index, self._heart = index, heart
        try:
            self._decoder = VideoDecoder(
                str(index.path), stream_index=index.stream, dimension_order="NHWC", num_ffmpeg_threads=1
            )
        except (RuntimeError, ValueError) as error:
            raise VideoError(f"{index.path}: torchcodec can't open it ({error})") from error
        # The decoder has scanned the file: frame numbers mean the same only if it found as many frames.
        if len(self._decoder) != index.frame_count:
            raise IndexMismatchError(f"torchcodec counts {len(self._decoder)} frames, its packets {index.frame_count}")

    def close(self) -> None:
        """Release the decoder, which has no method for it."""
        self._decoder = None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """See `FrameSource`."""
        try:
            batch = self._decoder.get_frames_at(numbers.tolist())
        except (RuntimeError, IndexError) as error:
            raise VideoError(
                f"{self._index.path}: torchcodec can't decode frames {numbers[0]} to {numbers[-1]} ({error})"
            ) from error
        self._heart.beats += 1
        # A library that is off by one frame gives plausible pictures: compare times, not pictures.
        seconds = batch.pts_seconds.numpy()
        expected = self._index.pts[numbers] * self._index.tick_seconds
        if not np.allclose(seconds, expected, rtol=0, atol=1e-3):
            raise IndexMismatchError("torchcodec gives frames of other times than were asked for")
        return batch.data.numpy()
