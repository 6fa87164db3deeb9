"""Every policy gives the timeline and all gradients of policy `none`."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad.memory.policy import apply_policy
from adatad.models.backbone import VideoBackbone
from adatad.models.trained import trained_names
from adatad.spec.schema import AdapterSpec, BackboneSpec, DataSpec, MemorySpec, PolicyRange, WindowSpec

SIZES = {"width": 16, "depth": 4, "heads": 2, "patch": 8, "mlp_ratio": 3.0, "position_grid": 2}
CLIP = 16


def build(mode: str, dtype: torch.dtype = torch.float64, **changes) -> VideoBackbone:
    """A backbone with nothing at zero: every gradient depends on every weight."""
    torch.manual_seed(0)
    spec = BackboneSpec(**SIZES, mode=mode, **{"drop_path": 0.4, **changes})
    backbone = VideoBackbone(spec).to(dtype)
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
    weight = torch.linspace(-1, 1, timeline.numel(), dtype=timeline.dtype).view_as(timeline).sin()
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


POLICIES = {
    "selective": {"policy": "selective"},
    "block": {"policy": "block"},
    "tile k 1": {"policy": "tile", "tile_clips": 1, "segment_blocks": 1},
    "tile k 2": {"policy": "tile", "tile_clips": 2, "segment_blocks": 2},
    "tile k 3 rebuild": {"policy": "tile", "tile_clips": 1, "segment_blocks": 3, "recompute": "rebuild"},
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


@settings(max_examples=40, deadline=None)
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
        "recompute": draw(st.sampled_from(["hold", "rebuild"]), "recompute"),
        "order": draw(st.sampled_from(["tiles", "blocks"]), "order"),
    }
    frames, keys = batch(windows, clips, height, width)
    keys = keys if draw(st.booleans(), "drop path") else None
    waved = under(backbone, clips=clips, policy="tile", **memory)
    assert error(gradients(waved, frames, keys), gradients(backbone, frames, keys)) < 1e-10


@settings(max_examples=20, deadline=None)
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


@pytest.mark.parametrize("recompute", ["hold", "rebuild"])
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
