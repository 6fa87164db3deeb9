"""A step's inputs on their way to the device: frames whole or tile by tile, frames of the next micro-batch ahead of
time, and masks and targets packed together.

Ahead of time, frames of the next micro-batch are copied to a GPU and augmented on a second stream while the current one
is computed. Memory of a second stream is no other's: one micro-batch's frames and what augmentation works with are
taken all the time, also while a step is at its fullest. So it is done where memory isn't what a spec saves: under the
policies that keep activations of whole windows, and not in mode full, which may read frames in backward. Everywhere
else, and on CPUs, frames are copied and augmented when their turn comes, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatad.data.augment import augment, work_bytes
from adatad.data.dataset import Batch
from adatad.memory.offload import Copies, pinned
from adatad.memory.scopes import WAIT, memory_scope, timed_part
from adatad.memory.tiles import Tile
from adatad.spec.schema import MemorySpec, Spec

ROOMY_POLICIES = ("none", "selective")
"""Policies that keep activations of whole windows: one more micro-batch of frames is little beside these."""
ALIGNMENT = 16
"""Bytes: every tensor in a buffer begins at a multiple of it, where views of any dtype are possible."""


class HostFrames:
    """Frames, uint8 [b, 3, frames, height, width], that stay in host memory and come to `device` tile by tile.

    Not a tensor, so that no engine moves it to the device with a model's other inputs.
    """

    requires_grad = False

    def __init__(self, frames: Tensor, device: torch.device):
        self.frames, self.device = frames, device
        self.shape, self.dtype = frames.shape, frames.dtype

    def __len__(self) -> int:
        return len(self.frames)


def place_frames(frames: Tensor, memory: MemorySpec, device: torch.device) -> Tensor | HostFrames:
    """Return a batch's frames where the spec wants them."""
    return HostFrames(frames, device) if memory.frames == "host" else frames.to(device, non_blocking=True)


def tile_frames(
    frames: Tensor | HostFrames, tiles: Sequence[Tile], clip_frames: int, copies: Copies
) -> Iterator[tuple[Tile, Tensor]]:
    """Yield tiles with their frames on the device, uint8 [1, 3, frames of the tile, height, width].

    If they come from the host, the next tile's are on their way meanwhile.
    """
    if isinstance(frames, Tensor):
        for tile in tiles:
            first, last = _span(frames, tile, clip_frames)
            yield tile, frames[tile.window : tile.window + 1, :, first:last]
        return
    # One tile ahead and no more: each holds its frames on the device.
    coming = [_start_copies(frames, tile, clip_frames, copies) for tile in tiles[:1]]
    for number, tile in enumerate(tiles):
        clips, tickets = coming.pop()
        # Begun before the wait for this tile's own copies: the bus works while the tile is computed.
        coming += [
            _start_copies(frames, following, clip_frames, copies) for following in tiles[number + 1 : number + 2]
        ]
        for ticket in tickets:
            copies.wait(ticket)
        yield tile, clips
        # Else this name would hold the tile's frames while the next ones are waited for.
        del clips


def _start_copies(source: HostFrames, tile: Tile, clip_frames: int, copies: Copies) -> tuple[Tensor, list[Any]]:
    """Begin to copy a tile's frames, a channel at a time: each is one piece of memory on both sides."""
    first, last = _span(source, tile, clip_frames)
    with memory_scope("frames"):
        clips = torch.empty(1, 3, last - first, *source.shape[-2:], dtype=source.dtype, device=source.device)
    # A slice of frames isn't contiguous over channels; by channel it is, and copies need no staging.
    pieces = zip(clips[0], source.frames[tile.window, :, first:last], strict=True)
    return clips, [copies.start(to, piece) for to, piece in pieces]


def _span(frames: Tensor | HostFrames, tile: Tile, clip_frames: int) -> tuple[int, int]:
    """Return the first frame of a tile in its window, and the one after its last."""
    # Tiles count clips over all windows of the batch, frames begin at 0 in each window.
    first = tile.start * clip_frames - tile.window * frames.shape[2]
    return first, first + (tile.stop - tile.start) * clip_frames


def looks_ahead(spec: Spec, memory: MemorySpec) -> bool:
    """Return whether frames are augmented ahead on a GPU under a plan's `memory`: there is something to augment, and
    room for it."""
    augment = spec.data.augment
    changes = augment and (augment.flip or augment.rand_augment or augment.color_jitter)
    roomy = memory.policy in ROOMY_POLICIES and memory.frames == "device"
    return bool(changes) and roomy and spec.model.backbone.mode != "full"


