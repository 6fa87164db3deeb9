"""The tile that is taken where the spec names none."""

import pytest
import torch

from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Planner
from adatad.memory.tiles import default_tile_clips
from adatad.spec import load

H100 = Machine(1000 * GIB, tflops=667)
"""400 TFLOP/s of them are reached, by the planner."""


@pytest.mark.parametrize(("tokens", "clips", "tile"), [(2048, 96, 1), (2048, 768, 1), (968, 48, 2), (968, 24, 2)])
def test_the_tiles_of_g_stay_small(tokens, clips, tile):
    assert default_tile_clips(tokens, 1408, clips) == tile


def test_a_tile_is_never_larger_than_its_window_and_two_are_alike():
    assert default_tile_clips(800, 384, 1) == 1
    assert default_tile_clips(800, 384, 30) == 30
    assert default_tile_clips(800, 384, 48) == 24


@pytest.mark.parametrize("size", ["s", "b", "l", "h"])
def test_tile_is_about_as_fast_as_block_by_the_planner(size):
    seconds = {}
    for policy in ("block", "tile"):
        overrides = ["train.global_batch=1", f"memory.policy={policy}"]
        spec = load(f"configs/thumos/{size}_768x160_adapter.yaml", overrides, check_files=False)
        seconds[policy] = Planner(spec, H100, torch.bfloat16).own().seconds
    assert seconds["tile"] < 1.15 * seconds["block"]
