"""Pretraining: targets follow the picture through every augmentation, and a short run writes usable weights."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from adatad.convert.backbone_weights import WeightsError, load_backbone_weights
from adatad.dev.pretrain import augment, draw_clip, pretrain
from adatad.models.families import build_backbone
from adatad.spec.model_sections import BackboneSpec


class Draws:
    """A generator whose four coin tosses are given: below 0.5 is yes."""

    def __init__(self, *yes: bool):
        self.values = np.where(yes, 0.0, 1.0)

    def uniform(self, size: int) -> np.ndarray:
        return self.values[:size]


def test_clips_repeat_and_differ():
    clip, targets = draw_clip(1, 2)
    assert clip.shape == (16, 64, 64, 3)
    assert targets.shape == (8, 6)
    np.testing.assert_array_equal(draw_clip(1, 2)[0], clip)
    assert (draw_clip(1, 3)[0] != clip).any()


@pytest.mark.parametrize("which", range(4))
def test_an_augmentation_done_twice_changes_nothing(which):
    clips, targets = torch.randint(0, 256, (2, 3, 16, 8, 8)), torch.randn(2, 8, 6)
    draw = Draws(*(index == which for index in range(4)))
    once = augment(clips, targets, draw)
    assert not torch.equal(once[0], clips)
    assert not torch.equal(once[1], targets)
    again = augment(*once, draw)
    assert torch.equal(again[0], clips)
    assert torch.equal(again[1], targets)


def test_targets_follow_the_picture():
    clip = torch.zeros(1, 3, 16, 64, 64)
    clip[..., 10, 50] = 255
    targets = torch.tensor([(50 - 32) / 32, (10 - 32) / 32, 0.3, -0.2, 0.1, 1.0]).expand(1, 8, 6)
    for flags in np.ndindex(2, 2, 2, 2):
        seen, wanted = augment(clip, targets, Draws(*flags))
        row, column = divmod(int(seen[0, 0, 0].argmax()), 64)
        assert wanted[0, 0, :2].tolist() == pytest.approx([(column - 32) / 32, (row - 32) / 32], abs=1 / 32)


def test_a_short_run_writes_weights_that_a_backbone_takes(tmp_path):
    path = tmp_path / "tiny.safetensors"
    pretrain(path, clips=64, steps=2, batch=8)
    assert path.stat().st_size < 2_000_000
    with safe_open(path, "pt") as file:
        assert file.metadata()["steps"] == "2"
    backbone = build_backbone(BackboneSpec(preset="tiny", mode="adapter"))
    adapter = backbone.blocks[0].adapter.down.weight.detach().clone()
    load_backbone_weights(backbone, path)
    assert torch.equal(backbone.blocks[0].adapter.down.weight, adapter)
    with pytest.raises(WeightsError, match=r"doesn't fit the backbone"):
        load_backbone_weights(build_backbone(BackboneSpec(preset="tiny", depth=3)), path)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"tiny\.safetensors: not a readable safetensors file"):
        load_backbone_weights(backbone, path)
