"""Focal loss for classes, DIoU or GIoU for segments, and the running count that both are divided by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.models.detector import Predictions
from adatad.models.targets import Targets
from adatad.spec.schema import DetectorSpec


class RunningNormalizer:
    """Running mean of the positive points of a global batch. Belongs to the trainer, which counts over all ranks."""

    def __init__(self, start: float, momentum: float):
        self.value = start
        self.momentum = momentum

    def update(self, positives: int) -> float:
        """Take in a step's count; returns the value that the same step's losses are divided by."""
        self.value = self.momentum * self.value + (1 - self.momentum) * max(positives, 1)
        return self.value


def detection_losses(
    predictions: Predictions, targets: Targets, normalizer: float, spec: DetectorSpec
) -> dict[str, Tensor]:
    """cls_loss, reg_loss (weighted) and their sum, cost: sums over the batch, divided by `normalizer`, in float32.

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
    positive = targets.positive[..., None]
    distances = overlap_loss(torch.where(positive, offsets, 1.0), torch.where(positive, targets.offsets, 1.0))
    reg_loss = (distances * targets.positive).sum() / normalizer
    weight = spec.regression_weight or cls_loss.detach() / reg_loss.detach().clamp(min=0.01)
    return {"cls_loss": cls_loss, "reg_loss": weight * reg_loss, "cost": cls_loss + weight * reg_loss}


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of each logit; targets may be soft. (Lin et al., 2017.)"""
    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * (1 - p_t) ** gamma * balance


def diou_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - DIoU of segments around the same point, given as distances to their ends: [..., 2] each -> [...]."""
    intersection, union, hull = _overlap(predicted, wanted)
    centre_distance = 0.5 * ((predicted[..., 1] - predicted[..., 0]) - (wanted[..., 1] - wanted[..., 0]))
    iou = intersection / union.clamp(min=1e-7)
    return 1 - iou + centre_distance**2 / (hull**2).clamp(min=1e-7)


def giou_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - GIoU, likewise."""
    intersection, union, hull = _overlap(predicted, wanted)
    hull = hull.clamp(min=1e-7)
    return 1 - (intersection / union.clamp(min=1e-6) - (hull - union) / (hull + 1e-6))


def _overlap(predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of intersection, union and hull of segments that share an inner point."""
    intersection = torch.minimum(predicted, wanted).sum(-1)
    union = predicted.sum(-1) + wanted.sum(-1) - intersection
    return intersection, union, torch.maximum(predicted, wanted).sum(-1)
