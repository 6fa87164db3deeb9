"""What a step doesn't need any more is let go before backward, which is where memory is fullest."""

import weakref

import pytest
import torch
from small_backbones import batch, build, under

from adatad.memory.arithmetic import autocast, forget_casts, meta_autocast
from adatad.memory.meta import gpu_like_meta
from adatad.memory.meter import Meter
from adatad.spec import load
from adatad.training.metered import META, meta_parts, random_batch
from adatad.training.step import train_step

TINY = [
    "data.window.size_grid=32", "data.window.frames_per_position=1", "model.detector.max_length=32",
    "data.size_pixels=32", "model.backbone.width=16", "model.backbone.depth=2", "model.backbone.heads=2",
    "model.detector.width=16", "model.detector.heads=2", "model.detector.branch_blocks=2",
    "model.detector.regression_ranges=[[0,4],[4,8],[8,10000]]",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["adapter", "side", "full"])
def test_frames_go_with_their_last_use(mode):
    """Adapters need them for the forward pass; what computes tokens again, or differentiates the patch embedding, keeps
    them until it has."""
    waved = under(build(mode), policy="tile", tile_clips=1, segment_blocks=2)
    frames, keys = batch()
    there = weakref.ref(frames)
    features = waved(frames, 24, None if mode == "side" else keys)
    del frames
    assert (there() is None) == (mode == "adapter")
    loss = features.sum()
    loss.backward()
    assert there() is None, "the loss is still there"


def test_a_cast_of_a_weight_lives_until_it_is_forgotten_and_no_longer_than_its_graph():
    weight, x, cpu = torch.nn.Parameter(torch.ones(8, 8)), torch.ones(8, 8), torch.device("cpu")
    with Meter("cpu") as meter, autocast(cpu, torch.bfloat16):
        graph = torch.nn.functional.linear(x.bfloat16().requires_grad_(), weight)
        forget_casts(cpu)
        with_graph = meter.current_bytes
        del graph
        assert with_graph > meter.current_bytes == 0
        torch.nn.functional.linear(x, weight)
        assert meter.current_bytes == 8 * 8 * 2, "torch keeps the cast for the region"
        forget_casts(cpu)
        assert meter.current_bytes == 0


def test_no_cast_outlives_the_forward_pass_of_a_step(monkeypatch):
    spec = load("configs/thumos/s_768x160_adapter.yaml", TINY, check_files=False)
    seen = []
    backward = torch.Tensor.backward

    def looked_at(loss):
        seen.append(len(meta_autocast().casts))
        backward(loss)

    with gpu_like_meta():
        parts = meta_parts(spec)
        monkeypatch.setattr(torch.Tensor, "backward", looked_at)
        train_step(parts, [random_batch(spec, 2, 20, META)], step=1)
    assert seen == [0]
