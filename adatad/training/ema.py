"""Exponential moving average of the trained parameters; frozen ones need none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages that start as the parameters are when this is made, without warm-up."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.averages = {name: p.detach().clone() for name, p in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After an optimizer step: average = decay x average + (1 - decay) x parameter."""
        trained = _trained(model)
        averages = list(self.averages.values())
        # Not lerp: changes are near the rounding of fp32, and the reference multiplies and adds.
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, [trained[name].detach() for name in self.averages], alpha=1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averages in place of its parameters, which come back afterwards."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in _trained(model).items():
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        return self.averages

    def load_state(self, averages: dict[str, Tensor]) -> None:
        for name, average in self.averages.items():
            average.copy_(averages[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
