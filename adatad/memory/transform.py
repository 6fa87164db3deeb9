"""A block without its adapter, on one tile: in place where no gradient is wanted, or with its graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adatad.memory.arithmetic import autocast
from adatad.memory.branches import BranchFunction, BranchWeights, CastBranch, attention, mlp
from adatad.memory.coded import SCALE, decode
from adatad.memory.labels import label
from adatad.memory.tiles import Tile
from adatad.models.backbone import VideoBackbone
from adatad.models.drop_path import BlockDrops, Drops
from adatad.models.vit import Block, add_branches

Graph = tuple[Tensor, Tensor]
"""A tile's tokens before and behind the block, with the autograd graph between them."""

QKV_BIAS = "attn.qkv_bias"
"""The biases of queries, keys (zeros) and values as one tensor; not a parameter of its own."""

BRANCHES = (
    (attention, ("norm1.weight", "norm1.bias", "attn.qkv.weight", QKV_BIAS, "attn.proj.weight", "attn.proj.bias")),
    (mlp, ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")),
)
"""Of a block, with the names of their weights."""


class BlockWeights:
    """A block's weights as its tiles use them, made once for many tiles.

    Matrices and biases are in the dtype of arithmetic: frozen ones are already, unless they wait in 8 bits; trained
    ones are copied. Norms keep their own, since autocast computes those that are trained in fp32.
    """

    def __init__(self, block: Block, dtype: torch.dtype):
        self.block = block
        named = {name: p for name, p in block.named_parameters() if not name.startswith("adapter.")}
        q_bias, v_bias = named.pop("attn.q_bias"), named.pop("attn.v_bias")
        with label("weight casts"):
            joined = torch.cat([q_bias.detach(), torch.zeros_like(q_bias), v_bias.detach()]).to(dtype)
            scales = {name: named.pop(name) for name in list(named) if name.endswith(SCALE)}
            used = {}
            for name, p in named.items():
                scale = scales.get(f"{name}_scale")
                if scale is not None:
                    used[name] = decode(p, scale, dtype)
                else:
                    used[name] = p if name.startswith("norm") else _cast(p, dtype)
        used[QKV_BIAS] = joined.requires_grad_(q_bias.requires_grad or v_bias.requires_grad)
        self.learning = {name: tensor for name, tensor in used.items() if tensor.requires_grad}
        """What to differentiate by, by the names of the block's parameters, and `QKV_BIAS`."""

        self.branches: list[tuple[BranchFunction, BranchWeights]] = [
            (function, tuple(used[name] for name in names)) for function, names in BRANCHES
        ]

    def gradients(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the block's parameters, from those of `learning`."""
        if QKV_BIAS in parts:
            q_part, _, v_part = parts.pop(QKV_BIAS).chunk(3)
            biases = {"attn.q_bias": q_part, "attn.v_bias": v_part}
            parts |= {name: part for name, part in biases.items() if self.block.get_parameter(name).requires_grad}
        return parts


def _cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
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
        """A block's, from its first tile until `let_go`. The block must be whole meanwhile."""
        if index not in self._weights:
            self._weights[index] = BlockWeights(self.backbone.blocks[index], self.dtype)
        return self._weights[index]

    def let_go(self, blocks: range) -> None:
        for index in blocks:
            self._weights.pop(index, None)

    def in_place(self, index: int, tile: Tile, x: Tensor) -> None:
        with self.arithmetic(index):
            add_branches(x, self._branches(index), self._drops(index, tile), in_place=True)

    def graph(self, index: int, tile: Tile, x: Tensor) -> Graph:
        """The graph's input shares x's memory: x must stay as it is. Where both branches are dropped, the graph's
        output is its input."""
        with torch.enable_grad(), self.arithmetic(index):
            x = x.detach().requires_grad_()
            return x, add_branches(x, self._branches(index), self._drops(index, tile))

    def _branches(self, index: int) -> list[CastBranch]:
        heads = self.backbone.blocks[index].attn.heads
        return [self.branch_type(function, weights, heads, self.dtype)
                for function, weights in self.weights(index).branches]  # fmt: skip

    def _drops(self, index: int, tile: Tile) -> BlockDrops | None:
        return self.drops and self.drops.block(index, tile.start, tile.stop)

    def arithmetic(self, index: int) -> AbstractContextManager:
        """Autocast where the norms are trained, and so stay in fp32."""
        weight = self.backbone.blocks[index].norm1.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        return autocast(weight.device, self.dtype, cache=False)
