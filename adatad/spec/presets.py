"""Sizes of the backbones that have a name, and what a backbone section's null sizes come to."""

from __future__ import annotations

from typing import NamedTuple

from adatad.spec.schema import BackboneSpec


class Preset(NamedTuple):
    """A published ViT. image_pixels: side of the frames that its position table was made for."""

    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float
    image_pixels: int = 224


PRESETS = {
    "tiny": Preset(96, 4, 3, 16, 4.0, image_pixels=64),
    "small": Preset(384, 12, 6, 16, 4.0),
    "base": Preset(768, 12, 12, 16, 4.0),
    "large": Preset(1024, 24, 16, 16, 4.0),
    "huge": Preset(1280, 32, 16, 16, 4.0),
    "giant": Preset(1408, 40, 16, 14, 48 / 11),
}


class BackboneSizes(NamedTuple):
    """Concrete sizes of a backbone section."""

    width: int
    depth: int
    heads: int
    patch: int
    mlp_width: int
    position_grid: int


def resolve_backbone(spec: BackboneSpec) -> BackboneSizes:
    """The preset's sizes, each replaced by the section's own where it gives one."""
    preset = PRESETS[spec.preset]
    width, depth, heads = spec.width or preset.width, spec.depth or preset.depth, spec.heads or preset.heads
    patch = spec.patch or preset.patch
    mlp_width = int(width * (spec.mlp_ratio or preset.mlp_ratio))
    return BackboneSizes(width, depth, heads, patch, mlp_width, spec.position_grid or preset.image_pixels // patch)


def adapter_reach(kernel: int, dilation: int) -> int:
    """Return how many tubelets an adapter's temporal convolution sees to each side of its own."""
    return dilation * (kernel - 1) // 2
