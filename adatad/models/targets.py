"""What every point should predict: a pure function of masks and labels, made before any forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adatad.spec.schema import DetectorSpec


class Targets(NamedTuple):
    """Over all points p of all levels: classes float32 [b, p, classes], 0 or 1; offsets float32 [b, p, 2] in strides,
    of any value where there is no class; positive, valid: bool [b, p]."""

    classes: Tensor
    offsets: Tensor
    positive: Tensor
    valid: Tensor


def assign_targets(
    points: list[Tensor],
    masks: list[Tensor],
    segments: list[Tensor],
    labels: list[Tensor],
    num_classes: int,
    spec: DetectorSpec,
) -> Targets:
    """Targets of a batch.

    points, masks: by level, as ActionFormer gives them; segments: float32 [n, 2] in grid units, labels: int64 [n], by
    sample.
    """
    joined, valid = torch.cat(points), torch.cat(masks, dim=1)
    samples = [
        _assign_sample(joined, s, torch.zeros_like(l) if spec.class_agnostic else l, num_classes, spec)
        for s, l in zip(segments, labels, strict=True)
    ]
    classes, offsets = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return Targets(classes, offsets, (classes.sum(2) > 0) & valid, valid)


def _assign_sample(
    points: Tensor, segments: Tensor, labels: Tensor, num_classes: int, spec: DetectorSpec
) -> tuple[Tensor, Tensor]:
    if not len(segments):
        return points.new_zeros(len(points), num_classes), points.new_zeros(len(points), 2)
    position, low, high, stride = (column[:, None] for column in points.unbind(1))
    start, end = segments[None, :, 0], segments[None, :, 1]
    distances = torch.stack([position - start, end - position], dim=2)
    furthest = distances.amax(2)
    fits = _inside(position, start, end, stride, spec) & (furthest >= low) & (furthest <= high)
    # The shortest segment that fits; where none does, infinite.
    lengths = torch.where(fits, end - start, torch.inf)
    shortest, chosen = lengths.min(1)
    offsets = distances[torch.arange(len(points), device=points.device), chosen] / stride
    alike = fits & (lengths <= shortest[:, None] + 1e-3) if spec.similar_segments_only else fits
    one_hot = torch.nn.functional.one_hot(labels, num_classes).to(points.dtype)
    return (alike.to(points.dtype) @ one_hot).clamp(max=1), offsets


def _inside(position: Tensor, start: Tensor, end: Tensor, stride: Tensor, spec: DetectorSpec) -> Tensor:
    """Strictly inside the segment, or inside its middle `center_radius` strides to each side: bool [p, n]."""
    if spec.center_sampling == "radius":
        centre, reach = (start + end) / 2, spec.center_radius * stride
        start, end = torch.maximum(centre - reach, start), torch.minimum(centre + reach, end)
    return torch.minimum(position - start, end - position) > 0
