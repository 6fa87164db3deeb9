"""Sizes that follow from a spec alone: of a named backbone, of windows and a rank's share of them, of the schedule."""

from __future__ import annotations

from typing import NamedTuple

from adatad.spec.schema import BackboneSpec, DataSpec, Spec


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
    """Return the preset's sizes, each replaced by the section's own where it gives one."""
    preset = PRESETS[spec.preset]
    width, depth, heads = spec.width or preset.width, spec.depth or preset.depth, spec.heads or preset.heads
    patch = spec.patch or preset.patch
    # Rounded down, as timm does: 48/11 of g's width is 6144.
    mlp_width = int(width * (spec.mlp_ratio or preset.mlp_ratio))
    return BackboneSizes(width, depth, heads, patch, mlp_width, spec.position_grid or preset.image_pixels // patch)


def adapter_reach(kernel: int, dilation: int) -> int:
    """Return how many tubelets an adapter's temporal convolution sees to each side of its own: its halo."""
    return dilation * (kernel - 1) // 2


def clip_share(clips: int, ranks: int, rank: int) -> range:
    """Return a rank's consecutive clips of a window. Shares differ by one at most; the first ranks have the longer."""
    short, longer = divmod(clips, ranks)
    start = rank * short + min(rank, longer)
    return range(start, start + short + (rank < longer))


def clips_of_window(data: DataSpec, clip_frames: int) -> int:
    """Return how many clips of `clip_frames` frames a window has."""
    return data.window.size_grid * data.window.frames_per_position // clip_frames


def steps_per_epoch(spec: Spec, training_videos: int) -> int:
    """Return the optimizer steps of an epoch: videos that fill no batch are left out of it."""
    return training_videos // spec.train.global_batch


def end_epoch(spec: Spec) -> int:
    """Return how many epochs are trained."""
    return spec.schedule.end_epoch or spec.schedule.epochs
