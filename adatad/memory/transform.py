"""A block without its adapter, on one tile: in place where no gradient is wanted, or with its graph.

Shapes: n clips of a tile, l tokens of a clip, c width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.memory.arithmetic import autocast
from adatad.memory.coded import SCALE, decode
from adatad.memory.scopes import memory_scope
from adatad.memory.tiles import Tile
from adatad.models.backbone import VideoBackbone
from adatad.models.keyed_dropout import BlockDrops, BranchDrop, Drops
from adatad.models.vit import NORM_EPS, Block, add_branches, attend, residual

BranchWeights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Weight and bias of the norm, of the first product, of the second one."""
BranchFunction = Callable[[Tensor, BranchWeights, int], Tensor]
"""Takes tokens [n, l, c] in the dtype of arithmetic, weights and the number of heads; returns what is added to them."""


def attention(x_nlc: Tensor, weights: BranchWeights, heads: int) -> Tensor:
    """Return attention's part of the residual sum: [n, l, c] -> [n, l, c]."""
    norm, norm_bias, qkv, qkv_bias, last, last_bias = weights
    normed = F.layer_norm(x_nlc, x_nlc.shape[-1:], norm, norm_bias, NORM_EPS)
    return F.linear(attend(normed, heads, qkv, qkv_bias), last, last_bias)


def mlp(x_nlc: Tensor, weights: BranchWeights, heads: int) -> Tensor:
    """Return the MLP's part of the residual sum: [n, l, c] -> [n, l, c]. heads: unused."""
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

    def add(self, x_nlc: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the sum, with its graph where gradients are on."""
        scale = None if drop is None else drop.scale_ if in_place else drop.scale
        return residual(x_nlc, self.function(x_nlc.to(self.dtype), self.weights, self.heads), scale, in_place)


Graph = tuple[Tensor, Tensor]
"""A tile's tokens before and behind the block, with the autograd graph between them."""

QKV_BIAS = "attn.qkv_bias"
"""The biases of queries, keys (zeros) and values as one tensor; not a parameter of its own."""

BRANCHES = (
    (attention, ("norm1.weight", "norm1.bias", "attn.qkv.weight", QKV_BIAS, "attn.proj.weight", "attn.proj.bias")),
    (mlp, ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")),
)
"""A block's branches, with the names of their weights."""


class BlockWeights:
    """A block's weights as its tiles use them, made once for many tiles.

    Matrices and biases are in the dtype of arithmetic: frozen ones are already, unless they wait in 8 bits; trained
    ones are copied. Norms keep their own, since autocast computes those that are trained in fp32.
    """

    def __init__(self, block: Block, dtype: torch.dtype):
        self.block = block
        named = {name: p for name, p in block.named_parameters() if not name.startswith("adapter.")}
        # The model has no bias of keys, as VideoMAE has none; one product for all three wants zeros there.
        q_bias, v_bias = named.pop("attn.q_bias"), named.pop("attn.v_bias")
        with memory_scope("weight casts"):
            # Detached: what is differentiated by are the tensors made here. Their gradients are added up over tiles and
            # reach the parameters through `TrainedWeights`, once a step.
            joined = torch.cat([q_bias.detach(), torch.zeros_like(q_bias), v_bias.detach()]).to(dtype)
            scales = {name: named.pop(name) for name in list(named) if name.endswith(SCALE)}
            used = {}
            for name, p in named.items():
                scale = scales.get(f"{name}_scale")
                if scale is not None:
                    used[name] = decode(p, scale, dtype)
                else:
                    # Trained norms are in fp32 and stay so: autocast computes them in fp32 whatever its dtype is.
                    used[name] = p if name.startswith("norm") else _cast(p, dtype)
        used[QKV_BIAS] = joined.requires_grad_(q_bias.requires_grad or v_bias.requires_grad)
        self.learning = {name: tensor for name, tensor in used.items() if tensor.requires_grad}
        """Tensors to differentiate by, under the names of the block's parameters, and `QKV_BIAS`."""
        self.branches: list[tuple[BranchFunction, BranchWeights]] = [
            (function, tuple(used[name] for name in names)) for function, names in BRANCHES
        ]

    def gradients(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the block's parameters, from those of `learning`."""
        if QKV_BIAS in parts:
            # The middle third is that of the zeros.
            q_part, _, v_part = parts.pop(QKV_BIAS).chunk(3)
            biases = {"attn.q_bias": q_part, "attn.v_bias": v_part}
            parts |= {name: part for name, part in biases.items() if self.block.get_parameter(name).requires_grad}
        return parts


def _cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter in a dtype, as a tensor of its own to differentiate by."""
    # No copy where none is needed: autograd.grad differentiates by the parameter itself as well.
    if parameter.dtype == dtype:
        return parameter
    return parameter.detach().to(dtype).requires_grad_(parameter.requires_grad)


@dataclass(frozen=True)
class Transform:
    """`Block.transform` tile by tile, with tokens of any dtype and arithmetic in `dtype`.

    drops: stochastic depth of all clips; None: nothing is dropped. A branch that a whole tile drops isn't computed.
    branch_type: how branches are executed.
    """

    backbone: VideoBackbone
    dtype: torch.dtype
    drops: Drops | None
    branch_type: type[CastBranch] = CastBranch
    _weights: dict[int, BlockWeights] = field(default_factory=dict)

    def weights(self, index: int) -> BlockWeights:
        """Return a block's weights, cast at its first tile and kept until `release`; so long it is materialized."""
        if index not in self._weights:
            self._weights[index] = BlockWeights(self.backbone.blocks[index], self.dtype)
        return self._weights[index]

    def release(self, blocks: range) -> None:
        """Forget the weights that were made of these blocks."""
        for index in blocks:
            self._weights.pop(index, None)

    def in_place(self, index: int, tile: Tile, x_nlc: Tensor) -> None:
        """Run a block on a tile's tokens [n, l, c], in their own memory."""
        with self.arithmetic(index):
            add_branches(x_nlc, self._branches(index), self._drops(index, tile), in_place=True)

    def graph(self, index: int, tile: Tile, x_nlc: Tensor) -> Graph:
        """Run a block on a tile's tokens with a graph, whose input shares their memory: they must stay as they are.

        Where both branches are dropped, the graph's output is its input.
        """
        # The wave runs under no_grad; only what is differentiated at once has a graph.
        with torch.enable_grad(), self.arithmetic(index):
            x_nlc = x_nlc.detach().requires_grad_()
            return x_nlc, add_branches(x_nlc, self._branches(index), self._drops(index, tile))

    def _branches(self, index: int) -> list[CastBranch]:
        # Made anew for each tile, as they are small; the weights in them are those of all tiles.
        heads = self.backbone.blocks[index].attn.heads
        return [self.branch_type(function, weights, heads, self.dtype)
                for function, weights in self.weights(index).branches]  # fmt: skip

    def _drops(self, index: int, tile: Tile) -> BlockDrops | None:
        return self.drops and self.drops.block(index, tile.start, tile.stop)

    def arithmetic(self, index: int) -> AbstractContextManager:
        """Return autocast where the norms are trained, and so stay in fp32."""
        weight = self.backbone.blocks[index].norm1.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        # Without autocast's cache: weights are cast already, and a cache would keep copies beyond their block's turn.
        return autocast(weight.device, self.dtype, cache=False)
