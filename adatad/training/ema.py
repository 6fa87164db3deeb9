"""Exponential moving average of the trained parameters; frozen ones need none."""

from __future__ import annotations

import torch
from torch import Tensor


class Ema:
    """Averages that start as the parameters are when this is made, without warm-up.

    They have the engine's layout: of a parameter that is sharded, each rank averages its own part.
    """

    def __init__(self, masters: dict[str, Tensor], decay: float):
        self.decay = decay
        self.averages = {name: master.clone() for name, master in masters.items()}

    @torch.no_grad()
    def update(self, masters: dict[str, Tensor]) -> None:
        """After an optimizer step: average = decay x average + (1 - decay) x parameter."""
        averages = list(self.averages.values())
        # Not lerp: changes are near the rounding of fp32, and the reference multiplies and adds.
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, [masters[name] for name in self.averages], alpha=1 - self.decay)

    def load(self, averages: dict[str, Tensor]) -> None:
        for name, average in self.averages.items():
            average.copy_(averages[name])
