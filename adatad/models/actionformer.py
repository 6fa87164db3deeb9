"""ActionFormer: a window's features to a pyramid of levels, and predictions at every point of every level.

Projection (convolutions, a transformer stem, branches that halve the length), neck, and a head that all levels share.

Shapes: b windows, c channels, t positions of a level, p points of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.keyed_dropout import Dropout, keep_factors
from adatad.models.sequence import ChannelNorm, ConvUnit, SequenceBlock
from adatad.models.vit import sine_table
from adatad.spec.model_sections import DetectorSpec

PRIOR = 0.01
"""Probability of every class at the start, so that the many negatives don't dominate the first steps."""
HEAD_KERNEL = 3
GAP = HEAD_KERNEL // 2
"""Zeros between two levels: as far as a convolution of the head reaches."""


class Predictions(NamedTuple):
    """Predictions by level.

    logits: [b, classes, t] before the sigmoid; offsets: [b, 2, t] in strides; masks: bool [b, t]; points: [t, 4], that
    is position, lowest and highest distance it is responsible for, and stride (all in grid units).
    """

    logits: list[Tensor]
    offsets: list[Tensor]
    masks: list[Tensor]
    points: list[Tensor]


class ActionFormer(nn.Module):
    """Projection, neck and head over the features of a window."""

    def __init__(self, spec: DetectorSpec, in_width: int | tuple[int, ...], num_classes: int):
        super().__init__()
        self.spec = spec
        in_widths = (in_width,) if isinstance(in_width, int) else in_width
        self.projection = Projection(spec, in_widths)
        self.neck = build_neck(spec)
        self.head = Head(spec, num_classes)
        self._points: dict[tuple[int, torch.device | None], list[Tensor]] = {}

    def forward(self, features_bct: Tensor, mask: Tensor, keys: Tensor | None = None) -> Predictions:
        """Predict at every point of every level.

        features_bct: [b, c, window]; mask: bool [b, window]; keys: int64 [b], or None to drop nothing.
        """
        # Windows shorter than max_length are padded to it, also in evaluation, as in training.
        length = padded_length(features_bct.shape[-1], self.spec)
        if length > features_bct.shape[-1]:
            features_bct, mask = (F.pad(x, (0, length - x.shape[-1])) for x in (features_bct, mask))
        levels, masks = self.projection(features_bct, mask, keys)
        logits, offsets = self.head(self.neck(levels, masks), masks)
        return Predictions(logits, offsets, masks, self.points(mask.shape[-1], features_bct.device))

    def level_masks(self, mask: Tensor) -> list[Tensor]:
        """Return the masks of the levels for a window's mask [b, window], without a forward pass."""
        return level_masks(mask, self.spec)

    def points(self, window: int, device: torch.device | None = None) -> list[Tensor]:
        """Return the points of every level for a window of so many positions: float32 [t, 4] each."""
        if (window, device) not in self._points:
            # Made once for each length: training has one, each longer window in evaluation adds its own.
            self._points[window, device] = level_points(window, self.spec, device)
        return self._points[window, device]


# Where predictions are made


def level_windows(spec: DetectorSpec) -> tuple[int, ...]:
    """Return the attention window of each level."""
    if isinstance(spec.attention_window, int):
        return (spec.attention_window,) * (spec.branch_blocks + 1)
    return spec.attention_window


def level_masks(mask: Tensor, spec: DetectorSpec) -> list[Tensor]:
    """Return masks of the levels for a window's mask [b, window], without a forward pass."""
    mask = F.pad(mask, (0, padded_length(mask.shape[-1], spec) - mask.shape[-1]))
    return [mask[:, :: 2**level] for level in range(spec.branch_blocks + 1)]


def level_points(window: int, spec: DetectorSpec, device: torch.device | None = None) -> list[Tensor]:
    """Return points of every level for a window of that many positions: float32 [t, 4] each."""
    length, points = padded_length(window, spec), []
    for level, (low, high) in enumerate(spec.regression_ranges):
        stride = 2**level
        position = torch.arange(0, length, stride, dtype=torch.float32, device=device)
        if spec.point_offset:
            # The middle of the stride instead of its start.
            position = position + stride / 2
        facts = [torch.full_like(position, value) for value in (low, high, stride)]
        points.append(torch.stack([position, *facts], dim=1))
    return points


