"""Frozen blocks that wait in host memory: on the device are those that are worked on, and the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adatad.memory.labels import label
from adatad.memory.offload import Copies, copies_for, pinned_rows
from adatad.memory.weights import WeightProvider

ALIGNMENT_BYTES = 256
"""Where a weight may begin in its block's memory."""


@dataclass
class PackedBlock:
    """A block's frozen weights as one piece of host memory, and where each lies in it."""

    parameters: list[nn.Parameter]
    shapes: list[torch.Size] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    size_bytes: int = 0
    memory: Tensor | None = None
    """None where weights have no values (meta)."""

    def __post_init__(self) -> None:
        for parameter in self.parameters:
            self.shapes.append(parameter.shape)
            self.offsets.append(self.size_bytes)
            self.size_bytes += -(-parameter.numel() * parameter.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def pack(self) -> None:
        """Move the weights out of the module, which keeps empty ones."""
        if not all(parameter.is_meta for parameter in self.parameters):
            self.memory = torch.empty(self.size_bytes, dtype=torch.uint8)
            for parameter, there in zip(self.parameters, self.views(self.memory), strict=True):
                there.copy_(parameter.detach())
        self.empty()

    def empty(self) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.data.new_empty(0)

    def views(self, memory: Tensor) -> list[Tensor]:
        """The weights in a copy of the block's memory."""
        pieces = zip(self.parameters, self.shapes, self.offsets, strict=True)
        return [
            memory[offset : offset + shape.numel() * parameter.itemsize].view(parameter.dtype).view(shape)
            for parameter, shape, offset in pieces
        ]


class StreamedBlocks(WeightProvider):
    """Provides frozen weights that come from the host, one block at a time."""

    def __init__(self, blocks: Sequence[nn.Module], first: int, home: nn.Parameter):
        """first: number of the first of `blocks`; home: a weight that is always on the device."""
        frozen = [[p for p in block.parameters() if not p.requires_grad] for block in blocks]
        self._packed = {first + number: PackedBlock(parameters) for number, parameters in enumerate(frozen)}
        for packed in self._packed.values():
            packed.pack()
        self._home = home
        self._copies: Copies | None = None
        self._coming: dict[int, tuple[Tensor, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model has its own copies in flight, and pins its own memory.
        return {**self.__dict__, "_copies": None, "_coming": {}}

    @contextmanager
    def materialized(self, blocks: range, following: range) -> Iterator[None]:
        for index in blocks:
            self._want(index)
        try:
            for index in blocks:
                memory, ticket = self._coming.pop(index)
                self._copies.wait(ticket)
                packed = self._packed[index]
                for parameter, here in zip(packed.parameters, packed.views(memory), strict=True):
                    parameter.data = here
                del memory
            for index in following:
                self._want(index)
            yield
        finally:
            for index in blocks:
                self._packed[index].empty()

    def _want(self, index: int) -> None:
        if index in self._coming:
            return
        packed, device = self._packed[index], self._home.device
        if self._copies is None:
            # Only now is known where copies go.
            self._copies = copies_for(device)
            self._pin(device)
        with label("frozen weights"):
            memory = torch.empty(packed.size_bytes, dtype=torch.uint8, device=device)
        ticket = None
        if packed.memory is not None:
            ticket = self._copies.start(memory, packed.memory)
        self._coming[index] = memory, ticket

    def _pin(self, device: torch.device) -> None:
        """Move all blocks to memory that copies to a GPU can run beside."""
        blocks = [packed for packed in self._packed.values() if packed.memory is not None]
        for size in {packed.size_bytes for packed in blocks} if device.type == "cuda" else ():
            alike = [packed for packed in blocks if packed.size_bytes == size]
            for packed, row in zip(alike, pinned_rows(len(alike), size, device, "frozen weights"), strict=True):
                packed.memory = row.copy_(packed.memory)
