"""The GPU suite at a tiny size on the CPU; on a GPU, the meter against the allocator."""

import pytest
import torch

from adatad.benchmarks import gpu
from adatad.spec import load
from adatad.training.metered import step_memory

TINY = gpu.Case(
    "g tiny",
    "s_768x160_adapter",
    "data.window.size_grid=64 data.size_pixels=32 model.detector.width=32 model.detector.max_length=64"
    " model.backbone.depth=4 model.backbone.width=96 model.backbone.heads=2",
    "memory.tile_clips=1 memory.segment_blocks=2",
)


def test_every_variant_is_measured_and_a_full_memory_survived(monkeypatch, capsys):
    build = gpu.build_step

    def without_none(spec, variant, device):
        if variant.name == "none":
            raise torch.cuda.OutOfMemoryError("planted")
        return build(spec, variant, device)

    monkeypatch.setattr(gpu, "build_step", without_none)
    results = gpu.run((TINY,), torch.device("cpu"), rounds=2)
    out = capsys.readouterr().out
    assert "out of memory" in out
    rows = {line.split("│")[1].strip(): line.split("│") for line in out.splitlines() if line.startswith("│")}
    assert rows.keys() == {variant.name for variant in gpu.variants(TINY)}
    assert float(rows[gpu.REFERENCE][3]) == 1.0
    assert [result.name.split(": ")[1] for result in results] == [
        "tile, hold / reference's recipe",
        "none or selective / reference's recipe",
        f"{gpu.ON_HOST} / tile, hold",
        "tile, hold, share of the matrix rate left idle",
    ]
    # The share left idle is below 0 where the matrix product that it is held against met a busy machine.
    assert all(result.value > 0 for result in results[:-1])
    assert results[-1].value < 1


def test_recomputation_is_in_the_executed_flops_alone():
    useful = gpu.useful_flops(TINY)
    executed = {}
    for variant in gpu.variants(TINY):
        measured = gpu.Measured()
        gpu.measure(TINY, variant, torch.device("cpu"), measured)
        executed[variant.name] = measured.executed_flops
    # torch has no formula for the CPU's attention kernel, which is in the useful FLOPs of a GPU.
    assert 0.9 * useful < executed["none"] < useful
    assert executed["block"] > 1.2 * executed["none"]
    assert executed["tile, rebuild"] > executed["tile, hold"] > 1.1 * executed["none"]
    assert executed["tile, hold"] == pytest.approx(executed["block"], rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("policy", ["memory.policy=block", "memory.policy=tile memory.tile_clips=2"])
def test_the_count_agrees_with_the_allocator(policy):
    variant = gpu.Variant("", policy)
    case = gpu.Case("", "l_768x160_adapter", "", "")
    measured = gpu.Measured()
    gpu.measure(case, variant, torch.device("cuda"), measured)
    spec = load("configs/thumos/l_768x160_adapter.yaml", policy.split(), check_files=False)
    assert step_memory(spec, windows=1).bytes == pytest.approx(measured.peak_bytes, rel=0.08)
