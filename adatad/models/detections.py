"""From predictions to candidate segments with scores, before any threshold or NMS."""

from __future__ import annotations

import torch
from torch import Tensor

from adatad.models.detector import Predictions


def decode(predictions: Predictions) -> list[tuple[Tensor, Tensor]]:
    """By sample: segments float32 [n, 2] in grid units, scores float32 [n, classes]; valid points, levels joined. On a
    GPU the host waits for how many these are."""
    return only_valid(*decode_all(predictions))


def decode_all(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """Of all points p, levels joined: segments float32 [b, p, 2], scores float32 [b, p, classes], and which are valid,
    bool [b, p]. No shape depends on values."""
    points, valid = torch.cat(predictions.points), torch.cat(predictions.masks, dim=1)
    scores = torch.cat(predictions.logits, dim=2).transpose(1, 2).float().sigmoid()
    offsets = torch.cat(predictions.offsets, dim=2).transpose(1, 2).float()
    position, stride = points[:, 0], points[:, 3]
    segments = torch.stack([position - offsets[..., 0] * stride, position + offsets[..., 1] * stride], dim=2)
    return segments, scores, valid


def only_valid(segments: Tensor, scores: Tensor, valid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """By sample, copies of what valid points have."""
    return [(s[mask], c[mask]) for s, c, mask in zip(segments, scores, valid, strict=True)]
