"""The block of a video transformer, as modules and as functions of tensors; each family of backbones has its own kind.

Shapes: n clips (of all windows of a batch), l tokens of a clip (class tokens, if there are any, then patches by time,
row and column), c width; h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.adapter import Adapter, Padding, Recompute, pad_with_zeros
from adatad.models.keyed_dropout import BlockDrops, BranchDrop
from adatad.models.timm_layers import Mlp

NORM_EPS = 1e-6

ClipTables = tuple[Tensor, ...]
"""Constants that attention needs besides its weights, of one clip's grid of tokens and so the same for every clip."""
BranchWeights = tuple[Tensor, ...]
"""The weights of a branch, in the order in which its function takes them; the last two are those of its last product,
weight and bias."""
BranchFunction = Callable[[Tensor, BranchWeights, int, ClipTables], Tensor]
"""Takes tokens [n, l, c] in the dtype of arithmetic, weights, the number of heads and the clip's tables; returns what
is added to the tokens."""


class BranchForm(NamedTuple):
    """One of a block's residual branches as a function of tensors, for executors that call no modules.

    names: of its weights in the block, in the function's order.
    """

    function: BranchFunction
    names: tuple[str, ...]


def is_norm(name: str) -> bool:
    """Return whether a block's parameter is a norm's: autocast computes norms in fp32."""
    return any(part.startswith("norm") or part.endswith("norm") for part in name.split("."))


def is_token(name: str) -> bool:
    """Return whether a parameter of the patch embedding is a token or added to tokens, which autocast doesn't cast."""
    return name in ("class_token", "positions")


def outside_autocast(device: torch.device) -> AbstractContextManager:
    """Return a region without autocast, on devices that have it."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


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


def split_heads(part_nlc: Tensor, heads: int) -> Tensor:
    """Return queries, keys or values by heads: [n, l, c] -> [n, h, l, d]."""
    return part_nlc.unflatten(-1, (heads, -1)).transpose(1, 2)


def project(x_nlc: Tensor, heads: int, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values: [n, l, c] -> [n, h, l, d] each.

    weight, bias: of all three, [3 c, c] and [3 c].
    """
    # Three views of one product; going back, their gradients are joined by one copy.
    parts = F.linear(x_nlc, weight, bias).split(x_nlc.shape[-1], -1)
    q_nhld, k_nhld, v_nhld = (split_heads(part, heads) for part in parts)
    return q_nhld, k_nhld, v_nhld


def attend(q_nhld: Tensor, k_nhld: Tensor, v_nhld: Tensor) -> Tensor:
    """Return attention before its last projection: [n, h, l, d] -> [n, l, c]."""
    return F.scaled_dot_product_attention(q_nhld, k_nhld, v_nhld).transpose(1, 2).flatten(2)


def mlp(x_nlc: Tensor, weights: BranchWeights, heads: int, tables: ClipTables) -> Tensor:
    """Return the MLP's part of the residual sum: [n, l, c] -> [n, l, c]. heads, tables: unused."""
    norm, norm_bias, first, first_bias, last, last_bias = weights
    normed = F.layer_norm(x_nlc, x_nlc.shape[-1:], norm, norm_bias, NORM_EPS)
    return F.linear(F.gelu(F.linear(normed, first, first_bias)), last, last_bias)


MLP = BranchForm(
    mlp, ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
)


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

    def __init__(self, norm: nn.Module, layer: nn.Module, tables: ClipTables = ()):
        self.norm, self.layer, self.tables = norm, layer, tables

    @property
    def learns(self) -> bool:
        """True where one of its parameters gets a gradient."""
        modules = (self.norm, self.layer)
        return torch.is_grad_enabled() and any(p.requires_grad for module in modules for p in module.parameters())

    def add(self, x_nlc: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the `residual` of the tokens and this branch, with its graph."""
        return residual(x_nlc, self.layer(self.norm(x_nlc), *self.tables), drop and drop.scale, in_place)


class Block(nn.Module):
    """Attention, MLP and, where the block carries one, an adapter; each added to the tokens.

    A family of backbones makes a class of its own of it. Executors know blocks by `forms`, `join_weights` and
    `part_gradients` alone, so that what is written here works under every memory policy.
    """

    forms: ClassVar[tuple[BranchForm, BranchForm]]
    """Attention and MLP as functions. They compute what the modules do."""
    norm_type: ClassVar[type[nn.Module]] = nn.LayerNorm
    """Class of the norms before both branches."""
    mlp_type: ClassVar[type[Mlp]] = Mlp

    def __init__(self, width: int, attention: nn.Module, mlp_width: int, adapter: Adapter | None):
        """attention: a module with a number of `heads`, called with tokens and the clip's tables."""
        super().__init__()
        self.norm1 = self.norm_type(width, eps=NORM_EPS)
        self.attn = attention
        self.norm2 = self.norm_type(width, eps=NORM_EPS)
        self.mlp = self.mlp_type(width, mlp_width)
        self.adapter = adapter

    def forward(
        self,
        x_nlc: Tensor,
        batch: int,
        drops: BlockDrops | None = None,
        *,
        tables: ClipTables = (),
        pad: Padding = pad_with_zeros,
        recompute: Recompute | None = None,
    ) -> Tensor:
        """Run the block on the tokens of all clips.

        batch: windows among them; drops: of these clips, or None to drop nothing; tables: the backbone's
        `clip_tables`; pad: what adapters see beyond a window's ends; recompute: see `Adapter.forward`.
        """
        if recompute is not None:
            # Inside the module, so that the hooks of engines run once and not again in backward.
            return recompute(self.forward, x_nlc, batch, drops, tables=tables, pad=pad)
        x_nlc = self.transform(x_nlc, drops, tables)
        # Not in place: the adapter's own backward needs its input as it was.
        return x_nlc if self.adapter is None else x_nlc + self.adapter(x_nlc, batch, pad=pad)

    def transform(self, x_nlc: Tensor, drops: BlockDrops | None = None, tables: ClipTables = ()) -> Tensor:
        """Run the block without its adapter: it acts on each clip alone."""
        branches = ModuleBranch(self.norm1, self.attn, tables), ModuleBranch(self.norm2, self.mlp)
        return add_branches(x_nlc, branches, drops)

    def join_weights(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights by the names that `forms` list, from the parameters but for the adapter's.

        A tensor that is made here is detached from what it is made of, and requires a gradient if that does.
        """
        return named

    def part_gradients(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the block's parameters, from those of what `join_weights` returned."""
        return parts
