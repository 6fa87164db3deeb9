"""A tile's branches compiled: the features and gradients of those that aren't, from one function for all blocks."""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import pytest
import torch
from small_backbones import batch, build, error, gradients, under
from torch.profiler import ProfilerActivity, profile

from adatad.memory import compiled
from adatad.memory.compiled import CompileError, compile_report
from adatad.memory.tiles import Tile
from adatad.memory.transform import Transform
from adatad.models.backbone import VideoBackbone

TILE = {"policy": "tile", "tile_clips": 2, "segment_blocks": 2}
"""Of three clips: the last tile of a window is shorter."""


@pytest.fixture
def fresh():
    """Nothing is compiled before and after."""
    compiled.compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    compiled.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch, fresh):
    """Compiled as far as it goes without a C++ compiler."""
    monkeypatch.setattr(compiled, "SETTINGS", {"backend": "aot_eager"})


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("mode", "recompute"), [("adapter", "once"), ("full", "twice")])
def test_compiled_tiles_give_the_gradients_of_others_and_serve_all_blocks(mode, recompute, traced):
    backbone, (frames, keys) = build(mode, drop_path=0.7), batch(windows=2)
    memory = {**TILE, "recompute": recompute}
    truth = gradients(under(backbone, **memory), frames, keys)
    waved = under(backbone, compile=True, **memory)
    assert error(gradients(waved, frames, keys), truth) < 1e-10
    # Of attention and MLP, in place and with a graph, on tiles of two clips and of one: at most.
    once = graphs()
    assert 0 < once <= 8 < 2 * len(backbone.blocks) * 2
    assert error(gradients(waved, *batch(windows=2)), truth) < 1e-10
    assert graphs() == once


def test_the_bits_are_those_of_tiles_that_are_not_compiled_before_a_compiler_reorders_them(traced):
    """Adapters aren't compiled, and see the same tokens."""
    adapter = {"kernel": 5, "dilation": 2, "blocks": (1, 3)}
    backbone, (frames, keys) = build("adapter", torch.float32, adapter=adapter), batch(windows=2)
    truth = gradients(under(backbone, torch.float32, **TILE), frames, keys)
    ours = gradients(under(backbone, torch.float32, compile=True, **TILE), frames, keys)
    assert all(torch.equal(ours[name], tensor) for name, tensor in truth.items())


@pytest.mark.parametrize("mode", ["side", "frozen"])
def test_modes_without_a_graph_can_be_compiled(mode, traced):
    backbone, (frames, keys) = build(mode), batch()
    timelines = [under(backbone, compile=is_on, **TILE).timeline(frames, keys) for is_on in (False, True)]
    torch.testing.assert_close(*timelines, rtol=1e-12, atol=1e-12)
    assert graphs()


def test_weights_that_come_block_by_block_are_compiled_once_too(traced):
    memory = {"frozen_weights": "stream", "frozen_dtype": "int8"}
    backbone, (frames, keys) = build("adapter"), batch()
    memory |= {**TILE, "tile_clips": 1}
    truth = gradients(under(backbone, **memory), frames, keys)
    assert error(gradients(under(backbone, compile=True, **memory), frames, keys), truth) < 1e-10
    assert 0 < graphs() <= 8


def test_trained_norms_stay_in_fp32_under_autocast(traced):
    backbone, (frames, keys) = build("full", torch.float32), batch(clips=2)
    truth = gradients(under(backbone, torch.bfloat16, **TILE), frames, keys)
    ours = gradients(under(backbone, torch.bfloat16, compile=True, **TILE), frames, keys)
    assert error(ours, truth) < 1e-2
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())


def graph_of(waved: VideoBackbone, x: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """Return, for block 0 on one tile: output, gradient, and bytes of what autograd saves beside weights."""
    transform, kept = Transform(waved, x.dtype, None, waved.executor.passes[0].settings.branch_type), {}
    addresses = {tensor.data_ptr() for tensors in transform.weights(0).branches for tensor in tensors}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in addresses:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        into, out = transform.graph(0, Tile(0, 0, 0, len(x)), x)
    (gradient,) = torch.autograd.grad(out, into, out.detach().sin())
    return {"out": out.detach(), "gradient": gradient, "bytes": sum(kept.values())}


@pytest.mark.parametrize("mode", ["adapter", "full"])
def test_a_compiled_tile_keeps_no_more_for_backward(mode, traced, monkeypatch):
    # With the rule by which inductor chooses what is kept.
    monkeypatch.setattr(compiled, "SETTINGS", {"backend": "aot_eager_decomp_partition"})
    backbone, x = build(mode, torch.float32), torch.randn(2, 16, 16)
    eager, ours = (graph_of(under(backbone, torch.float32, compile=on, **TILE), x) for on in (False, True))
    assert 0 < ours["bytes"] <= eager["bytes"]


def test_what_is_compiled_is_said_before_and_at_its_first_use(traced, caplog):
    waved = under(build("frozen"), compile=True, **TILE)
    (line,) = compile_report(waved.executor.passes)
    for part in ("blocks 0 to 3", "aot_eager", "float64", "tiles of 2 clips"):
        assert part in line
    assert not compile_report(under(build("adapter"), **TILE).executor.passes)
    with caplog.at_level(logging.INFO, "adatad"):
        for _ in range(2):
            waved.timeline(*batch())
    said = [record.getMessage().rpartition(": ")[0] for record in caplog.records]
    assert len(said) == len(set(said)) == 4
    assert "memory.compile: add attention in place, [2, 32, 16] float64, with stochastic depth" in said


def test_a_compiler_that_is_not_there_is_named_in_one_line(traced, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(compiled, "SETTINGS", {"backend": broken})
    with pytest.raises(CompileError, match=r"memory\.compile: can't compile add attention in place: no working") as e:
        gradients(under(build("adapter"), compile=True, **TILE), *batch())
    assert "\n" not in str(e.value)


def peak_bytes(run: Callable[[], None]) -> int:
    """Return the peak of allocations on the CPU, also by compiled code."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_code_of_a_cpp_compiler_is_near_in_fp32_and_takes_no_more_memory(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    backbone, x = build("adapter", torch.float32), torch.randn(2, 16, 16)
    results, peaks = [], []
    for is_on in (False, True):
        waved = under(backbone, torch.float32, compile=is_on, **TILE)
        transform = Transform(waved, x.dtype, None, waved.executor.passes[0].settings.branch_type)
        tile, y = Tile(0, 0, 0, len(x)), x.clone()
        transform.in_place(0, tile, y)
        results.append({**graph_of(waved, x), "in place": y})
        peaks.append([
            peak_bytes(partial(transform.in_place, 0, tile, x.clone())), peak_bytes(partial(graph_of, waved, x)),
        ])  # fmt: skip
    eager, ours = results
    assert graphs() == 4
    for name in ("in place", "out", "gradient"):
        torch.testing.assert_close(ours[name], eager[name], rtol=1e-5, atol=1e-5)
    assert 0 < ours["bytes"] <= eager["bytes"]
    assert all(0 < compiled_peak <= peak for compiled_peak, peak in zip(peaks[1], peaks[0], strict=True))
