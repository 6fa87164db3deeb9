"""Where the wave's weights come from: who provides the frozen ones of a block, and what autograd sees of trained ones.

Trained parameters may be sharded by torch (DTensor); one that isn't goes through all of this as it is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, on the device of its mesh; its gradient is summed over ranks going back."""
    if not isinstance(parameter, DTensor):
        return parameter.view_as(parameter)
    mesh = parameter.device_mesh
    # Shards may wait in host memory.
    shards = laid_out_like(parameter, parameter.to_local().to(mesh.device_type))
    return shards.full_tensor(grad_placements=[Partial()] * mesh.ndim)


def laid_out_like(parameter: DTensor, part: Tensor) -> DTensor:
    """All ranks' parts as one tensor that lies as a parameter does; of the same memory."""
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded, out of autograd's sight."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, as autograd knows it: takes the gradient that `part_of_sum` makes."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.view_as(parameter)


@torch.no_grad()
def part_of_sum(gradient: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of the sum over ranks of a whole parameter's gradient."""
    if not isinstance(parameter, DTensor):
        return gradient
    mesh = parameter.device_mesh
    summed = DTensor.from_local(gradient, mesh, [Partial()] * mesh.ndim, run_check=False)
    return summed.redistribute(placements=parameter.placements).to_local().to(parameter.device)


def read_from_block(name: str) -> bool:
    """Return whether the wave reads a weight (its name in the backbone) from its block while that is materialized.

    Those of adapters come cast instead, through `TrainedWeights`.
    """
    return name.startswith("blocks.") and ".adapter." not in name


class TrainedWeights(nn.Module):
    """Called once a step: the trained parameters, whole and in their own dtype, as tensors that autograd knows.

    What calls a module before and after (gathers of sharded weights, gradient hooks) works on this one as on any other.
    Parameters are looked up by name in the module that owns them at every call: engines put others in their place.
    Those of `only_parts` are read from the blocks themselves, while these are whole; of these a rank's part is enough
    here, for the gradient to come back to.
    """

    def __init__(self, owner: nn.Module, names: list[str], only_parts: frozenset[str] = frozenset()):
        super().__init__()
        self.names, self.only_parts = names, only_parts
        # In a list, not registered: the owner's modules stay where they are in the model's tree.
        self._owner = [owner]

    def adopt(self) -> None:
        """Own the parameters too, for an engine that looks at a module's own ones (and puts no others in place)."""
        for number, parameter in enumerate(self.parameters_used()):
            self.register_parameter(str(number), parameter)

    def parameters_used(self) -> list[nn.Parameter]:
        return [self._owner[0].get_parameter(name) for name in self.names]

    def forward(self) -> tuple[Tensor, ...]:
        pairs = zip(self.names, self.parameters_used(), strict=True)
        return tuple(part_of(parameter) if name in self.only_parts else whole(parameter) for name, parameter in pairs)


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
        return nullcontext()
