"""Between projection and head: a norm for each level, or a top-down feature pyramid (FPN)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.sequence import ChannelNorm, ConvUnit
from adatad.spec.schema import DetectorSpec


class IdentityNeck(nn.Module):
    def __init__(self, width: int, levels: int):
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(width, eps=1e-6) for _ in range(levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)]


class FpnNeck(nn.Module):
    """Each level plus the coarser one above it, repeated to its length; padded places too."""

    def __init__(self, width: int, levels: int, norm: bool):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvUnit(width, width, 1, norm=norm) for _ in range(levels))
        self.fpn_convs = nn.ModuleList(ConvUnit(width, width, 3, norm=norm) for _ in range(levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        # Under autocast convolutions give 16 bits; sums over levels stay in the dtype of the levels.
        merged = [conv(x, mask)[0].to(x.dtype) for conv, x, mask in zip(self.lateral_convs, levels, masks, strict=True)]
        for index in range(len(merged) - 1, 0, -1):
            finer = merged[index - 1]
            merged[index - 1] = finer + F.interpolate(merged[index], size=finer.shape[-1], mode="nearest")
        return [conv(x, mask)[0] for conv, x, mask in zip(self.fpn_convs, merged, masks, strict=True)]


def build_neck(spec: DetectorSpec) -> IdentityNeck | FpnNeck:
    levels = spec.branch_blocks + 1
    match spec.neck:
        case "identity":
            return IdentityNeck(spec.width, levels)
        case "fpn":
            return FpnNeck(spec.width, levels, spec.neck_norm)
