"""Stochastic depth of the backbone: which clips drop which residual branches, drawn once for a whole batch.

The draws are made on the host, from keys that are there, so a branch that all clips at hand drop isn't computed, and
nobody waits for the device to learn it. Each draw is that of `adatad.models.draws.uniform` for the clip's key and the
branch's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from adatad.models.draws import clip_keys, uniforms


class Drops:
    """The draws of all branches (two a block, attention first) for all clips of a batch."""

    def __init__(self, names: list[str], rates: list[float], keys: Tensor, clips: range):
        """names and rates: of branches; keys: int64 [b] of windows, in host memory; clips: their numbers in each
        window."""
        self.names, self.rates, self.keys, self.clips = names, rates, keys, clips
        self.kept: list[list[bool]] = self._is_kept(keys).tolist()
        """By branch and clip, those of a window next to each other."""
        self._factors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def block(self, index: int, start: int, stop: int) -> BlockDrops:
        """Of a block's branches, for clips `start` to `stop` - 1."""
        return BranchDrop(self, 2 * index, start, stop), BranchDrop(self, 2 * index + 1, start, stop)

    def factors(self, branch: int, like: Tensor) -> Tensor:
        """What each clip's branch is multiplied by: [clips], of `like`'s dtype and on its device."""
        place = like.device, like.dtype
        if place not in self._factors:
            # Drawn again there: the keys of a batch lie in pinned memory, a table made just now doesn't.
            table = self._is_kept(self.keys.to(like.device, non_blocking=True)).to(like.dtype)
            torch._foreach_mul_(list(table), [scale_of_kept(rate, like.dtype) for rate in self.rates])
            self._factors[place] = table
        return self._factors[place][branch]

    def _is_kept(self, keys: Tensor) -> Tensor:
        """bool [branches, clips], where the keys are."""
        table = uniforms(clip_keys(keys, self.clips), self.names)
        # A difference has the sign that a comparison finds, and this takes the rates as numbers of the host.
        torch._foreach_sub_(list(table), self.rates)
        return table >= 0


@dataclass(frozen=True)
class BranchDrop:
    """The draws of one branch for some clips."""

    drops: Drops
    branch: int
    start: int
    stop: int

    @property
    def kept(self) -> list[bool]:
        return self.drops.kept[self.branch][self.start : self.stop]

    @property
    def drops_all(self) -> bool:
        """Whether the branch adds nothing to any of these clips."""
        return not any(self.kept)

    def factors(self, like: Tensor) -> Tensor:
        """What the branch's output is multiplied by: [clips, 1, 1], of `like`'s dtype and on its device."""
        return self.drops.factors(self.branch, like)[self.start : self.stop, None, None]

    def scale(self, x: Tensor) -> Tensor:
        """A branch's output [clips, l, c] with its dropped clips zero and the others scaled."""
        factor = self._factor(x)
        return x if factor is None else x * factor

    def scale_(self, x: Tensor) -> Tensor:
        """The same, in place."""
        factor = self._factor(x)
        return x if factor is None else x.mul_(factor)

    def _factor(self, x: Tensor) -> float | Tensor | None:
        if not all(self.kept):
            return self.factors(x)
        # A number needs neither a table nor a copy.
        scale = scale_of_kept(self.drops.rates[self.branch], x.dtype)
        return None if scale == 1.0 else scale


BlockDrops = tuple[BranchDrop, BranchDrop]
"""Of attention and MLP."""


@cache
def scale_of_kept(rate: float, dtype: torch.dtype) -> float:
    """1 / (1 - rate) as a number of `dtype`."""
    return float(torch.ones((), dtype=dtype) / (1.0 - rate))
