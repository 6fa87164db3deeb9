"""A block without its adapter, on one tile: in place where no gradient is wanted, or with its graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adatad.memory.arithmetic import autocast
from adatad.memory.tiles import Tile
from adatad.models.backbone import VideoBackbone
from adatad.models.drop_path import BranchDrop, Drops

Graph = tuple[Tensor, Tensor]
"""A tile's tokens before and behind the block, with the autograd graph between them."""


@dataclass(frozen=True)
class Transform:
    """`Block.transform` tile by tile, with tokens of any dtype and arithmetic in `dtype`.

    drops: stochastic depth of all clips; None: nothing is dropped. A branch that a whole tile drops isn't computed.
    """

    backbone: VideoBackbone
    dtype: torch.dtype
    drops: Drops | None

    def in_place(self, index: int, tile: Tile, x: Tensor) -> None:
        with self.arithmetic(index):
            for norm, layer, drop in self._branches(index, tile):
                branch = layer(norm(x.to(self.dtype)))
                x.add_(branch if drop is None else drop.scale_(branch))

    def graph(self, index: int, tile: Tile, x: Tensor) -> Graph:
        """The graph's input shares x's memory: x must stay as it is. Where both branches are dropped, the graph's
        output is its input."""
        with torch.enable_grad(), self.arithmetic(index):
            x = out = x.detach().requires_grad_()
            for norm, layer, drop in self._branches(index, tile):
                branch = layer(norm(out.to(self.dtype)))
                out = out + (branch if drop is None else drop.scale(branch))
            return x, out

    def _branches(self, index: int, tile: Tile) -> Iterator[tuple[nn.Module, nn.Module, BranchDrop | None]]:
        """Those of a block that are computed: norm, what comes after it, draws."""
        drops = (None, None) if self.drops is None else self.drops.block(index, tile.start, tile.stop)
        for (norm, layer), drop in zip(self.backbone.blocks[index].branches, drops, strict=True):
            if drop is None or not drop.drops_all:
                yield norm, layer, drop

    def arithmetic(self, index: int) -> AbstractContextManager:
        """Frozen weights have the dtype of arithmetic; trained ones stay in fp32 and are cast where they are used."""
        weight = self.backbone.blocks[index].norm1.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        return autocast(weight.device, self.dtype, cache=False)
