"""The families of backbones: which class a preset's architecture is."""

from __future__ import annotations

from adatad.models.backbone import VideoBackbone
from adatad.models.internvideo2 import InternVideo2, InternVideoNext
from adatad.models.videomae import VideoMAE
from adatad.models.vjepa2 import VJEPA2, VJEPA21
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.presets import PRESETS, PresetName


def backbone_class(preset: PresetName) -> type[VideoBackbone]:
    """Return the class of a preset's architecture."""
    match PRESETS[preset].family:
        case "videomae":
            return VideoMAE
        case "vjepa2":
            return VJEPA2
        case "vjepa2.1":
            return VJEPA21
        case "internvideo2":
            return InternVideo2
        case "internvideo-next":
            return InternVideoNext


def build_backbone(spec: BackboneSpec, drawn: bool = True) -> VideoBackbone:
    """Build the backbone that a spec names. drawn: see `VideoBackbone`."""
    return backbone_class(spec.preset)(spec, drawn)
