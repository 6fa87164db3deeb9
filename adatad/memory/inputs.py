"""Small inputs of a training step (masks, targets) on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adatad.memory.offload import pinned

ALIGNMENT = 16
"""Bytes that every tensor in a buffer begins at a multiple of: views of any dtype are possible there."""


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
        """The tensors on the device, in memory that they share. Those of a CPU stay where they are."""
        if self.device.type == "cpu":
            return list(tensors)
        starts, size = [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        buffer = self._buffer(size)
        for start, tensor in zip(starts, tensors, strict=True):
            _part(buffer, start, tensor).copy_(tensor)
        there = torch.empty(size, dtype=torch.uint8, device=self.device)
        there.copy_(buffer[:size], non_blocking=True)
        return [_part(there, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]

    def next_step(self) -> None:
        """All copies so far are complete: the host has read a value that was computed after them."""
        self._free, self._used = self._free + self._used, []

    def _buffer(self, size: int) -> Tensor:
        """Pinned bytes, that many or more, until the next step."""
        fitting = [buffer for buffer in self._free if len(buffer) >= size]
        if fitting:
            buffer = fitting[0]
            self._free = [other for other in self._free if other is not buffer]
        else:
            buffer = pinned(torch.Size((size,)), torch.uint8, self.device, "masks and targets")
        self._used.append(buffer)
        return buffer


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """A view of a buffer's bytes as a tensor of another's shape and dtype."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
