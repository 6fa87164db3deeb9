"""Sources of the wave's weights: who provides the frozen ones of a block, and what autograd sees of trained ones.

Trained parameters may be sharded by torch (DTensor); one that isn't goes through all of this as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from adatad.memory.offload import Copies, copies_for, pinned_rows
from adatad.memory.scopes import memory_scope

ALIGNMENT_BYTES = 256
"""Bytes: a weight begins at a multiple of it in its block's memory."""


def gathered(parameter: Tensor) -> Tensor:
    """Return the full parameter, on the device of its mesh; its gradient is summed over ranks going back."""
    if not isinstance(parameter, DTensor):
        # A view: autograd's function must not return its inputs themselves.
        return parameter.view_as(parameter)
    mesh = parameter.device_mesh
    # Shards may wait in host memory.
    # Going back, each rank has its own part of the sum: `Partial` says so to torch.
    shards = laid_out_like(parameter, parameter.to_local().to(mesh.device_type))
    return shards.full_tensor(grad_placements=[Partial()] * mesh.ndim)


def laid_out_like(parameter: DTensor, part: Tensor) -> DTensor:
    """Return all ranks' parts as one tensor that lies as a parameter does; it shares their memory."""
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def local_of(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that may be sharded, detached."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(parameter: Tensor) -> Tensor:
    """Return this rank's part of a parameter, as autograd knows it: takes the gradient that `part_of_sum` makes."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.view_as(parameter)


@torch.no_grad()
def part_of_sum(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of the sum over ranks of a full parameter's gradient."""
    if not isinstance(parameter, DTensor):
        return gradient
    mesh = parameter.device_mesh
    # The gradient as one of the summands; laying it out as the parameter is sums it up and cuts it, in one collective.
    summed = DTensor.from_local(gradient, mesh, [Partial()] * mesh.ndim, run_check=False)
    return summed.redistribute(placements=parameter.placements).to_local().to(parameter.device)


def read_from_block(name: str) -> bool:
    """Return whether the wave reads a weight (its name in the backbone) from its block while that is materialized.

    Those of adapters come cast instead, through `TrainedWeights`.
    """
    return name.startswith("blocks.") and ".adapter." not in name


class TrainedWeights(nn.Module):
    """Module that returns the trained parameters, full and in their own dtype, as autograd knows them.

    It is called once in a forward pass. What engines do before and after any module (gathers of sharded weights,
    gradient hooks) they do to this one. Parameters are looked up by name in the module that owns them at every call,
    since engines put others in their place. Those of `only_parts` are read from the blocks themselves, while these are
    materialized; of them a rank's part is enough here, for the gradient to come back to.
    """

    def __init__(self, owner: nn.Module, names: list[str], only_parts: frozenset[str] = frozenset()):
        super().__init__()
        self.names, self.only_parts = names, only_parts
        # In a list, not registered: the owner's modules stay where they are in the model's tree.
        self._owner = [owner]

    def adopt(self) -> None:
        """Register the parameters here too, for an engine that looks at a module's own ones (and replaces none)."""
        # DeepSpeed's stage 3 gathers, and waits for gradients of, the parameters that a module itself has.
        for number, parameter in enumerate(self.parameters_used()):
            self.register_parameter(str(number), parameter)

    def parameters_used(self) -> list[nn.Parameter]:
        """Return the parameters as their owner has them now."""
        return [self._owner[0].get_parameter(name) for name in self.names]

    def forward(self) -> tuple[Tensor, ...]:
        """Return the trained parameters in the order of `names`."""
        pairs = zip(self.names, self.parameters_used(), strict=True)
        return tuple(
            part_of(parameter) if name in self.only_parts else gathered(parameter) for name, parameter in pairs
        )


class WeightProvider(Protocol):
    """Gives a wave the weights of the blocks that it is about to run. Engines that shard weights have their own."""

    def materialized(self, blocks: range, following: range) -> AbstractContextManager[None]:
        """Return a context in which these blocks' weights are whole, as the blocks' own parameters.

        following: blocks that will be wanted next; their weights may be fetched meanwhile.
        """

    def trained(self, weights: TrainedWeights) -> tuple[Tensor, ...]:
        """Return the trained weights as tensors that autograd knows."""
        return weights()


class ResidentWeights(WeightProvider):
    """All weights are on this rank's device all the time."""

    def materialized(self, blocks: range, following: range) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()


@dataclass
class PackedBlock:
    """A block's frozen weights as one piece of host memory, and where each lies in it."""

    parameters: list[nn.Parameter]
    shapes: list[torch.Size] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    size_bytes: int = 0
    memory: Tensor | None = None
    """The piece itself; None where weights have no values (meta)."""

    def __post_init__(self) -> None:
        for parameter in self.parameters:
            self.shapes.append(parameter.shape)
            self.offsets.append(self.size_bytes)
            self.size_bytes += -(-parameter.numel() * parameter.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def pack(self) -> None:
        """Move the weights out of the module, which keeps empty ones."""
        if not all(parameter.is_meta for parameter in self.parameters):
            self.memory = torch.empty(self.size_bytes, dtype=torch.uint8)
            # Not pinned yet: on which device the model will be isn't known here.
            for parameter, there in zip(self.parameters, self.views(self.memory), strict=True):
                there.copy_(parameter.detach())
        self.empty()

    def empty(self) -> None:
        """Leave no values in the module, whose weights are somewhere else."""
        for parameter in self.parameters:
            # The parameter stays the same object, so that names, hooks and optimizers still find it.
            parameter.data = parameter.data.new_empty(0)

    def views(self, memory: Tensor) -> list[Tensor]:
        """Return the weights in a copy of the block's memory."""
        pieces = zip(self.parameters, self.shapes, self.offsets, strict=True)
        return [
            memory[offset : offset + shape.numel() * parameter.itemsize].view(parameter.dtype).view(shape)
            for parameter, shape, offset in pieces
        ]


class StreamedBlocks(WeightProvider):
    """Provides frozen weights that come from the host, one block at a time."""

    def __init__(self, blocks: Sequence[nn.Module], first: int, home: nn.Parameter):
        """first: number of the first of `blocks`; home: a weight that is always on the device."""
        frozen = [
            [p for name, p in block.named_parameters() if not p.requires_grad and not name.startswith("adapter.")]
            for block in blocks
        ]
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
        """Bring these blocks' weights to the device, and begin with the `following` ones; drop them at the end."""
        # Wanted all at once, so that their copies follow one another without a gap.
        for index in blocks:
            self._fetch(index)
        try:
            for index in blocks:
                memory, ticket = self._coming.pop(index)
                self._copies.wait(ticket)
                packed = self._packed[index]
                # Views of one copy: a block comes over the bus as one piece.
                for parameter, here in zip(packed.parameters, packed.views(memory), strict=True):
                    parameter.data = here
                # The parameters alone hold the copy now, until they are emptied.
                del memory
            # Runs beside what is computed inside of the context.
            for index in following:
                self._fetch(index)
            yield
        finally:
            for index in blocks:
                self._packed[index].empty()

    def _fetch(self, index: int) -> None:
        """Begin to copy a block's weights to the device, unless they are on their way."""
        if index in self._coming:
            return
        packed, device = self._packed[index], self._home.device
        if self._copies is None:
            # Only now is known where copies go.
            self._copies = copies_for(device)
            self._pin(device)
        with memory_scope("frozen weights"):
            memory = torch.empty(packed.size_bytes, dtype=torch.uint8, device=device)
        ticket = None
        if packed.memory is not None:
            ticket = self._copies.start(memory, packed.memory)
        self._coming[index] = memory, ticket

    def _pin(self, device: torch.device) -> None:
        """Move all blocks to memory that copies to a GPU can run beside."""
        blocks = [packed for packed in self._packed.values() if packed.memory is not None]
        for size in {packed.size_bytes for packed in blocks} if device.type == "cuda" else ():
            # Nearly all blocks are of one size, and a few large pieces waste less pinned memory than many small ones.
            alike = [packed for packed in blocks if packed.size_bytes == size]
            for packed, row in zip(alike, pinned_rows(len(alike), size, device, "frozen weights"), strict=True):
                packed.memory = row.copy_(packed.memory)
