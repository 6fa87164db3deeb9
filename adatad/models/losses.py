"""Targets and losses: what every point should predict, and how far from it a prediction is.

Targets are a pure function of masks and labels, made before any forward pass. Losses: focal for classes, DIoU or GIoU
for segments, both divided by a running count of positive points.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.models.actionformer import PRIOR, Predictions
from adatad.spec.model_sections import DetectorSpec


class Targets(NamedTuple):
    """Targets of all points p of all levels.

    classes: float32 [b, p, classes], 0 or 1; offsets: float32 [b, p, 2] in strides, of any value where there is no
    class; positive, valid: bool [b, p].
    """

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
    """Return the targets of a batch.

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
    # Points against segments, [p, n] from here on.
    position, low, high, stride = (column[:, None] for column in points.unbind(1))
    start, end = segments[None, :, 0], segments[None, :, 1]
    distances = torch.stack([position - start, end - position], dim=2)
    furthest = distances.amax(2)
    fits = _inside(position, start, end, stride, spec) & (furthest >= low) & (furthest <= high)
    # The shortest segment that fits; where none does, infinite.
    # A point inside several instances is the shortest one's.
    lengths = torch.where(fits, end - start, torch.inf)
    shortest, chosen = lengths.min(1)
    offsets = distances[torch.arange(len(points), device=points.device), chosen] / stride
    # Instances of (nearly) the same length may be several classes at once; the reference has the same tolerance.
    alike = fits & (lengths <= shortest[:, None] + 1e-3) if spec.similar_segments_only else fits
    one_hot = F.one_hot(labels, num_classes).to(points.dtype)
    return (alike.to(points.dtype) @ one_hot).clamp(max=1), offsets


def _inside(position: Tensor, start: Tensor, end: Tensor, stride: Tensor, spec: DetectorSpec) -> Tensor:
    """Return which points lie inside which segments, or inside their middle `center_radius` strides to each side: bool
    [p, n]."""
    if spec.center_sampling == "radius":
        centre, reach = (start + end) / 2, spec.center_radius * stride
        start, end = torch.maximum(centre - reach, start), torch.minimum(centre + reach, end)
    return torch.minimum(position - start, end - position) > 0


class RunningNormalizer:
    """Running mean of the positive points of a global batch. Belongs to the trainer, which counts over all ranks."""

    def __init__(self, start: float, momentum: float):
        self.value = start
        self.momentum = momentum

    def update(self, positives: int) -> float:
        """Take in a step's count; return the value that the same step's losses are divided by."""
        # At least 1: steps without a positive point must not bring the divisor to 0.
        self.value = self.momentum * self.value + (1 - self.momentum) * max(positives, 1)
        return self.value


def detection_losses(
    predictions: Predictions, targets: Targets, normalizer: float, spec: DetectorSpec
) -> dict[str, Tensor]:
    """Return cls_loss, reg_loss (weighted) and their sum, cost: sums over the batch / `normalizer`, in float32.

    Losses of parts of a batch with the same normalizer add up to the loss of the whole.
    """
    logits = torch.cat(predictions.logits, dim=2).transpose(1, 2).float()
    offsets = torch.cat(predictions.offsets, dim=2).transpose(1, 2).float()
    wanted = targets.classes
    if spec.label_smoothing:
        wanted = wanted * (1 - spec.label_smoothing) + spec.label_smoothing / (wanted.shape[-1] + 1)
    # Every point is computed and the wrong ones are weighted out: no shape depends on the data, so a GPU never waits.
    focal = sigmoid_focal_loss(logits, wanted, spec.focal_alpha, spec.focal_gamma)
    cls_loss = (focal * targets.valid[..., None]).sum() / normalizer
    overlap_loss = diou_loss if spec.regression_loss == "diou" else giou_loss
    # Offsets of points without a class are replaced before the loss, whose gradient could be NaN there.
    positive = targets.positive[..., None]
    distances = overlap_loss(torch.where(positive, offsets, 1.0), torch.where(positive, targets.offsets, 1.0))
    reg_loss = (distances * targets.positive).sum() / normalizer
    # Weight 0 means: as large as the classes' loss, without a gradient through the weight.
    weight = spec.regression_weight or cls_loss.detach() / reg_loss.detach().clamp(min=0.01)
    return {"cls_loss": cls_loss, "reg_loss": weight * reg_loss, "cost": cls_loss + weight * reg_loss}


def untrained_losses(targets: Targets, normalizer: float, spec: DetectorSpec) -> dict[str, Tensor]:
    """Return the losses, as `detection_losses` names them, of a head before its first step: every logit is that of
    PRIOR, and segments have no length yet.

    A real head's weights are random, so that its loss scatters around this one.
    """
    batch, points, classes = targets.classes.shape
    logits = targets.classes.new_full((batch, classes, points), math.log(PRIOR / (1 - PRIOR)))
    offsets = targets.classes.new_zeros(batch, 2, points)
    return detection_losses(Predictions([logits], [offsets], [targets.valid], []), targets, normalizer, spec)


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss of each logit (Lin et al., 2017); targets may be soft."""
    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * (1 - p_t) ** gamma * balance


def diou_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - DIoU of segments around the same point, given as distances to their ends: [..., 2] each -> [...]."""
    intersection, union, hull = _overlap(predicted, wanted)
    centre_distance = 0.5 * ((predicted[..., 1] - predicted[..., 0]) - (wanted[..., 1] - wanted[..., 0]))
    iou = intersection / union.clamp(min=1e-7)
    return 1 - iou + centre_distance**2 / (hull**2).clamp(min=1e-7)


def giou_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - GIoU of segments, given as `diou_loss` takes them."""
    intersection, union, hull = _overlap(predicted, wanted)
    hull = hull.clamp(min=1e-7)
    return 1 - (intersection / union.clamp(min=1e-6) - (hull - union) / (hull + 1e-6))


def _overlap(predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return lengths of intersection, union and hull of segments that share an inner point."""
    intersection = torch.minimum(predicted, wanted).sum(-1)
    union = predicted.sum(-1) + wanted.sum(-1) - intersection
    return intersection, union, torch.maximum(predicted, wanted).sum(-1)
