"""InternVideo2's and InternVideo-Next's encoders against their authors' code on the same weights (tests/golden)."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad.convert.backbone_weights import load_backbone_weights
from adatad.models.families import build_backbone
from adatad.models.internvideo2 import InternVideo2, resize_positions_by_product
from adatad.models.vit import resize_positions
from adatad.spec.model_sections import BackboneSpec

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import internvideo2_cases as cases  # noqa: E402

EXPECTED = np.load(GOLDEN / "internvideo2.npz")


def build(preset: str, clip_frames: int, **changes) -> InternVideo2:
    spec = BackboneSpec(
        preset=preset, width=cases.WIDTH, depth=cases.DEPTH, heads=cases.HEADS, patch=cases.PATCH,
        mlp_ratio=cases.MLP_RATIO, position_grid=cases.GRID, clip_frames=clip_frames, **{"mode": "frozen", **changes},
    )  # fmt: skip
    return build_backbone(spec)


@pytest.mark.parametrize("name", cases.CASES)
def test_features_are_those_of_the_authors_code(name, tmp_path):
    torch.save({key: torch.from_numpy(array) for key, array in cases.draw_weights(name).items()}, tmp_path / "w.pth")
    backbone = build(cases.CASES[name].preset, cases.CASES[name].frames)
    load_backbone_weights(backbone, tmp_path / "w.pth")
    frames = torch.from_numpy(cases.draw_frames(name))
    with torch.no_grad():
        tokens = backbone.embed(frames)
        for block in backbone.blocks:
            tokens = block(tokens, 1)
    expected = torch.from_numpy(EXPECTED[f"{name}.tokens"])
    torch.testing.assert_close(tokens[0, :: cases.TOKEN_STEP], expected, rtol=1e-5, atol=1e-5)
    means = torch.from_numpy(EXPECTED[f"{name}.means"])[None]
    torch.testing.assert_close(backbone.timeline(frames), means, rtol=1e-5, atol=1e-5)


# Of the authors' code on the meta device without projector and head; InternVideo-Next's less one weight of a norm for
# each pixel of a patch, which the patch embedding has taken in.
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("internvideo2-1b", 1_013_666_432),
        ("internvideo-next-base", 88_650_240),
        ("internvideo-next-large", 307_091_456),
    ],
)
def test_parameters_are_those_of_the_published_encoder(preset, expected):
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(preset=preset, mode="frozen"))
    assert sum(p.numel() for p in backbone.parameters()) == expected


def test_an_adapter_neither_reads_nor_changes_class_tokens():
    backbone = build("internvideo-next-base", 4, mode="adapter")
    adapter = backbone.blocks[0].adapter
    torch.nn.init.normal_(adapter.up.weight)
    x = torch.randn(2, 4 + 4 * 6, cases.WIDTH)
    other = torch.cat([torch.randn(2, 4, cases.WIDTH), x[:, 4:]], 1)
    added = adapter(x, 1)
    assert not added[:, :4].any()
    assert added[:, 4:].any()
    assert torch.equal(added, adapter(other, 1))


def test_a_table_is_resized_by_a_product_as_by_interpolation():
    table, shape = torch.randn(1, 3 * 12, 5, dtype=torch.float64), (3, (3, 4), 2, 7)
    torch.testing.assert_close(
        resize_positions_by_product(table, *shape), resize_positions(table, *shape), rtol=1e-12, atol=1e-12
    )


def test_frames_of_another_size_get_a_resized_table():
    backbone = build("internvideo2-1b", 4)
    frames = torch.randint(0, 256, (1, 3, 4, 5 * cases.PATCH, 2 * cases.PATCH), dtype=torch.uint8)
    assert backbone.embed(frames).shape == (1, 1 + 4 * 10, cases.WIDTH)
    assert torch.isfinite(backbone.timeline(frames)).all()
