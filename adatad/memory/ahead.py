"""Frames of the next micro-batch, copied to a GPU and augmented on a second stream while the current one is computed.

That takes the memory of one more micro-batch's frames and of what augmentation works with. So it is done where memory
isn't what a spec saves: under the policies that keep activations of whole windows and compute no block again for lack
of room. Everywhere else, and on CPUs, frames are copied and augmented when their turn comes, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adatad.data.augment import augment, work_bytes
from adatad.data.dataset import Batch
from adatad.memory.frames import HostFrames, placed
from adatad.spec.schema import DataSpec, MemorySpec, Spec

ROOMY_POLICIES = ("none", "selective")


def looks_ahead(data: DataSpec, memory: MemorySpec) -> bool:
    """Whether frames are augmented ahead on a GPU: where there is something to augment, and room for it."""
    changes = data.augment and (data.augment.flip or data.augment.rand_augment or data.augment.color_jitter)
    return bool(changes) and memory.frames == "device" and memory.policy in ROOMY_POLICIES


def ahead_bytes(data: DataSpec, memory: MemorySpec, frame_bytes: int, windows: int) -> int:
    """Of a GPU's memory beside the frames in work. frame_bytes: of a micro-batch of that many windows."""
    return frame_bytes + work_bytes(frame_bytes // windows) if looks_ahead(data, memory) else 0


class _Coming(NamedTuple):
    """Frames on their way on the second stream, and the end of that."""

    batch: Batch
    frames: Tensor
    ready: torch.cuda.Event


class FramesAhead:
    """Where a step gets a micro-batch's frames from. As an iterator: the batches that `follow` was given.

    Frames live in the second stream's memory, two micro-batches at a time: those in work and those that come. Either
    stream waits for the other's event: the computing one before it reads new frames, the second one before it takes the
    memory of frames that were computed with.
    """

    def __init__(self, spec: Spec, device: torch.device):
        self.spec, self.device = spec, device
        self.active = device.type == "cuda" and looks_ahead(spec.data, spec.memory)
        self.waited_seconds = 0.0
        """For batches that were looked for within steps, since this was last set to 0."""
        self._batches: Iterator[Batch] = iter(())
        self._found: list[Batch] = []
        self._error: Exception | None = None
        self._stream = torch.cuda.Stream() if self.active else None
        self._coming: _Coming | None = None
        self._in_work: Tensor | None = None
        self._done_with: tuple[Tensor | None, torch.cuda.Event] | None = None

    # Batches

    def follow(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, which `look` may ask for one earlier."""
        if not self.active:
            return batches
        self._batches = batches
        return self

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._found:
            return self._found.pop()
        if self._error:
            error, self._error = self._error, None
            raise error
        return next(self._batches)

    def look(self) -> None:
        """When all of a step's forward and backward passes are queued: begin with the next step's first frames. An
        error of the loader is raised by the next step, which it belongs to."""
        if not self.active or self._found or self._error:
            return
        began = time.monotonic()
        try:
            self._found.append(next(self._batches))
        except StopIteration:
            return
        except Exception as error:
            self._error = error
            return
        finally:
            self.waited_seconds += time.monotonic() - began
        self._start(self._found[0])

    # Frames

    def take(self, batch: Batch, following: Batch | None = None) -> Tensor | HostFrames:
        """A micro-batch's frames where the spec wants them, augmented; work that is queued from here on may read them.
        Those of the following one are begun."""
        if not self.active:
            return self._now(batch)
        computing, coming, self._coming = torch.cuda.current_stream(), self._coming, None
        # What computes with the frames before these has all been queued.
        self._done_with = self._in_work, computing.record_event()
        if coming is not None and coming.batch is batch:
            computing.wait_event(coming.ready)
            frames = self._in_work = coming.frames
        else:
            frames, self._in_work = self._now(batch), None
        if following is not None:
            self._start(following)
        return frames

    def _now(self, batch: Batch) -> Tensor | HostFrames:
        """On the computing stream."""
        frames = placed(batch.frames, self.spec.memory, self.device)
        augment(frames.frames if isinstance(frames, HostFrames) else frames, batch.augmentations, self.device)
        return frames

    def _start(self, batch: Batch) -> None:
        if self._done_with:
            # Its memory goes back to the second stream, which comes after this event from here on.
            self._stream.wait_event(self._done_with[1])
            self._done_with = None
        with torch.cuda.stream(self._stream):
            frames = torch.empty(batch.frames.shape, dtype=batch.frames.dtype, device=self.device)
            frames.copy_(batch.frames, non_blocking=True)
            augment(frames, batch.augmentations, self.device)
            self._coming = _Coming(batch, frames, self._stream.record_event())
