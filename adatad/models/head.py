"""The head, shared by all levels: what class each point has, and how far the ends of its segment are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.sequence import ConvUnit
from adatad.spec.schema import DetectorSpec

PRIOR = 0.01
"""Probability of every class at the start, so that the many negatives don't drown the first steps."""


class Head(nn.Module):
    """Two towers of convolutions, one for classes and one for offsets."""

    def __init__(self, spec: DetectorSpec, num_classes: int):
        super().__init__()
        width = spec.width
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(ConvUnit(width, width, 3, norm=True, relu=True) for _ in range(spec.head_convs))
            for _ in range(2)
        )
        self.cls_head = nn.Conv1d(width, num_classes, 3, padding=1)
        self.reg_head = nn.Conv1d(width, 2, 3, padding=1)
        nn.init.constant_(self.cls_head.bias, -math.log((1 - PRIOR) / PRIOR))
        self.scales = nn.ParameterList(torch.tensor(1.0) for _ in range(spec.branch_blocks + 1))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """levels: [b, c, t_l]; returns logits [b, classes, t_l] and offsets [b, 2, t_l], in strides, not masked."""
        logits, offsets = [], []
        for x, mask, scale in zip(levels, masks, self.scales, strict=True):
            logits.append(self.cls_head(_tower(self.cls_convs, x, mask)))
            offsets.append(F.relu(self.reg_head(_tower(self.reg_convs, x, mask)) * scale))
        return logits, offsets


def _tower(units: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    for unit in units:
        x, mask = unit(x, mask)
    return x
