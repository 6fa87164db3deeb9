"""Frames of a video on their way to a model: decoded and made small by a thread beside it, a few clips at a time.

A source gives frames by number: a file that was opened (`adatad.data.decode.VideoReader`), or an array in memory.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from adatad.data.resize import fit_frames
from adatad.data.timeline import Timeline

T = TypeVar("T")

CHUNK_FRAMES = 16
"""Frames that are held at full size at once."""
JOIN_SECONDS = 10.0
"""Longest wait, at the end, for a thread that is inside a library."""


class VideoSource(Protocol):
    """Frames of one video by number; a number k is shown at k / the rate that the source was opened with."""

    frame_count: int
    """How many numbers there are."""
    timeline: Timeline

    def chunks(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        """Yield frames in the order asked for, `chunk_frames` at a time: uint8 [n, height, width, 3], RGB."""


class ArraySource:
    """Frames in memory as a source.

    images: uint8 [n, height, width, 3], RGB; fps: how many are shown a second; rate: numbers a second, None to count
    frames as they are stored.
    """

    def __init__(self, images: np.ndarray, fps: float, rate: float | None):
        self._images, self._rate = images, rate
        self.timeline = Timeline(len(images), np.arange(len(images)) / fps, len(images) / fps)
        self.frame_count = len(images) if rate is None else self.timeline.count_at(rate)

    def chunks(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        """Yield frames as `VideoSource.chunks`."""
        indices = indices if self._rate is None else self.timeline.frames_of(indices, self._rate)
        for start in range(0, len(indices), chunk_frames):
            yield self._images[indices[start : start + chunk_frames]]


def small_frames(source: VideoSource, indices: np.ndarray, size_pixels: int, group_frames: int) -> Iterator[Tensor]:
    """Yield frames as the model sees them, `group_frames` at a time and the rest at the end: uint8 [3, n, size, size].

    No more than a group and a chunk at full size are held. Raises what the source does.
    """
    group: list[Tensor] = []
    held = 0
    for images in source.chunks(indices, CHUNK_FRAMES):
        part = fit_frames(images, size_pixels)
        while part.shape[1]:
            piece, part = part[:, : group_frames - held], part[:, group_frames - held :]
            group.append(piece)
            held += piece.shape[1]
            if held == group_frames:
                yield torch.cat(group, dim=1)
                group, held = [], 0
    if group:
        yield torch.cat(group, dim=1)


def cut_clips(frames: Tensor, clip_frames: int) -> Tensor:
    """Cut frames into clips: [3, n, height, width] -> [n / clip_frames, 3, clip_frames, height, width]."""
    return frames.unflatten(1, (-1, clip_frames)).transpose(0, 1)


@contextmanager
def made_ahead(items: Iterable[T], depth: int = 1) -> Iterator[Iterator[T]]:
    """Have items made by a thread, `depth` of them beside the one in use and the one that is being made.

    An error in the thread is raised where the next item is asked for. At the end of the context the thread has stopped,
    but for one that hangs in a library.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def make() -> None:
        """Hand over every item, then the end or the error."""
        try:
            for item in items:
                ready.put((item, None))
                # Else this name would hold the last item while the next one is made.
                del item
                if stopped.is_set():
                    return
            ready.put((_END, None))
        # All of them: an error that stays in the thread would look like a hang.
        except BaseException as error:
            ready.put((_END, error))

    def taken() -> Iterator[T]:
        """Yield the items in order."""
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            del item

    # A daemon: a thread that hangs in a library must not keep the process from ending.
    thread = threading.Thread(target=make, name="frames", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        _empty_until_done(ready, thread)


def _empty_until_done(ready: queue.Queue, thread: threading.Thread) -> None:
    """Take what a thread still hands over, which would wait for room for ever, until it ends."""
    waited, step = 0.0, 0.02
    while thread.is_alive() and waited < JOIN_SECONDS:
        while not ready.empty():
            ready.get_nowait()
        thread.join(step)
        waited += step


_END = object()
