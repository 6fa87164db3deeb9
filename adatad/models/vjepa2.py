"""V-JEPA 2's encoder, and 2.1's: places come in by rotating queries and keys, and a norm follows the last block.

Assran et al., "V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning", 2025. Mur-Labadia
et al., "V-JEPA 2.1: Unlocking Dense Features in Video Self-Supervised Learning", 2026; of this the authors' published
code was read. Tubelets of two frames, patches of 16 pixels, no class token. V-JEPA 2 counts places from the clip's own
corner, so that clips of any length and frames of any size need no table to be resized.

Shapes: n clips, l tokens of a clip (time, then row, then column), c width; h heads, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.adapter import Adapter
from adatad.models.backbone import VideoBackbone
from adatad.models.vit import MLP, NORM_EPS, Block, BranchForm, BranchWeights, ClipTables, attend, project
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.sizes import BackboneSizes

SCALED_PIXELS = 256
"""Side of the frames whose rows and columns V-JEPA 2.1's are scaled to."""
LOWEST_RATE = 1e-4
"""The rates of an axis fall from 1 radian a position towards this one."""


def channels_of_axis(head_width: int) -> int:
    """Return how many of a head's channels turn with each of time, row and column: a third, rounded down to even."""
    return head_width // 3 // 2 * 2


def rotary_tables(
    time: Tensor, row: Tensor, column: Tensor, head_width: int, in_pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the cosines and the signed sines that `rotate` takes, float32 [l, d] each.

    time, row, column: places along each axis, float64, of one dimension each. Channels are those of time, of the row,
    of the column, and the few left over, which don't turn. in_pairs: both channels of a pair turn at one rate. V-JEPA
    2's weights were made without that: its rates are laid out for the first half of an axis's channels and again for
    the second one, while neighbours are rotated as pairs.
    """
    size = channels_of_axis(head_width)
    # In double precision: angles grow with places, and their rounding would with them.
    rates = LOWEST_RATE ** (torch.arange(size // 2, dtype=torch.float64, device=time.device) / max(size // 2, 1))
    rates = rates.repeat_interleave(2) if in_pairs else rates.repeat(2)
    shape = len(time), len(row), len(column)
    axes = time[:, None, None], row[:, None], column
    angles = [(places[..., None] * rates).expand(*shape, size) for places in axes]
    angles.append(rates.new_zeros(*shape, head_width - 3 * size))
    angle_ld = torch.cat(angles, -1).flatten(0, 2)
    # The first of a pair loses what the second one gains.
    sign = 1.0 - 2.0 * (torch.arange(head_width, device=time.device) % 2 == 0)
    return angle_ld.cos().float(), (angle_ld.sin() * sign).float()


def rotate(x_nhld: Tensor, cos_ld: Tensor, sin_ld: Tensor) -> Tensor:
    """Return queries or keys turned by their places, in their own dtype."""
    cos_ld, sin_ld = cos_ld.to(x_nhld.dtype), sin_ld.to(x_nhld.dtype)
    # Neighbours change places.
    exchanged = x_nhld.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x_nhld * cos_ld, exchanged, sin_ld)


def attend_turned(x_nlc: Tensor, heads: int, weight: Tensor, bias: Tensor, tables: ClipTables) -> Tensor:
    """Return attention of turned queries and keys before its last projection: [n, l, c] -> [n, l, c]."""
    q_nhld, k_nhld, v_nhld = project(x_nlc, heads, weight, bias)
    # A copy of the values: a view would keep the whole product for backward, beside the turned queries and keys.
    return attend(rotate(q_nhld, *tables), rotate(k_nhld, *tables), v_nhld.clone())


class RotaryAttention(nn.Module):
    """Multi-head self-attention inside a clip, with biases, of queries and keys that are turned."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_nlc: Tensor, *tables: Tensor) -> Tensor:
        """Return attention's part of the residual sum, of the same shape. tables: of `rotary_tables`."""
        return self.proj(attend_turned(x_nlc, self.heads, self.qkv.weight, self.qkv.bias, tables))


def attention(x_nlc: Tensor, weights: BranchWeights, heads: int, tables: ClipTables) -> Tensor:
    """Return attention's part of the residual sum: [n, l, c] -> [n, l, c]. tables: of `rotary_tables`."""
    norm, norm_bias, qkv, qkv_bias, last, last_bias = weights
    normed = F.layer_norm(x_nlc, x_nlc.shape[-1:], norm, norm_bias, NORM_EPS)
    return F.linear(attend_turned(normed, heads, qkv, qkv_bias, tables), last, last_bias)


class VJEPA2Block(Block):
    """A block whose attention turns queries and keys."""

    forms = (
        BranchForm(
            attention,
            ("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
        ),
        MLP,
    )


class VJEPA2(VideoBackbone):
    """V-JEPA 2's encoder over every clip of a window. Features are the tokens behind its last norm."""

    family = "vjepa2"
    has_final_norm = True

    def __init__(self, spec: BackboneSpec, drawn: bool = True):
        """See `VideoBackbone`."""
        super().__init__(spec, drawn)
        self.head_width = self.width // self.blocks[0].attn.heads
        self.final_norm = nn.LayerNorm(self.width, eps=NORM_EPS)

    def build_block(self, sizes: BackboneSizes, adapter: Adapter | None) -> Block:
        """Return a new block around an adapter."""
        return VJEPA2Block(sizes.width, RotaryAttention(sizes.width, sizes.heads), sizes.mlp_width, adapter)

    def clip_tables(self, height: int, width: int, device: torch.device) -> ClipTables:
        """Return `rotary_tables` for clips of so many pixels."""
        counts = self.clip_tubelets, height // self.patch, width // self.patch
        places = (torch.arange(count, dtype=torch.float64, device=device) for count in counts)
        return rotary_tables(*places, self.head_width)


class VJEPA21(VJEPA2):
    """V-JEPA 2.1's encoder: rows and columns are scaled to those of a frame of 256 pixels, and pairs turn as one.

    The vector that it adds to the tokens of videos is a part of the patch embedding's bias here.
    """

    family = "vjepa2.1"

    def clip_tables(self, height: int, width: int, device: torch.device) -> ClipTables:
        """Return `rotary_tables` for clips of so many pixels."""
        time = torch.arange(self.clip_tubelets, dtype=torch.float64, device=device)
        row, column = (spread_places(pixels // self.patch, self.patch, device) for pixels in (height, width))
        return rotary_tables(time, row, column, self.head_width, in_pairs=True)


def spread_places(count: int, patch: int, device: torch.device) -> Tensor:
    """Return the places of so many rows or columns between the first and the last one of a frame of 256 pixels."""
    last = SCALED_PIXELS // patch - 1
    return torch.arange(count, dtype=torch.float64, device=device) * (last / max(count - 1, 1))
