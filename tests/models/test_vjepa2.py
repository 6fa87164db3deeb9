"""V-JEPA 2's encoder against transformers' on the same weights (tests/golden), and its places."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad.models.families import build_backbone
from adatad.models.vjepa2 import VJEPA2, rotary_tables, rotate
from adatad.spec.model_sections import BackboneSpec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import vjepa2_cases as cases  # noqa: E402

EXPECTED = np.load(GOLDEN / "vjepa2.npz")


def own_name(name: str) -> str:
    """The name here of a weight of transformers'."""
    for old, new in (
        ("encoder.embeddings.patch_embeddings.proj.", "patch_embed."), ("encoder.layernorm.", "final_norm."),
        ("encoder.layer.", "blocks."), (".attention.", ".attn."),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def own_weights() -> dict[str, torch.Tensor]:
    weights = {own_name(name): torch.from_numpy(array) for name, array in cases.draw_weights().items()}
    for number in range(cases.DEPTH):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{number}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


def build(clip_frames: int, **changes) -> VJEPA2:
    spec = BackboneSpec(
        preset="vjepa2-large", width=cases.WIDTH, depth=cases.DEPTH, heads=cases.HEADS, patch=cases.PATCH,
        mlp_ratio=cases.MLP_RATIO, tubelet=cases.TUBELET, clip_frames=clip_frames, **{"mode": "frozen", **changes},
    )  # fmt: skip
    return build_backbone(spec)


@pytest.mark.parametrize("name", cases.CASES)
def test_features_are_those_of_transformers(name):
    backbone = build(cases.CASES[name].frames)
    backbone.load_state_dict(own_weights())
    frames = torch.from_numpy(cases.draw_frames(name))
    with torch.no_grad():
        tokens, tables = backbone.embed(frames), backbone.clip_tables(*frames.shape[-2:], frames.device)
        for block in backbone.blocks:
            tokens = block(tokens, 1, tables=tables)
        tokens = backbone.normalize_output(tokens)[0, :: cases.TOKEN_STEP]
    torch.testing.assert_close(tokens, torch.from_numpy(EXPECTED[f"{name}.tokens"]), rtol=1e-5, atol=1e-5)
    means = torch.from_numpy(EXPECTED[f"{name}.means"])[None]
    torch.testing.assert_close(backbone.timeline(frames), means, rtol=1e-5, atol=1e-5)


# Parameters of transformers' VJEPA2Model(VJEPA2Config(...)).encoder, built on the meta device.
@pytest.mark.parametrize(
    ("preset", "expected"),
    [("vjepa2-large", 303_885_312), ("vjepa2-huge", 631_648_000), ("vjepa2-giant", 1_012_173_952)],
)
def test_parameters_are_those_of_the_published_encoder(preset, expected):
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(preset=preset, mode="frozen"))
    assert sum(p.numel() for p in backbone.parameters()) == expected


def tables_of(*counts: int, **changes):
    return rotary_tables(*(torch.arange(count, dtype=torch.float64) for count in counts), 20, **changes)


def test_a_place_in_a_larger_frame_has_the_angles_of_the_same_place_in_a_smaller_one():
    for few, many in zip(tables_of(2, 2, 3), tables_of(4, 5, 7), strict=True):
        assert torch.equal(few.view(2, 2, 3, 20), many.view(4, 5, 7, 20)[:2, :2, :3])


def test_the_next_version_turns_pairs_as_complex_numbers_in_a_frame_of_one_size():
    spec = BackboneSpec(preset="vjepa2.1-large", width=40, depth=1, heads=2, patch=16, clip_frames=8, mode="frozen")
    backbone, x = build_backbone(spec), torch.randn(1, 2, 4 * 3 * 5, 20, dtype=torch.float64)
    cos, sin = backbone.clip_tables(48, 80, torch.device("cpu"))
    # Rows and columns of a frame of 256 pixels have the places 0 to 15.
    axes = torch.arange(4.0), torch.arange(3) * 15 / 2, torch.arange(5) * 15 / 4
    rates = 10000.0 ** -(torch.arange(3).double() / 3)
    angles = (torch.cartesian_prod(*axes).double()[:, :, None] * rates).flatten(1)
    pairs = torch.view_as_complex(x[..., :18].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    expected = torch.cat([turned, x[..., 18:]], -1)
    torch.testing.assert_close(rotate(x, cos, sin), expected, rtol=0, atol=1e-5)
    assert all(torch.isfinite(table).all() for table in backbone.clip_tables(16, 16, torch.device("cpu")))
