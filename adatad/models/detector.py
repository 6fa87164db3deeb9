"""The detector (ActionFormer) over features, and the whole model: backbone and detector."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.backbone import VideoBackbone
from adatad.models.head import Head
from adatad.models.neck import build_neck
from adatad.models.projection import Projection, level_windows
from adatad.spec.schema import DetectorSpec, ModelSpec


class Predictions(NamedTuple):
    """By level l of length t: logits [b, classes, t] before the sigmoid; offsets [b, 2, t] in strides; masks bool
    [b, t]; points [t, 4]: position, lowest and highest distance it is responsible for, stride (all in grid units)."""

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

    def forward(self, features: Tensor, mask: Tensor, keys: Tensor | None = None) -> Predictions:
        """features: [b, c, window]; mask: bool [b, window]; keys: int64 [b], or None to drop nothing."""
        length = padded_length(features.shape[-1], self.spec)
        if length > features.shape[-1]:
            features, mask = (F.pad(x, (0, length - x.shape[-1])) for x in (features, mask))
        levels, masks = self.projection(features, mask, keys)
        logits, offsets = self.head(self.neck(levels, masks), masks)
        return Predictions(logits, offsets, masks, self.points(mask.shape[-1], features.device))

    def level_masks(self, mask: Tensor) -> list[Tensor]:
        """Masks of the levels for a window's mask [b, window], without a forward pass."""
        mask = F.pad(mask, (0, padded_length(mask.shape[-1], self.spec) - mask.shape[-1]))
        return [mask[:, :: 2**level] for level in range(self.spec.branch_blocks + 1)]

    def points(self, window: int, device: torch.device | None = None) -> list[Tensor]:
        """Points of every level for a window of that many positions: float32 [t, 4] each. Made once for each length."""
        length = padded_length(window, self.spec)
        if (length, device) not in self._points:
            self._points[length, device] = self._make_points(length, device)
        return self._points[length, device]

    def _make_points(self, length: int, device: torch.device | None) -> list[Tensor]:
        points = []
        for level, (low, high) in enumerate(self.spec.regression_ranges):
            stride = 2**level
            position = torch.arange(0, length, stride, dtype=torch.float32, device=device)
            if self.spec.point_offset:
                position = position + stride / 2
            facts = [torch.full_like(position, value) for value in (low, high, stride)]
            points.append(torch.stack([position, *facts], dim=1))
        return points


def padded_length(window: int, spec: DetectorSpec) -> int:
    """Positions that features are padded to: `max_length`, or the next length that every level can divide."""
    if window <= spec.max_length:
        return spec.max_length
    steps = [
        2**level * (2 * (attention // 2) if attention > 1 else 1) for level, attention in enumerate(level_windows(spec))
    ]
    return -(-window // max(steps)) * max(steps)


class TemporalActionDetector(nn.Module):
    """End to end: frames of a window to predictions at every point of the pyramid."""

    def __init__(self, backbone: VideoBackbone, detector: ActionFormer):
        super().__init__()
        self.backbone = backbone
        self.detector = detector

    def forward(self, frames: Tensor, mask: Tensor, keys: Tensor | None = None) -> Predictions:
        """frames: uint8 [b, 3, frames, height, width]; mask: bool [b, window]; keys: int64 [b] in training.

        Features of padded positions aren't masked before the detector: its first convolution sees them.
        """
        features = self.backbone(frames, mask.shape[-1], keys)
        return self.detector(features, mask, keys)


def build_model(spec: ModelSpec, num_classes: int) -> TemporalActionDetector:
    backbone = VideoBackbone(spec.backbone)
    return TemporalActionDetector(backbone, ActionFormer(spec.detector, backbone.width, num_classes))
