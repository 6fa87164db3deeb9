"""Learned tables of positions, of InternVideo2's files: joined, and fitted to the clips of a backbone.

Shapes: a table is [1, l, c] with l = class tokens + tubelets x rows x columns, and as many rows as columns.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.models.vit import resize_positions

TABLE = "patch_embed.positions"
"""The table's name in a backbone."""
SPATIAL, TEMPORAL, CLASS = "pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls"
"""Names of a table in three parts, whose sums are the positions."""
PRETRAINING_TUBELETS = 8
"""Tubelets of most published tables, which their authors take for granted."""


def join_positions(parts: dict[str, Tensor]) -> int:
    """Put `TABLE` in the place of a table in three parts; return its tubelets, 0 where there were no such parts.

    Parts that don't go together stay as they are, to be reported as unknown.
    """
    spatial, temporal, first = (parts.get(name) for name in (SPATIAL, TEMPORAL, CLASS))
    if any(part is None or part.dim() != 3 or len(part) != 1 for part in (spatial, temporal, first)):
        return 0
    if not spatial.shape[-1] == temporal.shape[-1] == first.shape[-1]:
        return 0
    for name in (SPATIAL, TEMPORAL, CLASS):
        del parts[name]
    # Time first: every tubelet has all places of the frame.
    patches = temporal[:, :, None] + spatial[:, None]
    parts[TABLE] = torch.cat([first, patches.flatten(1, 2)], 1)
    return temporal.shape[1]


def fit_positions(table: Tensor, class_tokens: int, known_tubelets: int, tubelets: int, grid: int) -> Tensor:
    """Return a table for clips of so many tubelets and a square of that many rows: along time linearly, then in space
    bicubically, as its authors do. A table that can't be one is returned as it is.

    known_tubelets: those of the table, 0 where the file doesn't say it.
    """
    if table.dim() != 3 or len(table) != 1 or not table.is_floating_point():
        return table
    first, patches = table.tensor_split([class_tokens], 1)
    there = known_tubelets or guess_tubelets(patches.shape[1], grid)
    side = math.isqrt(patches.shape[1] // there) if there else 0
    if not side or there * side**2 != patches.shape[1]:
        return table
    if there != tubelets:
        # The last dimension is time for torch.
        over_time = patches.unflatten(1, (there, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        over_time = F.interpolate(over_time.float(), size=tubelets, mode="linear").to(table.dtype)
        patches = over_time.permute(2, 0, 1).flatten(0, 1)[None]
    if side != grid:
        patches = resize_positions(patches.float(), tubelets, (side, side), grid, grid).to(table.dtype)
    return torch.cat([first, patches], 1)


def guess_tubelets(positions: int, grid: int) -> int:
    """Return the tubelets of a table of so many positions: 8 if they leave a square, else those of frames of `grid`
    rows; 0 if neither fits."""
    place = positions // PRETRAINING_TUBELETS
    if positions % PRETRAINING_TUBELETS == 0 and math.isqrt(place) ** 2 == place:
        return PRETRAINING_TUBELETS
    return positions // grid**2 if positions % grid**2 == 0 else 0


def fold_pixel_norm(parts: dict[str, Tensor]) -> None:
    """Multiply the patch embedding's weight by that of InternVideo-Next's norm on pixels, which goes."""
    norm, weight = parts.get("patch_embed.norm_before.weight"), parts.get("patch_embed.weight")
    if norm is None or weight is None or weight.dim() != 5 or norm.numel() != weight[0].numel():
        return
    if not (norm.is_floating_point() and weight.is_floating_point()):
        return
    del parts["patch_embed.norm_before.weight"]
    # The norm counts frame, pixel row, pixel column, color; the convolution begins with the color.
    _, colors, *pixels = weight.shape
    factors = norm.view(*pixels, colors).permute(3, 0, 1, 2)
    parts["patch_embed.weight"] = weight.float() * factors.float()
