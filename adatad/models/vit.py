"""The parts of VideoMAE's vision transformer: position table, attention and block.

Shapes: n clips (of all windows of a batch), l tokens of a clip (time, then row, then column), c width; h heads,
d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.adapter import Adapter, Padding, Recompute, pad_with_zeros
from adatad.models.keyed_dropout import BlockDrops, BranchDrop
from adatad.models.timm_layers import Mlp

NORM_EPS = 1e-6


def sine_table(positions: int, width: int) -> Tensor:
    """Return fixed sine positions, float32 [1, positions, width]: sine in even channels, cosine in odd ones."""
    channel = torch.arange(width)
    # In double precision, like the table that the pretrained weights were made with.
    rate = 10000.0 ** ((channel - channel % 2).double() / width)
    angle = torch.arange(positions).double()[:, None] / rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


def resize_positions(table: Tensor, tubelets: int, grid: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Fit a table [1, tubelets x grid, c] to rows x columns, each time slice alone: bicubic, without antialiasing."""
    if grid == (rows, columns):
        return table
    planes = table.reshape(tubelets, *grid, -1).permute(0, 3, 1, 2)
    # Without antialiasing, as the reference resizes it.
    planes = F.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
    return planes.permute(0, 2, 3, 1).reshape(1, tubelets * rows * columns, -1)


class Attention(nn.Module):
    """Multi-head self-attention inside a clip. Queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_nlc: Tensor) -> Tensor:
        """Return attention's part of the residual sum, of the same shape."""
        # One product for all three; the keys' bias would cancel out in the softmax, and there is none.
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.proj(attend(x_nlc, self.heads, self.qkv.weight, bias))


def attend(x_nlc: Tensor, heads: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Return attention before its last projection: [n, l, c] -> [n, l, c].

    weight, bias: of queries, keys and values, [3 c, c] and [3 c].
    """
    n, l, c = x_nlc.shape
    # Three views of one product; going back, their gradients are joined by one copy.
    parts = F.linear(x_nlc, weight, bias).split(c, -1)
    q_nhld, k_nhld, v_nhld = (part.view(n, l, heads, -1).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(q_nhld, k_nhld, v_nhld).transpose(1, 2).reshape(n, l, c)


class Branch(Protocol):
    """One of a block's two residual branches, as an executor computes it."""

    learns: bool
    """True if it must be computed even where all clips drop it: an engine waits for a gradient (of zero)."""

    def add(self, x_nlc: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the `residual` of the tokens and this branch."""


def residual(x_nlc: Tensor, added_nlc: Tensor, scale: Callable[[Tensor], Tensor] | None, in_place: bool) -> Tensor:
    """Return x + scale(added), the one formula of all residual branches; in x's own memory if `in_place`.

    scale: of stochastic depth, or None. It may change `added`, which isn't used afterwards.
    """
    # Bound again, so that the unscaled tensor is freed before the sum is made.
    added_nlc = added_nlc if scale is None else scale(added_nlc)
    return x_nlc.add_(added_nlc) if in_place else x_nlc + added_nlc


def add_branches(x_nlc: Tensor, branches: Iterable[Branch], drops: BlockDrops | None, in_place: bool = False) -> Tensor:
    """Return the tokens with attention, then MLP, added. A branch that all of these clips drop isn't computed."""
    for branch, drop in zip(branches, drops or (None, None), strict=True):
        if drop is None or not drop.drops_all or branch.learns:
            x_nlc = branch.add(x_nlc, drop, in_place)
    return x_nlc


class ModuleBranch:
    """A branch computed by the block's own modules, for autograd."""

    def __init__(self, norm: nn.Module, layer: nn.Module):
        self.norm, self.layer = norm, layer

    @property
    def learns(self) -> bool:
        """True where one of its parameters gets a gradient."""
        modules = (self.norm, self.layer)
        return torch.is_grad_enabled() and any(p.requires_grad for module in modules for p in module.parameters())

    def add(self, x_nlc: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the `residual` of the tokens and this branch, with its graph."""
        return residual(x_nlc, self.layer(self.norm(x_nlc)), drop and drop.scale, in_place)


class Block(nn.Module):
    """Attention, MLP and, where the block carries one, an adapter; each added to the tokens."""

    def __init__(self, width: int, heads: int, mlp_width: int, adapter: Adapter | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp_width)
        self.adapter = adapter

    def forward(
        self,
        x_nlc: Tensor,
        batch: int,
        drops: BlockDrops | None = None,
        *,
        pad: Padding = pad_with_zeros,
        recompute: Recompute | None = None,
    ) -> Tensor:
        """Run the block on the tokens of all clips.

        batch: windows among them; drops: of these clips, or None to drop nothing; pad: what adapters see beyond a
        window's ends; recompute: see `Adapter.forward`.
        """
        if recompute is not None:
            # Inside the module, so that the hooks of engines run once and not again in backward.
            return recompute(self.forward, x_nlc, batch, drops, pad=pad)
        x_nlc = self.transform(x_nlc, drops)
        # Not in place: the adapter's own backward needs its input as it was.
        return x_nlc if self.adapter is None else x_nlc + self.adapter(x_nlc, batch, pad=pad)

    def transform(self, x_nlc: Tensor, drops: BlockDrops | None = None) -> Tensor:
        """Run the block without its adapter: it acts on each clip alone."""
        return add_branches(x_nlc, (ModuleBranch(self.norm1, self.attn), ModuleBranch(self.norm2, self.mlp)), drops)
