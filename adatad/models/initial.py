"""Parameters that a file will fill: built without being drawn, while every later draw stays what it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SCRATCH_NUMBERS = 2**16
"""As many as a core's cache holds."""
uniform_ = torch.ops.aten.uniform_.default


class DrawsAside(TorchDispatchMode):
    """While active, uniform draws into CPU tensors go to a small scratch tensor in their place: the generator ends
    where it would, and the memory of the tensors stays untouched, and undefined.

    Other initialisations (zeros, ones) are done as they are; others that draw are refused.
    """

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Operators that don't draw, and meta tensors, which have no values, go their way.
        if torch.Tag.nondeterministic_seeded not in operator.tags or args[0].is_meta:
            return operator(*args, **(kwargs or {}))
        if operator is not uniform_ or args[0].device.type != "cpu":
            raise NotImplementedError(f"{operator}: draws that can't be put aside")
        tensor, bounds = args[0], args[1:]
        draw_aside(tensor, *bounds, **(kwargs or {}))
        return tensor


def draw_aside(tensor: Tensor, *bounds: float, **kwargs: Any) -> None:
    """Draw as many numbers as the tensor has, and drop them: one number is one step of the CPU's generator."""
    # In pieces that stay in the cache: the draws cost time, writing them to memory would cost more.
    scratch = torch.empty(min(SCRATCH_NUMBERS, tensor.numel()), dtype=tensor.dtype)
    for start in range(0, tensor.numel(), SCRATCH_NUMBERS):
        uniform_(scratch[: tensor.numel() - start], *bounds, **kwargs)
