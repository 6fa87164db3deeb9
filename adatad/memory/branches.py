"""A block's two residual branches on one tile, each a function of tensors and sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.models.drop_path import BranchDrop
from adatad.models.vit import NORM_EPS, attend, residual

BranchWeights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Weight and bias of the norm, of the first product, of the second one."""
BranchFunction = Callable[[Tensor, BranchWeights, int], Tensor]
"""Of tokens [n, l, c] in the dtype of arithmetic, weights and the number of heads; returns what is added to them."""


def attention(x_nlc: Tensor, weights: BranchWeights, heads: int) -> Tensor:
    norm, norm_bias, qkv, qkv_bias, last, last_bias = weights
    normed = F.layer_norm(x_nlc, x_nlc.shape[-1:], norm, norm_bias, NORM_EPS)
    return F.linear(attend(normed, heads, qkv, qkv_bias), last, last_bias)


def mlp(x_nlc: Tensor, weights: BranchWeights, heads: int) -> Tensor:
    norm, norm_bias, first, first_bias, last, last_bias = weights
    normed = F.layer_norm(x_nlc, x_nlc.shape[-1:], norm, norm_bias, NORM_EPS)
    return F.linear(F.gelu(F.linear(normed, first, first_bias)), last, last_bias)


@dataclass(frozen=True)
class CastBranch:
    """One branch of one block on a tile's tokens [n, l, c] of any dtype, from weights that were cast before.

    dtype: of arithmetic.
    """

    function: BranchFunction
    weights: BranchWeights
    heads: int
    dtype: torch.dtype
    learns: ClassVar[bool] = False
    """The wave itself makes the zeros of branches that no tile has computed."""

    def add(self, x: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the sum, with its graph where gradients are on."""
        scale = None if drop is None else drop.scale_ if in_place else drop.scale
        return residual(x, self.function(x.to(self.dtype), self.weights, self.heads), scale, in_place)
