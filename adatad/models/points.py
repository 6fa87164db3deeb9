"""The points that predictions are made at: where they lie, what they are responsible for, and which are valid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.models.projection import level_windows
from adatad.spec.schema import DetectorSpec


def level_masks(mask: Tensor, spec: DetectorSpec) -> list[Tensor]:
    """Masks of the levels for a window's mask [b, window], without a forward pass."""
    mask = F.pad(mask, (0, padded_length(mask.shape[-1], spec) - mask.shape[-1]))
    return [mask[:, :: 2**level] for level in range(spec.branch_blocks + 1)]


def level_points(window: int, spec: DetectorSpec, device: torch.device | None = None) -> list[Tensor]:
    """Points of every level for a window of that many positions: float32 [t, 4] each."""
    length, points = padded_length(window, spec), []
    for level, (low, high) in enumerate(spec.regression_ranges):
        stride = 2**level
        position = torch.arange(0, length, stride, dtype=torch.float32, device=device)
        if spec.point_offset:
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
