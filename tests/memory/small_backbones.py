"""Small backbones under policies, and how far their gradients are from those of policy none."""

import copy

import torch

from adatad.memory.policy import apply_policy
from adatad.models.backbone import VideoBackbone
from adatad.models.detector import trained_names
from adatad.models.families import build_backbone
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.schema import MemorySpec

SIZES = {"width": 16, "depth": 4, "heads": 2, "patch": 8, "mlp_ratio": 3.0, "position_grid": 2}
CLIP = 16


def build(mode: str, dtype: torch.dtype = torch.float64, **changes) -> VideoBackbone:
    """A backbone with nothing at zero: every gradient depends on every weight."""
    torch.manual_seed(0)
    spec = BackboneSpec(**{**SIZES, "mode": mode, "drop_path": 0.4, **changes})
    backbone = build_backbone(spec).to(dtype)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "adapter" in name else 0.05))
    trained = set(trained_names(torch.nn.ModuleDict({"backbone": backbone}), spec))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(f"backbone.{name}" in trained)
    return backbone


def under(backbone: VideoBackbone, dtype: torch.dtype = torch.float64, clips: int = 3, **memory) -> VideoBackbone:
    """A copy of the backbone under a policy."""
    backbone = copy.deepcopy(backbone)
    data = DataSpec(annotations="", videos="", window=WindowSpec(size_grid=CLIP * clips), size_pixels=16)
    apply_policy(backbone, MemorySpec(**memory), data, dtype)
    return backbone


def batch(windows: int = 1, clips: int = 3, height: int = 16, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (windows, 3, CLIP * clips, height, width), dtype=torch.uint8, generator=generator)
    return frames, torch.randint(-(2**62), 2**62, (windows,), generator=generator)


def gradients(backbone: VideoBackbone, frames: torch.Tensor, keys: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The features, and the gradients of a function that depends on all of them."""
    timeline = backbone(frames, 3 + frames.shape[2] // 2, keys)
    weight = torch.linspace(-1, 1, timeline.numel(), dtype=timeline.dtype, device=timeline.device)
    weight = weight.view_as(timeline).sin()
    (timeline * weight + timeline.tanh()).sum().backward()
    named = {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}
    for parameter in backbone.parameters():
        parameter.grad = None
    return {"timeline": timeline.detach(), **named}


def error(ours: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """Largest of the timeline's relative error and the gradients' error relative to their joint norm."""
    assert ours.keys() == truth.keys()
    assert all(tensor is not None for tensor in ours.values())
    joint = torch.stack([t.double().norm() for name, t in truth.items() if name != "timeline"]).norm()
    worst = max(float((ours[n].double() - t.double()).norm() / joint) for n, t in truth.items() if n != "timeline")
    timeline = truth["timeline"].double()
    return max(worst, float((ours["timeline"].double() - timeline).norm() / timeline.norm()))
