"""VideoMAE's encoder, and VideoMAEv2's: a fixed table of sine positions, and no bias of keys.

VideoMAE: Tong et al., NeurIPS 2022; VideoMAEv2: Wang et al., CVPR 2023. Its features are the tokens behind the last
block, without a norm, as AdaTAD takes them.

Shapes: n clips, l tokens of a clip (time, then row, then column), c width; h heads, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.adapter import Adapter
from adatad.models.backbone import VideoBackbone
from adatad.models.vit import (
    MLP,
    NORM_EPS,
    Block,
    BranchForm,
    BranchWeights,
    ClipTables,
    attend,
    project,
    resize_positions,
    sine_table,
)
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.sizes import BackboneSizes

QKV_BIAS = "attn.qkv_bias"
"""The biases of queries, keys (zeros) and values as one tensor; not a parameter of its own."""


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
        return self.proj(attend(*project(x_nlc, self.heads, self.qkv.weight, bias)))


def attention(x_nlc: Tensor, weights: BranchWeights, heads: int, tables: ClipTables) -> Tensor:
    """Return attention's part of the residual sum: [n, l, c] -> [n, l, c]. tables: none."""
    norm, norm_bias, qkv, qkv_bias, last, last_bias = weights
    normed = F.layer_norm(x_nlc, x_nlc.shape[-1:], norm, norm_bias, NORM_EPS)
    return F.linear(attend(*project(normed, heads, qkv, qkv_bias)), last, last_bias)


class VideoMAEBlock(Block):
    """A block whose biases of queries and values are parameters of their own."""

    forms = (
        BranchForm(
            attention,
            ("norm1.weight", "norm1.bias", "attn.qkv.weight", QKV_BIAS, "attn.proj.weight", "attn.proj.bias"),
        ),
        MLP,
    )

    def join_weights(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with one bias for queries, keys and values, `QKV_BIAS`."""
        q_bias, v_bias = named.pop("attn.q_bias"), named.pop("attn.v_bias")
        # The model has no bias of keys; one product for all three wants zeros there.
        joined = torch.cat([q_bias.detach(), torch.zeros_like(q_bias), v_bias.detach()])
        return {**named, QKV_BIAS: joined.requires_grad_(q_bias.requires_grad or v_bias.requires_grad)}

    def part_gradients(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients with those of both biases, from that of `QKV_BIAS`."""
        if QKV_BIAS in parts:
            # The middle third is that of the zeros.
            q_part, _, v_part = parts.pop(QKV_BIAS).chunk(3)
            biases = {"attn.q_bias": q_part, "attn.v_bias": v_part}
            # One of the two may be frozen: the joined bias has a gradient as soon as either learns.
            parts |= {name: part for name, part in biases.items() if self.get_parameter(name).requires_grad}
        return parts


class VideoMAE(VideoBackbone):
    """VideoMAE's encoder over every clip of a window."""

    family = "videomae"

    def __init__(self, spec: BackboneSpec, drawn: bool = True):
        """See `VideoBackbone`."""
        super().__init__(spec, drawn)
        table = sine_table(self.clip_tubelets * self.position_grid**2, self.width)
        self.register_buffer("position_table", table, persistent=False)

    def build_block(self, sizes: BackboneSizes, adapter: Adapter | None) -> Block:
        """Return a new block around an adapter."""
        return VideoMAEBlock(sizes.width, Attention(sizes.width, sizes.heads), sizes.mlp_width, adapter)

    def add_positions(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return tokens [n, l, c] plus the table, resized to their rows and columns."""
        grid = (self.position_grid, self.position_grid)
        return tokens + resize_positions(self.position_table, self.clip_tubelets, grid, rows, columns)