def ahead_bytes(spec: Spec, memory: MemorySpec, frame_bytes: int, windows: int) -> int:
    """Return the bytes that this takes of a GPU all the time. frame_bytes: of a micro-batch of that many windows."""
    return frame_bytes + work_bytes(frame_bytes // windows) if looks_ahead(spec, memory) else 0


class _Coming(NamedTuple):
    """Frames on their way on the second stream, and the event of their arrival."""

    batch: Batch
    frames: Tensor
    ready: torch.cuda.Event


class FramesAhead:
    """The frames of a step's micro-batches; those of the next one ahead of time, where a spec has room for that.

    A step calls `take` before each forward pass and `forward_queued` behind it, and at its end `prefetch_next_step`. As
    an iterator: the batches that `wrap_batches` was given.

    Frames lie in the second stream's memory, where the next ones take the place of those that a forward pass has read.
    Either stream waits for the other's event: the computing one before it reads new frames, the second one before it
    writes where frames were read.
    """

    def __init__(self, spec: Spec, device: torch.device):
        self.spec, self.device = spec, device
        self.active = device.type == "cuda" and looks_ahead(spec, spec.memory)
        self.waited_seconds = 0.0
        """Seconds that `prefetch_next_step` has waited for batches, since this was last set to 0."""
        self._batches: Iterator[Batch] = iter(())
        self._found: list[Batch] = []
        """The next step's first batch, at most one, if it was asked for before its step."""
        self._error: Exception | None = None
        self._stream = torch.cuda.Stream() if self.active else None
        self._coming: _Coming | None = None
        self._in_work: Tensor | None = None
        """Frames that were taken; held until the second stream knows of the event below."""
        self._read: torch.cuda.Event | None = None
        """Event after which nothing reads the frames that were taken."""

    # Batches

    def wrap_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the same batches, of which `prefetch_next_step` may ask for one earlier."""
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

    def prefetch_next_step(self) -> None:
        """Begin with the next step's first frames; called when all of a step's passes are queued.

        An error of the loader is raised by the next step, which it belongs to.
        """
        if not self.active or self._found or self._error:
            return
        began = time.monotonic()
        try:
            with timed_part(WAIT):
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
        """Return a micro-batch's frames where the spec wants them, augmented, for the forward pass queued next."""
        # Batches that came another way (evaluation, the first of a run) are placed and augmented here and now.
        coming = self._coming
        if coming is None or coming.batch is not batch:
            frames = place_frames(batch.frames, self.spec.memory, self.device)
            augment(frames.frames if isinstance(frames, HostFrames) else frames, batch.augmentations, self.device)
            return frames
        torch.cuda.current_stream().wait_event(coming.ready)
        self._coming, self._in_work = None, coming.frames
        return coming.frames

    def forward_queued(self, following: Batch | None = None) -> None:
        """Say that nothing queued from here on reads the frames that were taken, and begin with the following ones."""
        if not self.active:
            return
        self._read = torch.cuda.current_stream().record_event()
        if following is not None:
            self._start(following)

    def _start(self, batch: Batch) -> None:
        """Queue copy and augmentation of a batch's frames on the second stream."""
        # The memory of frames that were read goes back to the second stream, which comes after that from here on.
        self._stream.wait_event(self._read)
        # Freed here, on the host; the second stream has just been told to wait until they were read.
        self._in_work = None
        with torch.cuda.stream(self._stream):
            # Allocated under the second stream, which has memory of its own in PyTorch's allocator: neither stream can
            # be given what the other still reads.
            frames = torch.empty(batch.frames.shape, dtype=batch.frames.dtype, device=self.device)
            frames.copy_(batch.frames, non_blocking=True)
            augment(frames, batch.augmentations, self.device)
            self._coming = _Coming(batch, frames, self._stream.record_event())


class InputCopies:
    """Packs some tensors into pinned memory and copies them to the device at once, without a wait.

    Buffers are made in the first step and used again in every later one. No buffer is written to twice in a step: what
    makes writing safe in the next one is that the host has read a value in between that the device computed after all
    copies. `next_step` says so.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._free: list[Tensor] = []
        self._used: list[Tensor] = []

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors on the device, in memory that they share. On a CPU they stay where they are."""
        if self.device.type == "cpu":
            return list(tensors)
        # Laid out one behind the other, each where any dtype may begin.
        starts, size = [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        # One pinned buffer and one copy: each small copy of its own would cost the host as much as a large one.
        buffer = self._buffer(size)
        for start, tensor in zip(starts, tensors, strict=True):
            _view(buffer, start, tensor).copy_(tensor)
        there = torch.empty(size, dtype=torch.uint8, device=self.device)
        there.copy_(buffer[:size], non_blocking=True)
        return [_view(there, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]

    def next_step(self) -> None:
        """Say that all copies so far are complete: the host has read a value that was computed after them."""
        self._free, self._used = self._free + self._used, []

    def _buffer(self, size: int) -> Tensor:
        """Return pinned bytes, that many or more, until the next step."""
        # Any that is large enough: sizes differ little from step to step.
        fitting = [buffer for buffer in self._free if len(buffer) >= size]
        if fitting:
            buffer = fitting[0]
            self._free = [other for other in self._free if other is not buffer]
        else:
            buffer = pinned(torch.Size((size,)), torch.uint8, self.device, "masks and targets")
        self._used.append(buffer)
        return buffer


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """Return a view of a buffer's bytes as a tensor of another's shape and dtype."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
