"""A block without its adapter, on one tile: in place where no gradient is wanted, or with its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.memory.arithmetic import autocast
from adatad.memory.labels import label
from adatad.memory.tiles import Tile
from adatad.models.backbone import VideoBackbone
from adatad.models.drop_path import BranchDrop, Drops
from adatad.models.vit import Block, attend

Graph = tuple[Tensor, Tensor]
"""A tile's tokens before and behind the block, with the autograd graph between them."""

QKV_BIAS = "attn.qkv_bias"
"""The biases of queries, keys (zeros) and values as one tensor; not a parameter of its own."""


class BlockWeights:
    """A block's weights as its tiles use them, made once for many tiles.

    Matrices and biases are in the dtype of arithmetic: frozen ones are already, trained ones are copied. Norms keep
    their own, since autocast computes those that are trained in fp32.
    """

    def __init__(self, block: Block, dtype: torch.dtype):
        self.block = block
        named = {name: p for name, p in block.named_parameters() if not name.startswith("adapter.")}
        q_bias, v_bias = named.pop("attn.q_bias"), named.pop("attn.v_bias")
        with label("weight casts"):
            joined = torch.cat([q_bias.detach(), torch.zeros_like(q_bias), v_bias.detach()]).to(dtype)
            self._named = {name: p if name.startswith("norm") else _cast(p, dtype) for name, p in named.items()}
        self._named[QKV_BIAS] = joined.requires_grad_(q_bias.requires_grad or v_bias.requires_grad)
        self.learning = {name: tensor for name, tensor in self._named.items() if tensor.requires_grad}
        """What to differentiate by, by the names of the block's parameters, and `QKV_BIAS`."""

    def attention(self, x_nlc: Tensor) -> Tensor:
        named = self._named
        mixed = attend(self.block.norm1(x_nlc), self.block.attn.heads, named["attn.qkv.weight"], named[QKV_BIAS])
        return F.linear(mixed, named["attn.proj.weight"], named["attn.proj.bias"])

    def mlp(self, x_nlc: Tensor) -> Tensor:
        named = self._named
        hidden = F.gelu(F.linear(self.block.norm2(x_nlc), named["mlp.fc1.weight"], named["mlp.fc1.bias"]))
        return F.linear(hidden, named["mlp.fc2.weight"], named["mlp.fc2.bias"])

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
    """

    backbone: VideoBackbone
    dtype: torch.dtype
    drops: Drops | None
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
            for branch, drop in self._branches(index, tile):
                added = branch(x.to(self.dtype))
                x.add_(added if drop is None else drop.scale_(added))

    def graph(self, index: int, tile: Tile, x: Tensor) -> Graph:
        """The graph's input shares x's memory: x must stay as it is. Where both branches are dropped, the graph's
        output is its input."""
        with torch.enable_grad(), self.arithmetic(index):
            x = out = x.detach().requires_grad_()
            for branch, drop in self._branches(index, tile):
                added = branch(out.to(self.dtype))
                out = out + (added if drop is None else drop.scale(added))
            return x, out

    def _branches(self, index: int, tile: Tile) -> Iterator[tuple[Callable[[Tensor], Tensor], BranchDrop | None]]:
        """Those of a block that are computed, with their draws."""
        weights = self.weights(index)
        drops = (None, None) if self.drops is None else self.drops.block(index, tile.start, tile.stop)
        for branch, drop in zip((weights.attention, weights.mlp), drops, strict=True):
            if drop is None or not drop.drops_all:
                yield branch, drop

    def arithmetic(self, index: int) -> AbstractContextManager:
        """Autocast where the norms are trained, and so stay in fp32."""
        weight = self.backbone.blocks[index].norm1.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        return autocast(weight.device, self.dtype, cache=False)
