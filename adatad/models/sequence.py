"""Layers for feature sequences [batch, channels, time] with a validity mask: conv unit, attention, transformer block.

Shapes: b batch, c channels, t positions of a level, h heads, d channels of a head. Masks are bool [b, t].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.keyed_dropout import Dropout, keep_factors

MASKED = -1e4
"""Added to the scores of masked keys in windowed attention, as the reference does."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [b, c, t]."""

    def forward(self, x_bct: Tensor) -> Tensor:
        """Return the normed channels, of the same shape."""
        return super().forward(x_bct.transpose(1, 2)).transpose(1, 2)


class ConvUnit(nn.Module):
    """Convolution, optional norm, optional ReLU, mask. A stride keeps every stride-th position of the mask."""

    def __init__(
        self,
        in_width: int,
        width: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: bool = False,
        relu: bool = False,
    ):
        super().__init__()
        bias = not norm if bias is None else bias
        self.conv = nn.Conv1d(in_width, width, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = ChannelNorm(width, eps=1e-6) if norm else None
        self.relu = relu
        self.stride = stride

    def forward(self, x_bct: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result [b, width, t / stride] and its mask."""
        mask = mask[:, :: self.stride]
        x_bct = self.conv(x_bct)
        if self.norm is not None:
            x_bct = self.norm(x_bct)
        if self.relu:
            x_bct = F.relu(x_bct)
        # Norm and ReLU see one position at a time: masking before them too, as the paper's code does, changes nothing.
        return x_bct * mask[:, None], mask


class SequenceAttention(nn.Module):
    """Multi-head attention over time; queries, keys and values each through a depthwise convolution and a norm.

    window: a position sees window // 2 to each side; -1: all. A stride shortens queries, keys and values alike.
    """

    def __init__(self, width: int, heads: int, stride: int, window: int):
        super().__init__()
        self.heads, self.stride, self.window = heads, stride, window
        for name in ("query", "key", "value"):
            depthwise = ConvUnit(width, width, 3, stride, groups=width, bias=False)
            setattr(self, f"{name}_conv", depthwise)
            setattr(self, f"{name}_norm", ChannelNorm(width, eps=1e-5))
            setattr(self, name, nn.Conv1d(width, width, 1))
        self.proj = nn.Conv1d(width, width, 1)

    def forward(self, x_bct: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result [b, c, t / stride] and its mask."""
        short_mask = mask[:, :: self.stride]
        units = self.query_conv, self.key_conv, self.value_conv
        # One convolution for all three: of each channel it makes three, next to each other.
        weight = torch.stack([unit.conv.weight for unit in units], dim=1).flatten(0, 1)
        joint = F.conv1d(x_bct, weight, stride=self.stride, padding=1, groups=x_bct.shape[1])
        # Masked as `ConvUnit` masks its result, whose weights are used here without calling it.
        query, key, value = (joint * short_mask[:, None]).unflatten(1, (-1, 3)).unbind(2)
        q_bhtd = self._split(self.query(self.query_norm(query)))
        k_bhtd = self._split(self.key(self.key_norm(key)))
        v_bhtd = self._split(self.value(self.value_norm(value)))
        mixed_bhtd = (
            global_attention(q_bhtd, k_bhtd, v_bhtd, short_mask) if self.window < 0 else
            windowed_attention(q_bhtd, k_bhtd, v_bhtd, short_mask, self.window // 2)
        )  # fmt: skip
        out_bct = self.proj(mixed_bhtd.transpose(2, 3).flatten(1, 2))
        return out_bct * short_mask[:, None], short_mask

    def _split(self, x_bct: Tensor) -> Tensor:
        """Split channels into heads: [b, c, t] -> [b, h, t, d]."""
        return x_bct.unflatten(1, (self.heads, -1)).transpose(2, 3)


def global_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend to every valid position; a sample without one gives zeros. q, k, v: [b, h, t, d]."""
    # The reference gives NaN where nothing is valid; letting such a sample see its zeroed values gives zeros.
    seen = mask == mask.any(1, keepdim=True)
    v = v * mask[:, None, :, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, reach: int) -> Tensor:
    """Attend to positions at most `reach` away, in chunks: memory grows with t x reach, not with t x t.

    q, k, v: [b, h, t, d]; mask: bool [b, t]. Masked queries give zeros.
    """
    # Not shorter than the reach: keys are copied once for each chunk that sees them.
    length, chunk = q.shape[2], max(reach, 32)
    short = -length % chunk
    q_chunks = F.pad(q, (0, 0, 0, short)).unflatten(2, (-1, chunk))
    # Each chunk of queries with the keys that its first and last position reach.
    k_chunks, v_chunks = (_overlapping(x_bhtd, chunk, reach, short) for x_bhtd in (k, v))
    bias = _window_bias(mask, chunk, reach, short).to(q.dtype)
    # Chunks as samples of a batch: fused kernels take four axes.
    parts = [x_bhtd.transpose(1, 2).flatten(0, 1) for x_bhtd in (q_chunks, k_chunks, v_chunks)]
    mixed = F.scaled_dot_product_attention(*parts, attn_mask=bias.flatten(0, 1)[:, None])
    mixed = mixed.unflatten(0, (len(q), -1)).transpose(1, 2).flatten(2, 3)
    return mixed[:, :, :length] * mask[:, None, :, None]


def _overlapping(x_bhtd: Tensor, chunk: int, reach: int, short: int) -> Tensor:
    """Return each chunk with `reach` positions to both sides: [b, h, t, d] -> [b, h, chunks, chunk + 2 reach, d]."""
    padded = F.pad(x_bhtd, (0, 0, reach, reach + short))
    return padded.unfold(2, chunk + 2 * reach, chunk).transpose(3, 4)


def _window_bias(mask: Tensor, chunk: int, reach: int, short: int) -> Tensor:
    """Return what is added to the scores: float32 [b, chunks, chunk, chunk + 2 reach]."""
    query = torch.arange(chunk, device=mask.device)[:, None] + reach
    key = torch.arange(chunk + 2 * reach, device=mask.device)[None]
    far = (query - key).abs() > reach
    exists = F.pad(torch.ones_like(mask), (reach, reach + short)).unfold(1, chunk + 2 * reach, chunk)
    valid = F.pad(mask, (reach, reach + short)).unfold(1, chunk + 2 * reach, chunk)
    # A masked key is disfavoured, not excluded: a query whose whole window is masked still has a softmax.
    bias = torch.where(valid, 0.0, MASKED)[:, :, None]
    # A query beyond the end has no neighbour; it sees itself, so that no row is empty, and is cut off afterwards.
    hidden = far | (~exists[:, :, None] & (query != key))
    return bias.masked_fill(hidden, float("-inf"))


class SequenceBlock(nn.Module):
    """A transformer block that may halve the length; residual branches have a learned scale and stochastic depth."""

    def __init__(
        self,
        width: int,
        heads: int,
        stride: int,
        window: int,
        layer_scale: bool,
        drop_path: float,
        name: str,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.ln1 = ChannelNorm(width, eps=1e-5)
        self.ln2 = ChannelNorm(width, eps=1e-5)
        self.attn = SequenceAttention(width, heads, stride, window)
        self.mlp = nn.Sequential(nn.Conv1d(width, 4 * width, 1), nn.GELU(), nn.Conv1d(4 * width, width, 1))
        self.pool = nn.Identity() if stride == 1 else nn.MaxPool1d(3, stride, 1)
        for branch in ("attn", "mlp"):
            scale = nn.Parameter(torch.full((1, width, 1), 1e-4)) if layer_scale else None
            self.register_parameter(f"{branch}_scale", scale)
        self.drop_path = drop_path
        self.branch_names = f"{name}/attention", f"{name}/mlp"
        """Names of the draws of stochastic depth."""
        self.drop_mixed = Dropout(dropout, f"{name}/attention numbers", axes=3)
        self.drop_hidden = Dropout(dropout, f"{name}/mlp hidden numbers", axes=3)
        self.drop_out = Dropout(dropout, f"{name}/mlp numbers", axes=3)

    def forward(
        self, x_bct: Tensor, mask: Tensor, keys: Tensor | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the block. mask: bool [b, t]; keys: int64 [b], or None to drop nothing.

        kept: the two rows that `keep_factors` gives for `branch_names`, if drawn for several blocks at once.
        """
        if kept is None and keys is not None and self.drop_path:
            kept = keep_factors(keys, self.drop_path, self.branch_names, x_bct.dtype)
        keep_attn, keep_mlp = (None, None) if kept is None else kept[..., None, None]
        update, mask = self.attn(self.ln1(x_bct), mask)
        valid = mask[:, None]
        update = self.drop_mixed(update, keys)
        # The residual is shortened by a maximum, the branch by its strided convolutions.
        x_bct = self.pool(x_bct) * valid + _scaled(update, self.attn_scale, keep_attn)
        widen, activation, narrow = self.mlp
        hidden = self.drop_hidden(activation(widen(self.ln2(x_bct))), keys)
        update = self.drop_out(narrow(hidden), keys) * valid
        return x_bct + _scaled(update, self.mlp_scale, keep_mlp), mask


def _scaled(x_bct: Tensor, *factors: Tensor | None) -> Tensor:
    for factor in factors:
        x_bct = x_bct if factor is None else x_bct * factor
    return x_bct
