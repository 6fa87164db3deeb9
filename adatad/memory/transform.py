"""A block without its adapter, on one tile: in place where no gradient is wanted, or with its graph.

Shapes: n clips of a tile, l tokens of a clip, c width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from adatad.memory.arithmetic import autocast
from adatad.memory.coded import SCALE, decode
from adatad.memory.scopes import memory_scope
from adatad.memory.tiles import Tile
from adatad.models.backbone import VideoBackbone
from adatad.models.keyed_dropout import BlockDrops, BranchDrop, Drops
from adatad.models.vit import Block, BranchForm, BranchWeights, ClipTables, add_branches, is_norm, residual


@dataclass(frozen=True)
class CastBranch:
    """One branch of one block on a tile's tokens [n, l, c] of any dtype, from weights that were cast before.

    number: 0 for attention, 1 for the MLP; dtype: of arithmetic.
    """

    form: BranchForm
    number: int
    weights: BranchWeights
    heads: int
    tables: ClipTables
    dtype: torch.dtype
    learns: ClassVar[bool] = False
    """The wave itself makes the zeros of branches that no tile has computed."""

    def add(self, x_nlc: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the sum, with its graph where gradients are on."""
        scale = None if drop is None else drop.scale_ if in_place else drop.scale
        function = self.form.function
        # The branch's result has no name here, so that `residual` can free it.
        return residual(x_nlc, function(x_nlc.to(self.dtype), self.weights, self.heads, self.tables), scale, in_place)


Graph = tuple[Tensor, Tensor]
"""A tile's tokens before and behind the block, with the autograd graph between them."""


class BlockWeights:
    """A block's weights as its tiles use them, made once for many tiles.

    Matrices and biases are in the dtype of arithmetic: frozen ones are already, unless they wait in 8 bits; trained
    ones are copied. Norms keep their own, since autocast computes those that are trained in fp32.
    """

    def __init__(self, block: Block, dtype: torch.dtype):
        self.block = block
        named = {name: p for name, p in block.named_parameters() if not name.startswith("adapter.")}
        scales = {name: named.pop(name) for name in list(named) if name.endswith(SCALE)}
        used = {}
        with memory_scope("weight casts"):
            # Copies are detached: what is differentiated by are the tensors made here. Their gradients are added up
            # over tiles and reach the parameters through `TrainedWeights`, once a step.
            for name, p in block.join_weights(named).items():
                scale = scales.get(f"{name}_scale")
                if scale is not None:
                    used[name] = decode(p, scale, dtype)
                else:
                    # Trained norms are in fp32 and stay so: autocast computes them in fp32 whatever its dtype is.
                    used[name] = p if is_norm(name) else _cast(p, dtype)
        self.learning = {name: tensor for name, tensor in used.items() if tensor.requires_grad}
        """Tensors to differentiate by, under the names of `Block.join_weights`."""
        self.branches: list[BranchWeights] = [tuple(used[name] for name in form.names) for form in block.forms]
        """The weights of each of the block's `forms`."""

    def gradients(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the block's parameters, from those of `learning`."""
        return self.block.part_gradients(parts)


class NormWeights:
    """The norm behind the last block, in the place of a block's weights: its own parameters are used as they are."""

    def __init__(self, norm: nn.LayerNorm):
        self.learning = {name: p for name, p in norm.named_parameters() if p.requires_grad}

    def gradients(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the norm's parameters, which are those of `learning`."""
        return parts


def normalized(backbone: VideoBackbone, x_nlc: Tensor) -> Tensor:
    """Return a tile's tokens as `VideoBackbone.normalize_output` does, in their dtype; the tokens themselves in
    families without a norm behind the last block."""
    norm = backbone.final_norm
    # In the norm's own precision, which is fp32: that is a tile's worth of it.
    return x_nlc if norm is None else norm(x_nlc.to(norm.weight.dtype)).to(x_nlc.dtype)


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
    tables: the backbone's `clip_tables`. branch_type: how branches are executed. A norm behind the last block counts as
    one more block, without branches.
    """

    backbone: VideoBackbone
    dtype: torch.dtype
    drops: Drops | None
    branch_type: type[CastBranch] = CastBranch
    tables: ClipTables = ()
    _weights: dict[int, BlockWeights | NormWeights] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Once, and not for every block on every tile.
        object.__setattr__(self, "tables", tuple(table.to(self.dtype) for table in self.tables))

    def weights(self, index: int) -> BlockWeights | NormWeights:
        """Return a block's weights, cast at its first tile and kept until `release`; so long it is materialized."""
        if index not in self._weights:
            self._weights[index] = (
                NormWeights(self.backbone.final_norm)
                if self.is_final_norm(index)
                else BlockWeights(self.backbone.blocks[index], self.dtype)
            )
        return self._weights[index]

    def is_final_norm(self, index: int) -> bool:
        """Return whether a number is that of the norm behind the last block."""
        return index == len(self.backbone.blocks)

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
            # Detached: the graph begins at this block, and ends when its backward is done.
            x_nlc = x_nlc.detach().requires_grad_()
            if self.is_final_norm(index):
                return x_nlc, normalized(self.backbone, x_nlc)
            return x_nlc, add_branches(x_nlc, self._branches(index), self._drops(index, tile))

    def _branches(self, index: int) -> list[CastBranch]:
        # Made anew for each tile, as they are small; the weights in them are those of all tiles.
        block, weights = self.backbone.blocks[index], self.weights(index).branches
        heads = block.attn.heads
        return [
            self.branch_type(form, number, weights[number], heads, self.tables, self.dtype)
            for number, form in enumerate(block.forms)
        ]

    def _drops(self, index: int, tile: Tile) -> BlockDrops | None:
        return self.drops and self.drops.block(index, tile.start, tile.stop)

    def arithmetic(self, index: int) -> AbstractContextManager:
        """Return autocast where the norms are trained, and so stay in fp32."""
        if self.is_final_norm(index):
            return nullcontext()
        weight = self.backbone.blocks[index].norm1.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        # Without autocast's cache: weights are cast already, and a cache would keep copies beyond their block's turn.
        return autocast(weight.device, self.dtype, cache=False)
