"""Decoding behind one small interface: open a video, ask for frames by number, get RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from adatad.errors import UserError


class VideoError(UserError):
    """A video that can't be read; the message names the file."""


class VideoReader:
    """Frames of the first video stream by number, read in order from the start with PyAV."""

    def __init__(self, container: av.container.InputContainer, path: Path):
        if not container.streams.video:
            raise VideoError(f"{path}: holds no video stream")
        self.path = path
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.thread_type = "NONE"
        self.frame_count = self._stream.frames or self._count_packets()
        if not self.frame_count:
            raise VideoError(f"{path}: holds no frames")

    def _count_packets(self) -> int:
        count = sum(packet.size > 0 for packet in self._container.demux(self._stream))
        self._container.seek(0)
        return count

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """Frames in the order asked for, repeats included: int [n] -> uint8 [n, height, width, 3], RGB."""
        indices = np.asarray(indices)
        if not len(indices):
            raise ValueError(f"{self.path}: no frames were asked for")
        wanted, last = set(indices.tolist()), int(indices.max())
        found: dict[int, np.ndarray] = {}
        # One converter for the whole file: a new one for each frame costs as much as decoding.
        converter = VideoReformatter()
        self._container.seek(0)
        for number, frame in enumerate(self._container.decode(self._stream)):
            if number in wanted:
                found[number] = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if number >= last:
                break
        missing = wanted - found.keys()
        if missing:
            raise VideoError(f"{self.path}: frame {min(missing)} was asked for, but only {len(found)} could be decoded")
        return np.stack([found[index] for index in indices.tolist()])


@contextmanager
def open_video(path: str | Path) -> Iterator[VideoReader]:
    """Open a video for as long as the context lasts. Raises VideoError, which names the file."""
    try:
        container = av.open(str(path))
    except (OSError, av.FFmpegError) as error:
        raise VideoError(f"{path}: can't be opened as a video: {error}") from error
    with container:
        try:
            yield VideoReader(container, Path(path))
        except av.FFmpegError as error:
            raise VideoError(f"{path}: can't be decoded: {error}") from error
