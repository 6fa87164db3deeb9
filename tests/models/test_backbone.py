"""The backbone: shapes, modes, what is trained, and the published models' parameter counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.models.backbone import VideoBackbone, interpolation_matrix, resize_by_product, resize_timeline
from adatad.models.detector import freeze
from adatad.models.families import build_backbone
from adatad.models.vit import resize_positions, sine_table
from adatad.spec.model_sections import AdapterSpec, BackboneSpec

SIZES = {"width": 16, "depth": 3, "heads": 2, "patch": 8, "mlp_ratio": 2.0, "position_grid": 4}


def small_backbone(mode: str = "adapter", **changes) -> VideoBackbone:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(**SIZES, mode=mode, **changes))
    for name, parameter in backbone.named_parameters():
        if "up." in name:
            torch.nn.init.normal_(parameter)
    return backbone


def random_frames(batch: int = 1, clips: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, 16 * clips, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("mode", ["adapter", "plain", "side", "frozen", "full"])
def test_features_have_the_window_s_length_and_windows_are_independent(mode):
    backbone = small_backbone(mode)
    frames = random_frames(batch=2, clips=2, height=24, width=41)
    features = backbone(frames, window_grid=32)
    assert features.shape == (2, 16, 32)
    assert features.dtype == torch.float32
    torch.testing.assert_close(backbone(frames[1:], window_grid=32), features[1:])


@pytest.mark.parametrize("mode", ["plain", "frozen", "full"])
def test_without_tia_a_clip_is_seen_alone(mode):
    backbone = small_backbone(mode)
    frames = random_frames(clips=2)
    changed = frames.clone()
    changed[:, :, 16:] = 255 - changed[:, :, 16:]
    assert torch.equal(backbone(frames, 16)[..., :8], backbone(changed, 16)[..., :8])


@pytest.mark.parametrize("mode", ["adapter", "side"])
def test_tia_joins_clips(mode):
    backbone = small_backbone(mode)
    frames = random_frames(clips=2)
    changed = frames.clone()
    changed[:, :, 16:] = 255 - changed[:, :, 16:]
    difference = (backbone(frames, 16) - backbone(changed, 16)).abs().amax((0, 1))
    assert difference[7] > 0


def test_rows_and_columns_that_fill_no_patch_are_dropped():
    backbone = small_backbone()
    frames = random_frames(height=30, width=39)
    assert torch.equal(backbone(frames, 16), backbone(frames[..., :24, :32], 16))


def test_windows_of_broken_clips_are_refused():
    with pytest.raises(ValueError, match="24 frames isn't whole clips of 16"):
        small_backbone()(random_frames(clips=2)[:, :, :24], 24)


def test_drop_path_depends_on_the_sample_s_key_alone():
    backbone = small_backbone("full", drop_path=0.5)
    frames = random_frames(batch=2)
    keys = torch.tensor([11, 22])
    both = backbone(frames, 16, keys)
    torch.testing.assert_close(backbone(frames[1:], 16, keys[1:]), both[1:])
    assert not torch.allclose(backbone(frames, 16, torch.tensor([11, 23]))[1], both[1])
    assert torch.equal(small_backbone("side", drop_path=0.5)(frames, 16, keys), small_backbone("side")(frames, 16))


def test_one_frame_a_position_interpolates_between_tubelets():
    backbone = small_backbone("frozen")
    frames = random_frames(clips=1)
    tubelets = backbone(frames, 8)
    doubled = backbone(frames, 16)
    torch.testing.assert_close(doubled[..., 0], tubelets[..., 0])
    torch.testing.assert_close(doubled[..., 1], 0.75 * tubelets[..., 0] + 0.25 * tubelets[..., 1])
    torch.testing.assert_close(doubled[..., 2], 0.25 * tubelets[..., 0] + 0.75 * tubelets[..., 1])


def test_sine_table_of_two_channels():
    table = sine_table(3, 2)
    expected = torch.tensor([[[0.0, 1.0], [0.84147098, 0.54030231], [0.90929743, -0.41614684]]])
    torch.testing.assert_close(table, expected)


def test_positions_are_resized_slice_by_slice_without_antialiasing():
    table = sine_table(2 * 16, 6)
    resized = resize_positions(table, 2, (4, 4), 2, 3)
    first = resize_positions(table[:, :16], 1, (4, 4), 2, 3)
    torch.testing.assert_close(resized[:, :6], first)
    # At half size without antialiasing, bicubic (a = -0.75) weights rows 0..3 by -3/32, 19/32, 19/32, -3/32.
    rows = table[0, :16].reshape(4, 4, 6)
    weights = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    halved = resize_positions(table[:, :16], 1, (4, 4), 2, 4)[0].reshape(2, 4, 6)
    assert halved.shape == (2, 4, 6)
    expected_inner = (weights[:, None, None] * torch.stack([rows[0], rows[0], rows[1], rows[2]])).sum(0)
    torch.testing.assert_close(halved[0], expected_inner)


@pytest.mark.parametrize(
    ("mode", "trained"),
    [("adapter", "adapter."), ("plain", "adapter."), ("side", "side_adapters."), ("frozen", None), ("full", "")],
)
def test_what_is_trained(mode, trained):
    spec = BackboneSpec(**SIZES, mode=mode)
    model = torch.nn.ModuleDict({"backbone": build_backbone(spec), "detector": torch.nn.Linear(2, 2)})
    names = freeze(model, spec)
    in_backbone = [name for name in names if name.startswith("backbone.")]
    assert {"detector.weight", "detector.bias"} <= set(names)
    expected = [name for name, _ in model.backbone.named_parameters(prefix="backbone")]
    assert in_backbone == [name for name in expected if trained is not None and trained in name]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == names


@pytest.mark.parametrize(
    ("preset", "mode", "blocks", "ratio", "vit", "adapters"),
    [
        ("small", "adapter", "all", 0.25, 21_879_936 - 2 * 384, 1_006_860),
        ("small", "side", tuple(range(6, 12)), 0.25, 21_879_168, 503_430),
        ("base", "adapter", "all", 0.25, 86_227_200 - 2 * 768, 4_004_364),
        ("large", "adapter", "all", 0.25, 303_860_736 - 2 * 1024, 14_217_240),
        ("huge", "adapter", "all", 0.25, 631_607_040 - 2 * 1280, 29_593_632),
        ("giant", "adapter", tuple(range(20, 40)), 0.25, 1_011_610_752 - 2 * 1408, 22_373_140),
        ("giant", "side", tuple(range(20, 40)), 0.125, 1_011_607_936, 10_581_140),
    ],
)
def test_published_parameter_counts(preset, mode, blocks, ratio, vit, adapters):
    """The reference's counts, less the final norm (2 x width) that it holds and never uses."""
    spec = BackboneSpec(preset=preset, mode=mode, adapter=AdapterSpec(blocks=blocks, ratio=ratio))
    with torch.device("meta"):
        backbone = build_backbone(spec)
    counts = {True: 0, False: 0}
    for name, parameter in backbone.named_parameters():
        counts["adapter" in name] += parameter.numel()
    assert counts == {True: adapters, False: vit}


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 1000))
def test_the_product_that_resizes_on_gpus_is_the_interpolation(tubelets, positions, seed):
    draw = torch.Generator().manual_seed(seed)
    timeline = torch.randn(2, 3, tubelets, generator=draw, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 3, positions, generator=draw, dtype=torch.float64)
    both = resize_by_product(timeline, positions), resize_timeline(timeline, positions)
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)
    got, wanted = (torch.autograd.grad(resized, timeline, towards) for resized in both)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    matrix = interpolation_matrix(tubelets, positions, torch.float64, torch.device("cpu"))
    assert (matrix != 0).sum(0).max() <= 2
