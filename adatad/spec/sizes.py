"""Sizes that follow from a spec alone: of the backbone, of windows and a rank's share of them, of the schedule."""

from __future__ import annotations

from typing import NamedTuple

from adatad.spec.data_sections import DataSpec
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.presets import PRESETS
from adatad.spec.schema import Spec


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
    # Every earlier rank has `short` clips, and the first `longer` ones of them one more.
    start = rank * short + min(rank, longer)
    return range(start, start + short + (rank < longer))


def clips_of_window(data: DataSpec, clip_frames: int) -> int:
    """Return how many clips of `clip_frames` frames a window has."""
    return data.window.size_grid * data.window.frames_per_position // clip_frames


def steps_per_epoch(spec: Spec, windows: int) -> int:
    """Return the optimizer steps of an epoch of so many windows: those that fill no batch are left out of it."""
    return windows // spec.train.global_batch


def end_epoch(spec: Spec) -> int:
    """Return how many epochs are trained."""
    return spec.schedule.end_epoch or spec.schedule.epochs
