"""Frames through PyAV: from the key frame before the wanted one where packets are reliable, else sequentially."""

from __future__ import annotations

import logging

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from adatad.data.readers import IndexMismatchError
from adatad.data.video_index import Heartbeat, VideoError, VideoIndex, open_container

logger = logging.getLogger(__name__)

SEEK_SAVES_FRAMES = 24
"""A seek pays only if it saves decoding this many frames."""
TAIL_FRAMES = 2
"""Packets may announce this many frames at the end that don't decode; the last decoded one stands in for them."""


class PyavFrames:
    """A `FrameSource` through PyAV. sequential: count frames from the start and never seek."""

    def __init__(self, index: VideoIndex, heart: Heartbeat, sequential: bool):
        self._index, self._heart, self._sequential = index, heart, sequential
        # One converter for the whole file: a new one for each frame costs as much as decoding.
        self._converter = VideoReformatter()
        self._open()

    def close(self) -> None:
        """Release decoder and file."""
        self._decoded = self._frame = None
        self._container.close()

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """See `FrameSource`."""
        images: np.ndarray | None = None
        for place, number in enumerate(numbers.tolist()):
            image = self._image(number)
            # Only the first image shows height and width after rotation.
            if images is None:
                images = np.empty((len(numbers), *image.shape), np.uint8)
            images[place] = image
        return images

    def _image(self, number: int) -> np.ndarray:
        """Return frame `number`: uint8 [height, width, 3]."""
        if self._should_seek(number):
            self._seek_before(number)
        while self._number < number and self._advance():
            pass
        # The frame is here, or the file ended early, or its packets announced a frame that doesn't come.
        if self._number < number:
            self._accept_short_end(number)
        elif self._number > number:
            raise IndexMismatchError(f"frame {number} doesn't come, frame {self._number} does")
        size = self._index.width, self._index.height
        image = self._converter.reformat(self._frame, *size, format="rgb24", threads=1).to_ndarray()
        # Phones store rotated frames with a matrix that says so; PyAV leaves turning to us.
        return np.rot90(image, self._frame.rotation // 90 % 4)

    def _should_seek(self, number: int) -> bool:
        # Decoders only go forward. The frame that was decoded last can be asked for again.
        if number < self._number:
            return True
        if self._sequential or number - self._number < SEEK_SAVES_FRAMES:
            return False
        keys = self._index.key_pts
        key = keys[self._key_before(number)]
        return int(np.searchsorted(self._index.pts, key)) - self._number >= SEEK_SAVES_FRAMES

    def _key_before(self, number: int) -> int:
        """Return the index in `key_pts` of the last key frame up to a frame."""
        return max(int(np.searchsorted(self._index.key_pts, self._index.pts[number], side="right")) - 1, 0)

    def _seek_before(self, number: int) -> None:
        """Go before a frame, to a key frame: the last one, or further back where the file's own index is coarser."""
        if self._sequential:
            self.close()
            self._open()
            return
        nearest = self._key_before(number)
        # Seeking goes to the container's own index, which may know fewer key frames than the packets show: try the one
        # before, and at last the start, until decoding begins at or before the frame.
        for key in dict.fromkeys((nearest, max(nearest - 1, 0), 0)):
            self._container.seek(int(self._index.key_pts[key]), stream=self._stream, backward=True)
            self._begin_decoding()
            if not self._advance() or self._number <= number:
                return
        raise IndexMismatchError(f"frame {number} can't be reached by seeking")

    def _open(self) -> None:
        self._container = open_container(self._index.path)
        self._stream = self._container.streams[self._index.stream]
        # One thread: loader processes run side by side, and threads change when errors surface.
        self._stream.thread_type = "NONE"
        self._begin_decoding()

    def _begin_decoding(self) -> None:
        """Start decoding where the container stands; no frame has come yet (number -1)."""
        self._decoded = self._container.decode(self._stream)
        self._number, self._frame = -1, None

    def _advance(self) -> bool:
        """Decode one more frame; return False at the end. Raises VideoError if decoding fails."""
        try:
            frame = next(self._decoded, None)
        except av.FFmpegError as error:
            raise VideoError(
                f"{self._index.path}: only {self._number + 1} of {self._index.frame_count} frames could be decoded "
                f"({error.strerror}); fetch it again, or take it out of the annotation file"
            ) from error
        if frame is None:
            return False
        # A beat for every frame that was decoded, also for those that are passed over on the way to the wanted one.
        self._heart.beats += 1
        self._number, self._frame = self._number_of(frame), frame
        return True

    def _number_of(self, frame: av.VideoFrame) -> int:
        if self._sequential:
            return self._number + 1
        # By time, not by counting: after a seek the first frame may be another one than was expected.
        place = int(np.searchsorted(self._index.pts, frame.pts)) if frame.pts is not None else -1
        if place < 0 or place >= self._index.frame_count or self._index.pts[place] != frame.pts:
            raise IndexMismatchError(f"a frame of time {frame.pts} comes that no packet announces")
        return place

    def _accept_short_end(self, number: int) -> None:
        """Let the last frame stand in for a few missing ones. Raises VideoError if more are missing."""
        # Some files announce a last packet or two that give no frame: one repeated frame is better
        # than an unusable video.
        missing = self._index.frame_count - self._number - 1
        if self._frame is None or missing > TAIL_FRAMES:
            raise VideoError(
                f"{self._index.path}: only {self._number + 1} of {self._index.frame_count} frames could be decoded; "
                "fetch it again, or take it out of the annotation file"
            )
        logger.warning(
            "%s: the last %d of %d frames don't decode; the one before them is repeated",
            self._index.path, missing, self._index.frame_count,
        )  # fmt: skip
        self._number = number
