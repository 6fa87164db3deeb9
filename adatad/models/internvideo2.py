"""InternVideo2's encoder, and InternVideo-Next's: class tokens, RMS norms, also of queries and keys, scaled branches.

Wang et al., "InternVideo2: Scaling Foundation Models for Multimodal Video Understanding", ECCV 2024, and
"InternVideo-Next: Towards General Video Foundation Models without Video-Text Supervision", 2025; the authors' published
code was read. Every frame is a tubelet of its own. Positions are learned and added to the tokens. Class tokens stand
before those of patches in each clip: attention and MLP see them, adapters and features don't. Features are the tokens
of patches behind the last block, without a norm.

Shapes: n clips, l tokens of a clip (class tokens, then patches by time, row and column), c width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.adapter import Adapter
from adatad.models.backbone import VideoBackbone
from adatad.models.timm_layers import Mlp, trunc_normal_
from adatad.models.vit import (
    NORM_EPS,
    Block,
    BranchForm,
    BranchWeights,
    ClipTables,
    attend,
    outside_autocast,
    resize_positions,
    sine_table,
    split_heads,
)
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.sizes import BackboneSizes

SCALE_START = 1e-5
"""Start of the scales of branches, for weights that no file gives."""


def rms_norm(x_nlc: Tensor, weight: Tensor | None) -> Tensor:
    """Return tokens divided by their root mean square, times a weight: in the wider dtype of both.

    Autocast leaves this function alone; so fp32 weights, which are those of trained norms, mean fp32, as they do for
    layer norms.
    """
    if weight is not None:
        # One dtype for both, which PyTorch's fused kernel wants; it sums in fp32 whatever that is.
        dtype = torch.promote_types(x_nlc.dtype, weight.dtype)
        x_nlc, weight = x_nlc.to(dtype), weight.to(dtype)
    return F.rms_norm(x_nlc, x_nlc.shape[-1:], weight, NORM_EPS)


def scaled(added_nlc: Tensor, scale: Tensor) -> Tensor:
    """Return a branch times its scale, a number for each channel, in the branch's dtype."""
    return added_nlc * scale.to(added_nlc.dtype)


