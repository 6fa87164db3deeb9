"""The presets of `model.backbone`: published video transformers by name."""

from __future__ import annotations

from typing import Literal, NamedTuple

Family = Literal["videomae", "vjepa2", "vjepa2.1", "internvideo2", "internvideo-next"]
"""Architectures that presets are of; `adatad.models.families` has a class for each."""
PresetName = Literal[
    "tiny", "small", "base", "large", "huge", "giant", "vjepa2-large", "vjepa2-huge", "vjepa2-giant",
    "vjepa2.1-base", "vjepa2.1-large", "vjepa2.1-giant", "vjepa2.1-gigantic",
    "internvideo2-1b", "internvideo-next-base", "internvideo-next-large",
]  # fmt: skip


class Preset(NamedTuple):
    """A published ViT. tubelet: frames of one token; clip_frames: frames that attend to one another; image_pixels: side
    of the frames that its position table was made for."""

    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float
    image_pixels: int = 224
    tubelet: int = 2
    clip_frames: int = 16
    family: Family = "videomae"


PRESETS: dict[PresetName, Preset] = {
    # The demo's own, no published one: small enough to train on two cores.
    "tiny": Preset(96, 4, 3, 16, 4.0, image_pixels=64),
    "small": Preset(384, 12, 6, 16, 4.0),
    "base": Preset(768, 12, 12, 16, 4.0),
    "large": Preset(1024, 24, 16, 16, 4.0),
    "huge": Preset(1280, 32, 16, 16, 4.0),
    # 14 pixels divide 224 evenly; 48/11 is VideoMAEv2's ratio, for a width of 6,144.
    "giant": Preset(1408, 40, 16, 14, 48 / 11),
    # Pretrained on clips of 64 frames too, in the end; of 16 first, which is what a window is cut into here.
    "vjepa2-large": Preset(1024, 24, 16, 16, 4.0, image_pixels=256, family="vjepa2"),
    "vjepa2-huge": Preset(1280, 32, 16, 16, 4.0, image_pixels=256, family="vjepa2"),
    "vjepa2-giant": Preset(1408, 40, 22, 16, 48 / 11, image_pixels=256, family="vjepa2"),
    "vjepa2.1-base": Preset(768, 12, 12, 16, 4.0, image_pixels=384, family="vjepa2.1"),
    "vjepa2.1-large": Preset(1024, 24, 16, 16, 4.0, image_pixels=384, family="vjepa2.1"),
    "vjepa2.1-giant": Preset(1408, 40, 22, 16, 48 / 11, image_pixels=384, family="vjepa2.1"),
    "vjepa2.1-gigantic": Preset(1664, 48, 26, 16, 64 / 13, image_pixels=384, family="vjepa2.1"),
    # Clips of 8 frames are those of its pretraining; later stages of it had 4 and 16, too.
    "internvideo2-1b": Preset(1408, 40, 16, 14, 48 / 11, tubelet=1, clip_frames=8, family="internvideo2"),
    "internvideo-next-base": Preset(768, 12, 12, 14, 4.0, tubelet=1, family="internvideo-next"),
    "internvideo-next-large": Preset(1024, 24, 16, 14, 4.0, tubelet=1, family="internvideo-next"),
}
