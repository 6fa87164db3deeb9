"""The roofline: what kernels take, and what isn't run at all."""

import pytest
import torch

from adatad.dev.benchmarks import gpu_cases
from adatad.dev.benchmarks.roofline_suite import (
    PICO,
    CardRates,
    Prediction,
    RooflineCount,
    never_computed,
    predict,
    probe,
)

CARD = CardRates(rate=1e12, bandwidth=1e9, shortest_seconds=1e-6, launch_seconds=5e-6)
TINY = (
    "data.window.size_grid=64 data.size_pixels=32 model.detector.width=32 model.detector.max_length=64"
    " model.backbone.depth=4 model.backbone.width=96 model.backbone.heads=2"
)


def spec_of(drop_path, clips=1):
    case = gpu_cases.GpuCase("", "s_768x160_adapter", TINY, ())
    policy = f"memory.policy=tile memory.tile_clips={clips} memory.segment_blocks=2"
    return gpu_cases.spec_of(case, gpu_cases.Variant("", f"{policy} model.backbone.drop_path={drop_path}"))


def test_a_kernel_takes_its_flops_or_its_bytes_or_the_shortest_time():
    with RooflineCount(CARD) as count:
        a = torch.empty(1024, 1024, device="meta")
        a @ a.t()
        assert count.total * PICO == pytest.approx(3 * 2**22 / 1e9)
    small = RooflineCount(CARD._replace(rate=1e6))
    with small:
        torch.empty(8, 8, device="meta") @ torch.empty(8, 8, device="meta")
        assert small.total * PICO == pytest.approx(2 * 8**3 / 1e6)
    short = RooflineCount(CARD)
    with short:
        torch.empty(2, device="meta").add_(1).view(1, 2)
        torch.ones(3).mul(2)
    assert (short.kernels, short.total * PICO) == (1, pytest.approx(1e-6))


def test_branches_that_whole_tiles_drop_are_taken_off_by_their_rates():
    def saved(drop_path, clips):
        spec = spec_of(drop_path, clips)
        return never_computed(probe(spec, CARD), spec.memory)

    assert saved(0.0, 1) == (0.0, 0)
    once, twice = saved(0.2, 1), saved(0.4, 1)
    assert twice[0] == pytest.approx(2 * once[0], rel=0.02)
    assert once[1] > 0
    # Both clips of a tile drop a branch at once less often, and there are half as many tiles.
    assert 0 < saved(0.2, 2)[0] < 0.3 * once[0]


def test_a_prediction_of_small_kernels_is_the_time_of_their_launches():
    found = predict(spec_of(0.0), CARD._replace(bandwidth=1e15))
    assert found.device_seconds == pytest.approx(found.kernels * 1e-6, rel=0.2)
    assert found.seconds == pytest.approx(found.kernels * 5e-6)
    assert found.without(1e-3, 10) == Prediction(found.device_seconds - 1e-3, found.kernels - 10, found.seconds - 1e-3)
