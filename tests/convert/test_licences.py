"""Licences of pretrained weights: known by content, by name, or by the folder of a download; else unknown."""

import shutil
from pathlib import Path

import pytest

from adatad.convert.licences import NO_WEIGHTS, OWN, UNKNOWN, VIDEOMAE, VIDEOMAE_V2, licence_of
from adatad.spec.downloads import ASK, data_licence
from adatad.spec.published import published

BUILT_IN = Path(__file__).parents[2] / "configs" / "demo" / "tiny_backbone.safetensors"


def test_the_built_in_backbone_is_known_by_its_content_under_any_name(tmp_path):
    shutil.copy(BUILT_IN, tmp_path / "mine.safetensors")
    assert licence_of(str(tmp_path / "mine.safetensors")) == OWN
    content = bytearray(BUILT_IN.read_bytes())
    content[-1] ^= 1
    (tmp_path / BUILT_IN.name).write_bytes(content)
    assert licence_of(str(tmp_path / BUILT_IN.name)) == UNKNOWN


@pytest.mark.parametrize(
    ("weights", "licence"),
    [
        ("pretrained/vit_g_hybrid_pt_1200e_k710_ft.pth", VIDEOMAE_V2),
        ("/cache/models--MCG-NJU--videomae-base/snapshots/1/model.safetensors", VIDEOMAE),
        ("VideoMAEv2-giant/model.safetensors", VIDEOMAE_V2),
        ("pretrained/other.pth", UNKNOWN),
        ("no\0file", UNKNOWN),
        ("random", NO_WEIGHTS),
        (None, NO_WEIGHTS),
    ],
)
def test_licences_of_names(weights, licence):
    assert licence_of(weights) == licence


def test_the_licence_of_nearly_every_published_backbone_is_known():
    backbones = [entry for entry in published().values() if entry.kind == "backbone"]
    unknown = {entry.name for entry in backbones if licence_of(entry.path) == UNKNOWN}
    assert unknown == {
        "vit-large-p16_videomae_k700_mq_ft_internvideo.pth",
        "internvideo_next_base_p14_res224_f16",
        "internvideo_next_large_p14_res224_f16",
    }


def test_licences_of_data_are_known_for_what_is_built_in_and_asked_for_otherwise():
    assert data_licence("/disk/data/demo/videos").startswith("MIT")
    assert data_licence("data/epic_kitchens-100/raw_data").startswith("CC BY-NC")
    assert data_licence("my videos/a") == ASK
