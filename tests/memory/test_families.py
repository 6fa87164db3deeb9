"""Every family of backbones under every policy: the timeline and all gradients of policy `none`."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbones import batch, build, error, gradients, under

from adatad.memory import compiled
from adatad.memory.stream import feature_stream
from adatad.memory.tiles import Tile
from adatad.memory.transform import Transform
from adatad.spec.model_sections import AdapterSpec
from adatad.spec.schema import PolicyRange

FAMILIES = {
    # Heads of 20 channels, of which 2 are left over when the three axes have theirs.
    "vjepa2": {"preset": "vjepa2-large", "width": 40},
    "vjepa2.1": {"preset": "vjepa2.1-large", "width": 40},
    "internvideo2": {"preset": "internvideo2-1b", "position_grid": 3},
}
"""Settings of a small backbone of each family but VideoMAE, which the other tests here are about."""
ALL_FAMILIES = {**FAMILIES, "internvideo-next": {"preset": "internvideo-next-base", "clip_frames": 8}}
"""With one whose blocks are another's: it has more class tokens, and norms at its patch embedding."""
WITH_NORM = [name for name in FAMILIES if name.startswith("vjepa")]
"""Families with a norm behind the last block."""
POLICIES = {
    "selective": {"policy": "selective"},
    "block": {"policy": "block"},
    "tile k 1": {"policy": "tile", "tile_clips": 1, "segment_blocks": 1},
    "tile k 2": {"policy": "tile", "tile_clips": 2, "segment_blocks": 2},
    "tile k 3 rebuild": {"policy": "tile", "tile_clips": 1, "segment_blocks": 3, "recompute": "twice"},
    "tile k 4 blocks": {"policy": "tile", "tile_clips": 1, "segment_blocks": 4, "order": "blocks"},
    "tile host": {"policy": "tile", "tile_clips": 1, "segment_blocks": 2, "saved_inputs": "host", "halos": "host"},
    "tile stream": {"policy": "tile", "tile_clips": 1, "segment_blocks": 2, "frozen_weights": "stream"},
    "mixed, wave above": {"policy": (
        PolicyRange(first=0, last=1, policy="block"), PolicyRange(first=2, last=3, policy="tile")), "tile_clips": 1},
    "mixed, wave below": {"policy": (
        PolicyRange(first=0, last=1, policy="tile"), PolicyRange(first=2, last=3, policy="none")), "tile_clips": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "mode"),
    [(family, mode) for family in FAMILIES for mode in ("adapter", "plain", "side", "full")]
    + [("internvideo-next", "adapter"), ("internvideo-next", "full")],
)
def test_policies_agree_in_float64(family, mode):
    backbone, (frames, keys) = build(mode, **ALL_FAMILIES[family]), batch(windows=2, clips=3, height=16, width=24)
    truth = gradients(backbone, frames, keys)
    for name, policy in POLICIES.items():
        # In mode side a policy is of all blocks.
        if mode != "side" or isinstance(policy["policy"], str):
            assert error(gradients(under(backbone, **policy), frames, keys), truth) < 1e-10, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_backbone_gives_its_timeline_without_a_graph(family):
    backbone, (frames, keys) = build("frozen", **FAMILIES[family]), batch()
    for policy in ("block", "tile k 2"):
        timeline = under(backbone, **POLICIES[policy]).timeline(frames, keys)
        torch.testing.assert_close(timeline, backbone.timeline(frames, keys), rtol=1e-12, atol=1e-12)
        assert not timeline.requires_grad


@settings(max_examples=15)
@given(data=st.data())
def test_the_wave_is_exact_for_any_shape(data):
    draw = data.draw
    family = draw(st.sampled_from(sorted(ALL_FAMILIES)), "family")
    mode = draw(st.sampled_from(["adapter", "plain", "full"]), "mode")
    blocks = draw(st.sets(st.integers(0, 3), min_size=1), "adapter blocks")
    kernel, dilation = draw(st.sampled_from([(3, 1), (5, 2), (1, 1)]), "kernel and dilation")
    clips, windows = draw(st.integers(1, 5), "clips"), draw(st.integers(1, 2), "windows")
    height, width = draw(st.sampled_from([(8, 8), (16, 8), (17, 30)]), "pixels")
    adapter = AdapterSpec(blocks=tuple(blocks), kernel=kernel, dilation=dilation)
    backbone = build(mode, **ALL_FAMILIES[family], adapter=adapter)
    memory = {
        "tile_clips": draw(st.integers(1, 3), "tile"),
        "segment_blocks": draw(st.integers(1, 5), "k"),
        "recompute": draw(st.sampled_from(["once", "twice"]), "recompute"),
        "order": draw(st.sampled_from(["tiles", "blocks"]), "order"),
    }
    frames, keys = batch(windows, clips, height, width)
    keys = keys if draw(st.booleans(), "drop path") else None
    waved = under(backbone, clips=clips, policy="tile", **memory)
    assert error(gradients(waved, frames, keys), gradients(backbone, frames, keys)) < 1e-10


