"""Small results of forward passes on their way to the host, while the device goes on with the next pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adatad.memory.offload import pinned

PASSES = 2
"""Passes whose results can be on their way: one is read while the next one's copies are queued."""


class Results(NamedTuple):
    """Copies that were begun, and what tells that they are complete."""

    tensors: list[Tensor]
    done: torch.cuda.Event | None

    def wait(self) -> list[Tensor]:
        """Return the tensors in host memory, valid until `PASSES` later copies are begun."""
        if self.done is not None:
            self.done.synchronize()
        return self.tensors


class ResultCopies:
    """Copies to pinned memory, which is made in the first passes and used again in turn."""

    def __init__(self, device: torch.device):
        self.device = device
        # The one used longest ago comes first.
        self._buffers: list[list[Tensor]] = []

    def start(self, tensors: Sequence[Tensor]) -> Results:
        """Begin to copy tensors of the device; those of a CPU are taken as they are. Call it after `wait` was called on
        what was begun `PASSES` calls before."""
        if self.device.type != "cuda":
            return Results(list(tensors), None)
        buffers = self._next_buffers(tensors)
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        # Waited for by event and not by stream: the next pass is queued behind these copies already.
        return Results(buffers, torch.cuda.current_stream().record_event())

    def _next_buffers(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return buffers of the tensors' shapes: those whose use lies longest back, unless shapes have changed."""
        old = self._buffers.pop(0) if len(self._buffers) == PASSES else []
        if [(buffer.shape, buffer.dtype) for buffer in old] != [(tensor.shape, tensor.dtype) for tensor in tensors]:
            old = [pinned(tensor.shape, tensor.dtype, self.device, "results") for tensor in tensors]
        self._buffers.append(old)
        return old
