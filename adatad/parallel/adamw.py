"""AdamW's state as plain tensors by parameter name, for engines that use torch's optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Moments = dict[str, dict[str, Tensor]]


@torch.no_grad()
def load_adamw(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], masters: dict[str, Tensor], moments: Moments
) -> None:
    """Put parameters and moments into an optimizer's parameters (sharded ones: this rank's parts)."""
    # The step counter stays on the CPU unless the update is fused, as the optimizer itself keeps it.
    fused = optimizer.defaults["fused"]
    for parameter, name in names.items():
        local_of(parameter).copy_(masters[name])
        if name in moments:
            optimizer.state[parameter] = {
                key: tensor.to(parameter.device if fused else "cpu", copy=True)
                if key == "step"
                else like(parameter, tensor)
                for key, tensor in moments[name].items()
            }


def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, part: Tensor) -> Tensor:
    """A copy of this rank's part in the parameter's layout."""
    fresh = torch.empty_like(parameter.detach())
    local_of(fresh).copy_(part)
    return fresh