@pytest.mark.parametrize("family", WITH_NORM)
def test_a_norm_that_learns_alone_gets_its_gradient(family):
    backbone, (frames, keys) = build("full", **FAMILIES[family]), batch()
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name == "final_norm.bias")
    truth = gradients(backbone, frames, keys)
    assert set(truth) == {"timeline", "final_norm.bias"}
    for policy in ("tile k 2", "tile k 4 blocks"):
        assert error(gradients(under(backbone, **POLICIES[policy]), frames, keys), truth) < 1e-10


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_is_near(family, dtype, bound):
    backbone, (frames, keys) = build("adapter", torch.float32, **FAMILIES[family]), batch(windows=2, clips=3)
    truth = gradients(backbone, frames, keys)
    waved = under(backbone, dtype, policy="tile", tile_clips=1, segment_blocks=2)
    assert error(gradients(waved, frames, keys), truth) < bound


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_8_bits_give_the_same_with_and_without_a_stream_from_the_host(family):
    backbone, (frames, keys) = build("adapter", **FAMILIES[family]), batch()
    coded = {**POLICIES["tile k 2"], "frozen_dtype": "int8"}
    truth = gradients(backbone, frames, keys)
    ours = gradients(under(backbone, **coded), frames, keys)
    assert 0 < error(ours, truth) < 5e-2
    assert error(gradients(under(backbone, **coded, frozen_weights="stream"), frames, keys), ours) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_tiles_give_the_gradients_of_others(family, monkeypatch):
    # Compiled as far as it goes without a C++ compiler.
    monkeypatch.setattr(compiled, "SETTINGS", {"backend": "aot_eager"})
    compiled.compiled.cache_clear()
    torch._dynamo.reset()
    backbone, (frames, keys) = build("adapter", **FAMILIES[family]), batch(windows=2)
    truth = gradients(under(backbone, **POLICIES["tile k 2"]), frames, keys)
    ours = gradients(under(backbone, **POLICIES["tile k 2"], compile=True), frames, keys)
    compiled.compiled.cache_clear()
    torch._dynamo.reset()
    assert error(ours, truth) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_computes_as_functions_what_its_modules_compute(family):
    backbone = build("full", torch.float32, **FAMILIES[family], drop_path=0.0)
    tables = backbone.clip_tables(16, 24, torch.device("cpu"))
    x = torch.randn(2, 8 * 2 * 3, backbone.width)
    transform, tile = Transform(backbone, torch.float32, None, tables=tables), Tile(0, 0, 0, 2)
    for index, block in enumerate(backbone.blocks):
        with torch.no_grad():
            expected, ours = block.transform(x, tables=tables), x.clone()
            transform.in_place(index, tile, ours)
        assert torch.equal(ours, expected)
        assert torch.equal(transform.graph(index, tile, x.clone())[1], expected)


@pytest.mark.parametrize("mode", ["adapter", "side"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_of_groups_gives_the_timeline_of_one_window(family, mode):
    backbone, (frames, _) = build(mode, **FAMILIES[family]), batch(clips=5, height=16, width=24)
    for policy in ("block", "tile k 2"):
        ours = under(copy.deepcopy(backbone), **POLICIES[policy])
        stream, clips = feature_stream(ours, torch.float64), ours.cut_clips(frames)
        rows = torch.cat(list(stream.rows([clips[:2], clips[2:4], clips[4:]])))
        with torch.no_grad():
            timeline = backbone.timeline(frames)
        torch.testing.assert_close(stream.features(rows[None]), timeline, rtol=1e-10, atol=1e-10)
