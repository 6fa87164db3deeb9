"""Error of bf16 gradients against float64 ones, by depth: under `tile`, and of plain training under autocast.

The backbone has random weights and is small enough for a CPU. Errors are relative to the joint norm of all gradients,
as in the tests of exactness.
"""

from __future__ import annotations

import copy

import torch

from adatad.dev.benchmarks.tables import Result
from adatad.memory.policy import apply_policy
from adatad.models.backbone import VideoBackbone
from adatad.models.families import build_backbone
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.schema import MemorySpec

DEPTHS = (4, 12, 24, 40)
# Three: a tile with a neighbour on both sides, and one at each end.
CLIPS = 3
SIDE_PIXELS = 32
TIMES_AUTOCAST = 1.5
"""Largest error, over that of plain training under autocast; which of the two is smaller is chance."""
Gradients = dict[str, torch.Tensor]


def run(depths: tuple[int, ...] = DEPTHS) -> list[Result]:
    """Return the ratios of errors, `tile` over autocast, with the errors themselves in the notes. Half a minute."""
    results = []
    for depth in depths:
        plain = build(depth)
        truth = gradients(under(plain, torch.float64, MemorySpec(policy="none")))
        tile = error(gradients(under(plain, torch.bfloat16, MemorySpec(policy="tile", tile_clips=1))), truth)
        none = under(plain, torch.bfloat16, MemorySpec(policy="none"))
        with torch.autocast("cpu", torch.bfloat16):
            autocast = error(gradients(none), truth)
        note = f"off float64: tile {tile:.3f}, none under autocast {autocast:.3f}"
        results.append(
            Result(f"{depth} blocks: error of tile / of autocast", tile / autocast, TIMES_AUTOCAST, 1.0, note)
        )
    return results


def build(depth: int) -> VideoBackbone:
    """Return a backbone of 64 channels with an adapter in every block."""
    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 2, "patch": 16, "mlp_ratio": 4.0, "position_grid": 2}
    backbone = build_backbone(BackboneSpec(**sizes, depth=depth, mode="adapter", drop_path=0.0))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("adapter" in name)
        # Adapters start at zero; moved away from it, every gradient depends on every block.
        parameter.data.add_(torch.randn_like(parameter) * (0.1 if "adapter" in name else 0.05))
    return backbone


def under(plain: VideoBackbone, arithmetic: torch.dtype, memory: MemorySpec) -> VideoBackbone:
    """Return a copy of a backbone under a memory policy."""
    backbone = copy.deepcopy(plain)  # a policy casts and replaces weights
    if arithmetic == torch.float64:
        backbone.double()
    data = DataSpec(annotations="", videos="", window=WindowSpec(size_grid=16 * CLIPS), size_pixels=SIDE_PIXELS)
    apply_policy(backbone, memory, data, arithmetic)
    return backbone


def gradients(backbone: VideoBackbone) -> Gradients:
    """Return the gradients of a nonlinear function of all features."""
    generator = torch.Generator().manual_seed(1)
    shape = 1, 3, 16 * CLIPS, SIDE_PIXELS, SIDE_PIXELS
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    features = backbone(frames, 16 * CLIPS)
    # Weights that differ for every feature: a plain sum would cancel errors.
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features).sin()
    (features * weights + features.tanh()).sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}


def error(ours: Gradients, truth: Gradients) -> float:
    """Return the norm of the difference relative to the joint norm."""
    different = torch.stack([(ours[name].double() - truth[name]).norm() for name in truth]).norm()
    return float(different / torch.stack([gradient.norm() for gradient in truth.values()]).norm())
