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
HEAD_KERNEL = 3
GAP = HEAD_KERNEL // 2
"""Zeros between two levels: as far as a convolution of the head reaches."""


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
        nn.init.constant_(self.cls_head.bias, -math.log((1 - PRIOR) / PRIOR))
        self.scales = nn.ParameterList(torch.tensor(1.0) for _ in range(spec.branch_blocks + 1))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """levels: [b, c, t_l]; returns logits [b, classes, t_l] and offsets [b, 2, t_l], in strides, not masked."""
        lengths = [level.shape[-1] for level in levels]
        # One after another in time: a level a launch would keep a GPU waiting for the host.
        x, mask = join_levels(levels), join_levels([mask[:, None] for mask in masks])[:, 0]
        logits = self.cls_head(_tower(self.cls_convs, x, mask))
        scales = [scale.expand(length + GAP) for scale, length in zip(self.scales, lengths, strict=True)]
        offsets = F.relu(self.reg_head(_tower(self.reg_convs, x, mask)) * torch.cat(scales))
        return split_levels(logits, lengths), split_levels(offsets, lengths)


def _tower(units: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    for unit in units:
        x, mask = unit(x, mask)
    return x


def join_levels(levels: list[Tensor]) -> Tensor:
    """All levels in one sequence, each followed by GAP zeros: [b, c, t_l] each -> [b, c, sum of (t_l + GAP)].

    Convolutions of HEAD_KERNEL find the zeros there that they would pad each level with, as long as what lies between
    two of them is masked.
    """
    gap = levels[0].new_zeros(*levels[0].shape[:-1], GAP)
    return torch.cat([part for level in levels for part in (level, gap)], dim=-1)


def split_levels(joined: Tensor, lengths: list[int]) -> list[Tensor]:
    """The levels of a joined sequence: what `join_levels` was given."""
    # Copies, which are small: FSDP warns of a model that returns views.
    sizes = [size for length in lengths for size in (length, GAP)]
    return list(torch.split_with_sizes_copy(joined, sizes, dim=-1)[::2])
