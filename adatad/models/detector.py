"""The detector (ActionFormer) over features, and the whole model: backbone and detector."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.backbone import VideoBackbone
from adatad.models.draws import HostKeys
from adatad.models.head import Head
from adatad.models.neck import build_neck
from adatad.models.points import level_masks, level_points, padded_length
from adatad.models.projection import Projection
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
        return level_masks(mask, self.spec)

    def points(self, window: int, device: torch.device | None = None) -> list[Tensor]:
        """Points of every level for a window of that many positions: float32 [t, 4] each. Made once for each length."""
        if (window, device) not in self._points:
            self._points[window, device] = level_points(window, self.spec, device)
        return self._points[window, device]


class TemporalActionDetector(nn.Module):
    """End to end: frames of a window to predictions at every point of the pyramid."""

    def __init__(self, backbone: VideoBackbone, detector: ActionFormer):
        super().__init__()
        self.backbone = backbone
        self.detector = detector

    def forward(self, frames: Tensor, mask: Tensor, keys: HostKeys | Tensor | None = None) -> Predictions:
        """frames: uint8 [b, 3, frames, height, width]; mask: bool [b, window]; keys: int64 [b] in host memory, in
        training; pinned where the model is on a GPU.

        Features of padded positions aren't masked before the detector: its first convolution sees them.
        """
        keys = keys.keys if isinstance(keys, HostKeys) else keys
        features = self.backbone(frames, mask.shape[-1], keys)
        keys = None if keys is None else keys.to(features.device, non_blocking=True)
        return self.detector(features, mask, keys)


def build_model(spec: ModelSpec, num_classes: int, drawn: bool = True) -> TemporalActionDetector:
    """drawn: False leaves the backbone's encoder to a file (`VideoBackbone`)."""
    backbone = VideoBackbone(spec.backbone, drawn)
    return TemporalActionDetector(backbone, ActionFormer(spec.detector, backbone.width, num_classes))
