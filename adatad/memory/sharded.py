"""Trained parameters that torch has sharded (DTensor), as the wave reads them outside their modules' hooks.

A parameter that isn't sharded goes through all of this as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
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