def attend_normed(x_nlc: Tensor, heads: int, qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
    """Return attention of normed queries and keys before its last projection: [n, l, c] -> [n, l, c]."""
    q_nlc, k_nlc, v_nlc = F.linear(x_nlc, qkv).split(x_nlc.shape[-1], -1)
    # Over all heads together. Back in the dtype of values: attention takes one for all three.
    q_nlc, k_nlc = rms_norm(q_nlc, q_norm).to(v_nlc.dtype), rms_norm(k_nlc, k_norm).to(v_nlc.dtype)
    return attend(*(split_heads(part, heads) for part in (q_nlc, k_nlc, v_nlc)))


def resize_positions_by_product(table: Tensor, tubelets: int, grid: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Return what `resize_positions` does but for rounding, by one matrix product, whose backward is a product too."""
    if grid == (rows, columns):
        return table
    places = grid[0] * grid[1]
    identity = torch.eye(places, dtype=table.dtype, device=table.device)
    # Autocast would make a 16-bit product of it.
    with outside_autocast(table.device):
        weights = resize_positions(identity[None], 1, grid, rows, columns)[0]
        return (weights @ table.unflatten(1, (tubelets, places))).flatten(1, 2)


class RMSNorm(nn.RMSNorm):
    """A norm that computes `rms_norm`."""

    def forward(self, x_nlc: Tensor) -> Tensor:
        """Return the normed tokens."""
        return rms_norm(x_nlc, self.weight)


class NormedAttention(nn.Module):
    """Multi-head self-attention inside a clip, of normed queries and keys, with a scale for each channel."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width, eps=NORM_EPS)
        self.k_norm = RMSNorm(width, eps=NORM_EPS)
        self.scale = nn.Parameter(torch.full((width,), SCALE_START))
        self.proj = nn.Linear(width, width)

    def forward(self, x_nlc: Tensor) -> Tensor:
        """Return attention's part of the residual sum, of the same shape."""
        weights = self.qkv.weight, self.q_norm.weight, self.k_norm.weight
        return scaled(self.proj(attend_normed(x_nlc, self.heads, *weights)), self.scale)


class ScaledMlp(Mlp):
    """An MLP with a scale for each channel of its result."""

    def __init__(self, width: int, hidden: int):
        super().__init__(width, hidden)
        self.scale = nn.Parameter(torch.full((width,), SCALE_START))

    def forward(self, x_nlc: Tensor) -> Tensor:
        """Return the MLP's part of the residual sum, of the same shape."""
        return scaled(super().forward(x_nlc), self.scale)


def attention(x_nlc: Tensor, weights: BranchWeights, heads: int, tables: ClipTables) -> Tensor:
    """Return attention's part of the residual sum: [n, l, c] -> [n, l, c]. tables: none."""
    norm, qkv, q_norm, k_norm, scale, last, last_bias = weights
    attended = attend_normed(rms_norm(x_nlc, norm), heads, qkv, q_norm, k_norm)
    return scaled(F.linear(attended, last, last_bias), scale)


def mlp(x_nlc: Tensor, weights: BranchWeights, heads: int, tables: ClipTables) -> Tensor:
    """Return the MLP's part of the residual sum: [n, l, c] -> [n, l, c]. heads, tables: unused."""
    norm, first, first_bias, scale, last, last_bias = weights
    hidden = F.gelu(F.linear(rms_norm(x_nlc, norm), first, first_bias))
    return scaled(F.linear(hidden, last, last_bias), scale)


class InternVideo2Block(Block):
    """A block of scaled branches behind RMS norms."""

    norm_type = RMSNorm
    mlp_type = ScaledMlp
    forms = (
        BranchForm(
            attention,
            ("norm1.weight", "attn.qkv.weight", "attn.q_norm.weight", "attn.k_norm.weight", "attn.scale",
             "attn.proj.weight", "attn.proj.bias"),
        ),
        BranchForm(
            mlp,
            ("norm2.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.scale", "mlp.fc2.weight", "mlp.fc2.bias"),
        ),
    )  # fmt: skip


class TokenEmbedding(nn.Conv3d):
    """The patch embedding, the class tokens, and the positions of both.

    Positions are parameters here, unlike VideoMAE's fixed table: they were learned, and come with a file's weights.
    """

    def __init__(self, width: int, kernel: tuple[int, int, int], class_tokens: int, patches: int):
        """patches: of a clip of the size that the table of positions is of."""
        super().__init__(3, width, kernel)
        self.class_token = nn.Parameter(torch.zeros(1, class_tokens, width))
        trunc_normal_(self.class_token, std=0.02)
        table = sine_table(patches, width)
        self.positions = nn.Parameter(torch.cat([table.new_zeros(1, class_tokens, width), table], 1))


class InternVideo2(VideoBackbone):
    """InternVideo2's encoder over every clip of a window."""

    family = "internvideo2"
    class_tokens = 1

    def build_embedding(self, spec: BackboneSpec, sizes: BackboneSizes) -> TokenEmbedding:
        """Return the patch embedding with class tokens and positions."""
        kernel = spec.tubelet, sizes.patch, sizes.patch
        return TokenEmbedding(sizes.width, kernel, self.class_tokens, self.clip_tubelets * sizes.position_grid**2)

    def build_block(self, sizes: BackboneSizes, adapter: Adapter | None) -> Block:
        """Return a new block around an adapter."""
        return InternVideo2Block(sizes.width, NormedAttention(sizes.width, sizes.heads), sizes.mlp_width, adapter)

    def add_positions(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return class tokens and tokens of patches with their positions, which are resized to rows and columns."""
        embedding, grid = self.patch_embed, (self.position_grid, self.position_grid)
        first, patches = embedding.positions.tensor_split([self.class_tokens], 1)
        # On GPUs the backward kernel of interpolation adds in any order.
        in_order = not patches.is_cpu and torch.are_deterministic_algorithms_enabled()
        resize = resize_positions_by_product if in_order else resize_positions
        tokens = tokens + resize(patches, self.clip_tubelets, grid, rows, columns)
        class_tokens = (embedding.class_token + first).expand(len(tokens), -1, -1)
        return torch.cat([class_tokens.to(tokens.dtype), tokens], 1)


class InternVideoNext(InternVideo2):
    """InternVideo-Next's encoder: four class tokens, and norms on both sides of the patch embedding.

    The weight of the norm on its pixels is a part of the embedding's own here.
    """

    family = "internvideo-next"
    class_tokens = 4

    def build_embedding(self, spec: BackboneSpec, sizes: BackboneSizes) -> TokenEmbedding:
        """Return the patch embedding with class tokens, positions and a norm."""
        embedding = super().build_embedding(spec, sizes)
        embedding.norm = RMSNorm(sizes.width, eps=NORM_EPS)
        return embedding

    def project_patches(self, patches: Tensor) -> Tensor:
        """Return a token of each patch, of normed pixels, normed: [n, l, pixels of a patch] -> [n, l, c]."""
        return self.patch_embed.norm(super().project_patches(rms_norm(patches, None)))
