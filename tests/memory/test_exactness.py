"""Every policy gives the timeline and all gradients of policy `none`."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbones import batch, build, error, gradients, under

from adatad.spec.model_sections import AdapterSpec
from adatad.spec.schema import PolicyRange

POLICIES = {
    "selective": {"policy": "selective"},
    "block": {"policy": "block"},
    "tile k 1": {"policy": "tile", "tile_clips": 1, "segment_blocks": 1},
    "tile k 2": {"policy": "tile", "tile_clips": 2, "segment_blocks": 2},
    "tile k 3 rebuild": {"policy": "tile", "tile_clips": 1, "segment_blocks": 3, "recompute": "twice"},
    "tile k 4 blocks": {"policy": "tile", "tile_clips": 1, "segment_blocks": 4, "order": "blocks"},
}


@pytest.mark.parametrize("mode", ["adapter", "plain", "side", "full"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_agree_in_float64(mode, policy):
    backbone, (frames, keys) = build(mode), batch(windows=2, clips=3)
    assert (
        error(gradients(under(backbone, **POLICIES[policy]), frames, keys), gradients(backbone, frames, keys)) < 1e-10
    )


@pytest.mark.parametrize("policy", ["block", "tile k 2"])
def test_a_frozen_backbone_gives_its_timeline_without_a_graph(policy):
    backbone, (frames, keys) = build("frozen"), batch()
    timeline = under(backbone, **POLICIES[policy]).timeline(frames, keys)
    torch.testing.assert_close(timeline, backbone.timeline(frames, keys), rtol=1e-12, atol=1e-12)
    assert not timeline.requires_grad


@given(data=st.data())
def test_the_wave_is_exact_for_any_shape(data):
    draw = data.draw
    mode = draw(st.sampled_from(["adapter", "plain", "full"]), "mode")
    blocks = draw(st.sets(st.integers(0, 3), min_size=1), "adapter blocks")
    kernel, dilation = draw(st.sampled_from([(3, 1), (5, 1), (3, 2), (5, 2), (1, 1)]), "kernel and dilation")
    clips, windows = draw(st.integers(1, 7), "clips"), draw(st.integers(1, 2), "windows")
    height, width = draw(st.sampled_from([(8, 8), (16, 8), (17, 30)]), "pixels")
    adapter = AdapterSpec(blocks=tuple(blocks), kernel=kernel, dilation=dilation)
    backbone = build(mode, adapter=adapter)
    memory = {
        "tile_clips": draw(st.integers(1, 4), "tile"),
        "segment_blocks": draw(st.integers(1, 5), "k"),
        "recompute": draw(st.sampled_from(["once", "twice"]), "recompute"),
        "order": draw(st.sampled_from(["tiles", "blocks"]), "order"),
    }
    frames, keys = batch(windows, clips, height, width)
    keys = keys if draw(st.booleans(), "drop path") else None
    waved = under(backbone, clips=clips, policy="tile", **memory)
    assert error(gradients(waved, frames, keys), gradients(backbone, frames, keys)) < 1e-10


@settings(max_examples=20)
@given(
    cuts=st.sets(st.integers(1, 3)),
    policies=st.lists(st.sampled_from(["none", "selective", "block", "tile"]), min_size=4, max_size=4),
    mode=st.sampled_from(["adapter", "full"]),
)
def test_ranges_of_blocks_may_have_policies_of_their_own(cuts, policies, mode):
    starts = [0, *sorted(cuts)]
    ends = [*(start - 1 for start in starts[1:]), 3]
    ranges = tuple(PolicyRange(first=f, last=l, policy=p) for f, l, p in zip(starts, ends, policies, strict=False))
    backbone, (frames, keys) = build(mode), batch(windows=2)
    tile = {"tile_clips": 2, "segment_blocks": 2} if any(r.policy == "tile" for r in ranges) else {}
    mixed = under(backbone, policy=ranges, **tile)
    assert error(gradients(mixed, frames, keys), gradients(backbone, frames, keys)) < 1e-10


@pytest.mark.parametrize("recompute", ["once", "twice"])
def test_segments_of_any_length_give_the_same_bits(recompute):
    backbone, (frames, keys) = build("adapter", torch.float32), batch(windows=2, clips=5)
    memory = {"policy": "tile", "tile_clips": 2, "recompute": recompute}
    first, *others = (
        gradients(under(backbone, torch.float32, segment_blocks=k, **memory), frames, keys) for k in (1, 2, 3, 4)
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_float32_is_as_near_to_the_truth_as_autograd():
    truth_of, (frames, keys) = build("adapter"), batch(windows=1, clips=5)
    truth = gradients(truth_of, frames, keys)
    single = copy.deepcopy(truth_of).float()
    plain = error(gradients(single, frames, keys), truth)
    for policy in POLICIES.values():
        ours = error(gradients(under(single, torch.float32, **policy), frames, keys), truth)
        assert ours < 2 * plain, policy


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("mode", ["adapter", "side", "full"])
def test_low_precision_is_near(mode, dtype, bound):
    backbone, (frames, keys) = build(mode, torch.float32), batch(windows=2, clips=3)
    truth = gradients(backbone, frames, keys)
    waved = under(backbone, dtype, policy="tile", tile_clips=1, segment_blocks=2)
    assert error(gradients(waved, frames, keys), truth) < bound


def test_fp16_keeps_gradients_that_are_too_small_for_it():
    backbone, (frames, keys) = build("adapter", torch.float32), batch()
    waved = under(backbone, torch.float16, policy="tile", tile_clips=1)
    for model in (backbone, waved):
        (model.timeline(frames, keys).sum() * 1e-9).backward()
    for one, other in zip(backbone.parameters(), waved.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=0.1, atol=float(one.grad.abs().max()) * 0.02)


@pytest.mark.parametrize("mode", ["adapter", "side"])
def test_fp16_takes_gradients_that_are_zero(mode):
    """Side adapters' first layers have such gradients in the first step."""
    waved = under(build(mode, torch.float32), torch.float16, policy="tile", tile_clips=1)
    (waved.timeline(*batch()).sum() * 0).backward()
    for parameter in waved.parameters():
        if parameter.requires_grad:
            assert parameter.grad.eq(0).all()


