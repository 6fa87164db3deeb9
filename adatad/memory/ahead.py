"""Frames of the next micro-batch, copied to a GPU and augmented on a second stream while the current one is computed.

Memory of a second stream is no other's: one micro-batch's frames and what augmentation works with are taken all the
time, also while a step is at its fullest. So it is done where memory isn't what a spec saves: under the policies that
keep activations of whole windows, and not in mode full, which may read frames in backward. Everywhere else, and on
CPUs, frames are copied and augmented when their turn comes, in the same order.
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
from adatad.spec.schema import MemorySpec, Spec

ROOMY_POLICIES = ("none", "selective")


def looks_ahead(spec: Spec, memory: MemorySpec) -> bool:
    """Whether frames are augmented ahead on a GPU under a plan's `memory`: where there is something to augment, and
    room for it."""
    augment = spec.data.augment
    changes = augment and (augment.flip or augment.rand_augment or augment.color_jitter)
    roomy = memory.policy in ROOMY_POLICIES and memory.frames == "device"
    return bool(changes) and roomy and spec.model.backbone.mode != "full"


def ahead_bytes(spec: Spec, memory: MemorySpec, frame_bytes: int, windows: int) -> int:
    """Of a GPU's memory, at all moments of a step. frame_bytes: of a micro-batch of that many windows."""
    return frame_bytes + work_bytes(frame_bytes // windows) if looks_ahead(spec, memory) else 0


class _Coming(NamedTuple):
    """Frames on their way on the second stream, and the end of the way."""

    batch: Batch
    frames: Tensor
    ready: torch.cuda.Event


class FramesAhead:
    """Where a step gets a micro-batch's frames from. As an iterator: the batches that `follow` was given.

    Frames lie in the second stream's memory, where the next ones take the place of those that a forward pass has read.
    Either stream waits for the other's event: the computing one before it reads new frames, the second one before it
    writes where frames were read.
    """

    def __init__(self, spec: Spec, device: torch.device):
        self.spec, self.device = spec, device
        self.active = device.type == "cuda" and looks_ahead(spec, spec.memory)
        self.waited_seconds = 0.0
        """For batches that were looked for within steps, since this was last set to 0."""
        self._batches: Iterator[Batch] = iter(())
        self._found: list[Batch] = []
        self._error: Exception | None = None
        self._stream = torch.cuda.Stream() if self.active else None
        self._coming: _Coming | None = None
        self._in_work: Tensor | None = None
        self._read: torch.cuda.Event | None = None

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

    def take(self, batch: Batch) -> Tensor | HostFrames:
        """A micro-batch's frames where the spec wants them, augmented, for a forward pass that is queued next."""
        coming = self._coming
        if coming is None or coming.batch is not batch:
            frames = placed(batch.frames, self.spec.memory, self.device)
            augment(frames.frames if isinstance(frames, HostFrames) else frames, batch.augmentations, self.device)
            return frames
        torch.cuda.current_stream().wait_event(coming.ready)
        self._coming, self._in_work = None, coming.frames
        return coming.frames

    def forward_queued(self, following: Batch | None = None) -> None:
        """Nothing that is queued from here on reads the frames that were taken. Those of the following micro-batch are
        begun."""
        if not self.active:
            return
        self._read = torch.cuda.current_stream().record_event()
        if following is not None:
            self._start(following)

    def _start(self, batch: Batch) -> None:
        # The memory of frames that were read goes back to the second stream, which comes after that from here on.
        self._stream.wait_event(self._read)
        self._in_work = None
        with torch.cuda.stream(self._stream):
            frames = torch.empty(batch.frames.shape, dtype=batch.frames.dtype, device=self.device)
            frames.copy_(batch.frames, non_blocking=True)
            augment(frames, batch.augmentations, self.device)
            self._coming = _Coming(batch, frames, self._stream.record_event())
