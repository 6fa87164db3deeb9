"""AdamW whose moments are elsewhere, or in another form, between steps: some parameters at a time have them in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatad.memory.offload import pieces

MOMENTS = ("exp_avg", "exp_avg_sq")


class PiecewiseAdamW(torch.optim.AdamW):
    """The arithmetic is torch's own; a subclass says where `state` has the moments before and after it."""

    piece_bytes: int | None = None
    """Of parameters that are updated together at most; None: as `pieces` has it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        groups = self.param_groups
        try:
            for group in groups:
                for parameters in pieces(group["params"], self.piece_bytes):
                    self.param_groups = [{**group, "params": parameters}]
                    self._fetch(parameters)
                    super().step(closure)
                    self._put_away(parameters)
        finally:
            self.param_groups = groups

    def store(self, parameters: Sequence[Tensor]) -> None:
        """Put away moments that were loaded into `state`. Whoever reads them there next finds them complete."""
        raise NotImplementedError

    def _fetch(self, parameters: Sequence[Tensor]) -> None:
        """Put the moments of a piece into `state`, as torch's AdamW wants them."""
        raise NotImplementedError

    def _put_away(self, parameters: Sequence[Tensor]) -> None:
        """Take them from there again."""
        raise NotImplementedError