def padded_length(window: int, spec: DetectorSpec) -> int:
    """Return the length that features are padded to: `max_length`, or the next one that every level can divide."""
    if window <= spec.max_length:
        return spec.max_length
    # Levels of stride 2^l whose attention works on chunks: all of them must come out even.
    steps = [
        2**level * (2 * (attention // 2) if attention > 1 else 1) for level, attention in enumerate(level_windows(spec))
    ]
    return -(-window // max(steps)) * max(steps)


# Features to levels


class Projection(nn.Module):
    """Features of a window to a pyramid of levels: level 0 at full length, each further one half as long."""

    def __init__(self, spec: DetectorSpec, in_widths: tuple[int, ...]):
        super().__init__()
        self.in_widths = in_widths
        self.drop_path = spec.drop_path
        self.drop_input = Dropout(spec.input_dropout, "detector/input", axes=2)
        split = spec.split_width or ()
        self.proj = nn.ModuleList(ConvUnit(i, o, 1) for i, o in zip(in_widths, split, strict=True)) if split else None
        width = sum(split) if split else sum(in_widths)
        self.embed = nn.ModuleList()
        for _ in range(spec.embed_convs):
            self.embed.append(ConvUnit(width, spec.width, spec.embed_kernel, norm=True, relu=True))
            width = spec.width
        windows = level_windows(spec)
        self.stem = nn.ModuleList(self._block(spec, 1, windows[0], f"stem/{i}") for i in range(spec.stem_blocks))
        self.branch = nn.ModuleList(
            self._block(spec, 2, windows[i + 1], f"branch/{i}") for i in range(spec.branch_blocks)
        )
        self.reset_biases()
        table = sine_table(spec.max_length, spec.width) / spec.width**0.5 if spec.absolute_positions else None
        positions = None if table is None else table.transpose(1, 2)
        self.register_buffer("positions", positions, persistent=False)

    def _block(self, spec: DetectorSpec, stride: int, window: int, name: str) -> SequenceBlock:
        name = f"detector/{name}"
        rest = spec.layer_scale, spec.drop_path, name, spec.dropout
        return SequenceBlock(spec.width, spec.heads, stride, window, *rest)

    def reset_biases(self) -> None:
        """Set all biases of convolutions to zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x_bct: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Return the levels [b, c, t / 2^l] and their masks. x_bct: [b, in, t]; mask: bool [b, t]."""
        x_bct = self.drop_input(x_bct, keys)
        if self.proj is not None:
            streams = x_bct.split(self.in_widths, dim=1)
            x_bct = torch.cat([unit(stream, mask)[0] for unit, stream in zip(self.proj, streams, strict=True)], dim=1)
        for unit in self.embed:
            x_bct, mask = unit(x_bct, mask)
        if self.positions is not None:
            x_bct = x_bct + self._positions(x_bct.shape[-1]) * mask[:, None]
        kept = iter(self._draw_keep_factors(keys, x_bct.dtype))
        for block in self.stem:
            x_bct, mask = block(x_bct, mask, keys, next(kept))
        levels, masks = [x_bct], [mask]
        for block in self.branch:
            x_bct, mask = block(x_bct, mask, keys, next(kept))
            levels.append(x_bct)
            masks.append(mask)
        return levels, masks

    def _draw_keep_factors(self, keys: Tensor | None, dtype: torch.dtype) -> Sequence[Tensor | None]:
        """Return the factors of each block's two residual branches, [2, b], in the order of blocks."""
        blocks = [*self.stem, *self.branch]
        if keys is None or not self.drop_path or not blocks:
            return [None] * len(blocks)
        # All in one go: block by block, small kernels would keep a GPU waiting for the host.
        names = [name for block in blocks for name in block.branch_names]
        return keep_factors(keys, self.drop_path, names, dtype).unflatten(0, (-1, 2)).unbind()

    def _positions(self, length: int) -> Tensor:
        """Return the table cut to a length; in evaluation stretched to one that is longer."""
        longest = self.positions.shape[-1]
        # The reference stretches the table even where it fits exactly, which changes nothing then.
        if not self.training and length >= longest:
            return F.interpolate(self.positions, size=length, mode="linear", align_corners=False)
        if length > longest:
            raise ValueError(f"{length} positions in training, but model.detector.max_length is {longest}")
        return self.positions[..., :length]


class IdentityNeck(nn.Module):
    """A norm for each level."""

    def __init__(self, width: int, levels: int):
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(width, eps=1e-6) for _ in range(levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Return the levels, each normed. masks: unused, as `FpnNeck` has them."""
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)]


class FpnNeck(nn.Module):
    """A top-down feature pyramid: each level plus the coarser one above it, repeated to its length."""

    def __init__(self, width: int, levels: int, norm: bool):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvUnit(width, width, 1, norm=norm) for _ in range(levels))
        self.fpn_convs = nn.ModuleList(ConvUnit(width, width, 3, norm=norm) for _ in range(levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Return levels [b, c, t_l] of the same shapes."""
        # Under autocast convolutions give 16 bits; sums over levels stay in the dtype of the levels.
        merged = [conv(x, mask)[0].to(x.dtype) for conv, x, mask in zip(self.lateral_convs, levels, masks, strict=True)]
        # From the coarsest level down, so that each has all coarser ones in it.
        for index in range(len(merged) - 1, 0, -1):
            finer = merged[index - 1]
            merged[index - 1] = finer + F.interpolate(merged[index], size=finer.shape[-1], mode="nearest")
        return [conv(x, mask)[0] for conv, x, mask in zip(self.fpn_convs, merged, masks, strict=True)]


def build_neck(spec: DetectorSpec) -> IdentityNeck | FpnNeck:
    """Return what stands between projection and head."""
    levels = spec.branch_blocks + 1
    match spec.neck:
        case "identity":
            return IdentityNeck(spec.width, levels)
        case "fpn":
            return FpnNeck(spec.width, levels, spec.neck_norm)


# Levels to predictions


class Head(nn.Module):
    """Two towers of convolutions, one for classes and one for offsets, over all levels at once."""

    def __init__(self, spec: DetectorSpec, num_classes: int):
        super().__init__()
        width = spec.width
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(ConvUnit(width, width, HEAD_KERNEL, norm=True, relu=True) for _ in range(spec.head_convs))
            for _ in range(2)
        )
        self.cls_head = nn.Conv1d(width, num_classes, HEAD_KERNEL, padding=GAP)
        self.reg_head = nn.Conv1d(width, 2, HEAD_KERNEL, padding=GAP)
        # The sigmoid of this bias is PRIOR.
        nn.init.constant_(self.cls_head.bias, -math.log((1 - PRIOR) / PRIOR))
        self.scales = nn.ParameterList(torch.tensor(1.0) for _ in range(spec.branch_blocks + 1))

    @property
    def is_new(self) -> bool:
        """True while every class has the bias that it begins with: no training has changed it."""
        return bool((self.cls_head.bias == -math.log((1 - PRIOR) / PRIOR)).all())

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits [b, classes, t_l] and offsets [b, 2, t_l], in strides, not masked. levels: [b, c, t_l]."""
        lengths = [level.shape[-1] for level in levels]
        # One after another in time: a level a launch would keep a GPU waiting for the host.
        x_bct, mask = join_levels(levels), join_levels([mask[:, None] for mask in masks])[:, 0]
        logits = self.cls_head(_tower(self.cls_convs, x_bct, mask))
        # One factor a level, laid out like the joined sequence.
        scales = [scale.expand(length + GAP) for scale, length in zip(self.scales, lengths, strict=True)]
        offsets = F.relu(self.reg_head(_tower(self.reg_convs, x_bct, mask)) * torch.cat(scales))
        return split_levels(logits, lengths), split_levels(offsets, lengths)


def _tower(units: nn.ModuleList, x_bct: Tensor, mask: Tensor) -> Tensor:
    for unit in units:
        x_bct, mask = unit(x_bct, mask)
    return x_bct


def join_levels(levels: list[Tensor]) -> Tensor:
    """Join all levels in one sequence, each followed by GAP zeros: [b, c, t_l] each -> [b, c, sum of (t_l + GAP)].

    Convolutions of HEAD_KERNEL find the zeros there that they would pad each level with, as long as what lies between
    two of them is masked.
    """
    gap = levels[0].new_zeros(*levels[0].shape[:-1], GAP)
    return torch.cat([part for level in levels for part in (level, gap)], dim=-1)


def split_levels(joined: Tensor, lengths: list[int]) -> list[Tensor]:
    """Return the levels of a joined sequence: what `join_levels` was given."""
    # Copies, which are small: FSDP warns of a model that returns views.
    sizes = [size for length in lengths for size in (length, GAP)]
    return list(torch.split_with_sizes_copy(joined, sizes, dim=-1)[::2])


# Predictions to segments


def decode(predictions: Predictions) -> list[tuple[Tensor, Tensor]]:
    """Return candidates by sample, before any threshold or NMS: those of valid points, levels joined.

    Segments are float32 [n, 2] in grid units, scores float32 [n, classes]. On a GPU the host waits for their number.
    """
    return only_valid(*decode_all(predictions))


def decode_all(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """Return candidates of all points, levels joined. No shape depends on values.

    Segments float32 [b, p, 2] in grid units, scores float32 [b, p, classes], and which are valid, bool [b, p].
    """
    points, valid = torch.cat(predictions.points), torch.cat(predictions.masks, dim=1)
    scores = torch.cat(predictions.logits, dim=2).transpose(1, 2).float().sigmoid()
    offsets = torch.cat(predictions.offsets, dim=2).transpose(1, 2).float()
    position, stride = points[:, 0], points[:, 3]
    segments = torch.stack([position - offsets[..., 0] * stride, position + offsets[..., 1] * stride], dim=2)
    return segments, scores, valid


def only_valid(segments: Tensor, scores: Tensor, valid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return copies of what valid points have, by sample."""
    return [(s[mask], c[mask]) for s, c, mask in zip(segments, scores, valid, strict=True)]