def test_a_residual_of_its_own_dtype_brings_bf16_nearer():
    backbone, (frames, keys) = build("adapter", torch.float32), batch()
    truth = gradients(backbone, frames, keys)
    errors = [
        error(gradients(under(backbone, torch.bfloat16, policy="tile", residual_dtype=residual), frames, keys), truth)
        for residual in ("fp32", "bf16")
    ]
    assert errors[0] < errors[1]


def test_two_forwards_before_one_backward():
    backbone = build("adapter")
    waved = under(backbone, policy="tile", tile_clips=1, segment_blocks=2)
    totals = []
    for model in (backbone, waved):
        sums = [model.timeline(*batch(windows=w)).tanh().sum() for w in (1, 2)]
        (sums[0] - 3 * sums[1]).backward()
        totals.append(
            {
                "timeline": torch.stack(sums).detach(),
                **{n: p.grad for n, p in model.named_parameters() if p.requires_grad},
            }
        )
    assert error(totals[1], totals[0]) < 1e-10


def test_a_second_backward_is_refused():
    waved, (frames, keys) = under(build("adapter"), policy="tile"), batch()
    loss = waved.timeline(frames, keys).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="went back"):
        loss.backward()


@pytest.mark.parametrize("mode", ["adapter", "side"])
def test_evaluation_keeps_nothing(mode):
    backbone, (frames, _) = build(mode), batch()
    waved = under(backbone, policy="tile", tile_clips=1)
    with torch.no_grad():
        torch.testing.assert_close(waved.timeline(frames), backbone.timeline(frames), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["none", "block"])
def test_frozen_weights_cast_once_give_the_bits_of_autocast(policy):
    backbone, (frames, keys) = build("adapter", torch.float32), batch()
    results = []
    for weight_dtype in ("auto", "fp32"):
        cast = under(backbone, torch.bfloat16, policy=policy, weight_dtype=weight_dtype)
        assert (cast.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16) == (weight_dtype == "auto")
        assert cast.blocks[0].norm1.weight.dtype == cast.blocks[0].adapter.down.weight.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(cast, frames, keys))
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())
