"""A block without its adapter, on one tile: in place where no gradient is wanted, or with its graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from adatad.memory.arithmetic import autocast
from adatad.memory.tiles import Tile
from adatad.models.backbone import VideoBackbone

Graph = tuple[Tensor, Tensor]
"""A tile's tokens before and behind the block, with the autograd graph between them."""


@dataclass(frozen=True)
class Transform:
    """`Block.transform` tile by tile, with tokens of any dtype and arithmetic in `dtype`.

    keys: int64, one a clip, for stochastic depth; None: nothing is dropped.
    """

    backbone: VideoBackbone
    dtype: torch.dtype
    keys: Tensor | None

    def in_place(self, index: int, tile: Tile, x: Tensor) -> None:
        block, keys = self.backbone.blocks[index], tile.of(self.keys)
        with self.arithmetic(index):
            x.add_(block.drop_attention(block.attn(block.norm1(x.to(self.dtype))), keys))
            x.add_(block.drop_mlp(block.mlp(block.norm2(x.to(self.dtype))), keys))

    def graph(self, index: int, tile: Tile, x: Tensor) -> Graph:
        """The graph's input shares x's memory: x must stay as it is."""
        block, keys = self.backbone.blocks[index], tile.of(self.keys)
        with torch.enable_grad(), self.arithmetic(index):
            x = x.detach().requires_grad_()
            middle = x + block.drop_attention(block.attn(block.norm1(x.to(self.dtype))), keys)
            return x, middle + block.drop_mlp(block.mlp(block.norm2(middle.to(self.dtype))), keys)

    def arithmetic(self, index: int) -> AbstractContextManager:
        """Frozen weights have the dtype of arithmetic; trained ones stay in fp32 and are cast where they are used."""
        weight = self.backbone.blocks[index].norm1.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        return autocast(weight.device, self.dtype, cache=False)
