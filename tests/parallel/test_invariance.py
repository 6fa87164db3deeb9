"""The same spec gives the same training on any engine, number of ranks and split into micro-batches."""

import pytest
from ranks import run_ranks
from steps import POLICIES, Outcome, difference, train_steps, worst, zero3_settings

ENGINES = ["ddp", "fsdp", "zero1", "zero2", "zero3", "fairscale"]
COMMON = [
    "train.global_batch=4", "schedule.epochs=8", "data.window.crop_ratio=[0.9,1.0]",
    "data.augment={crop_short_side_pixels: 40, flip: 0.5, rand_augment: true, color_jitter: {}}",
]  # fmt: skip


@pytest.fixture(scope="session")
def truth(shared_spec) -> Outcome:
    """One process, no recomputation, no accumulation."""
    return run_ranks(1, train_steps, shared_spec, COMMON)[0]


@pytest.fixture(scope="session")
def engine_settings(tmp_path_factory) -> dict[str, list[str]]:
    """Overrides for each engine."""
    zero3 = zero3_settings(tmp_path_factory.mktemp("invariance"))
    return {engine: [f"parallel.engine={engine}"] for engine in ENGINES} | {"zero3": zero3}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_of_every_engine_under_every_policy(engine, policy, shared_spec, truth, engine_settings):
    overrides = [*COMMON, *engine_settings[engine], *POLICIES[policy]]
    ranks = run_ranks(2, train_steps, shared_spec, overrides)
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)
    assert [v["cost"] for v in ranks[0].values] == [v["cost"] for v in ranks[1].values]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_times_micro_batches(world, accumulation, shared_spec, truth):
    ranks = run_ranks(world, train_steps, shared_spec, [*COMMON, f"train.accumulation={accumulation}"])
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero3"])
def test_two_ranks_with_all_that_an_engine_lets_wait_on_the_host(engine, shared_spec, truth, engine_settings):
    places = ["saved_inputs=host", "halos=host", "frames=host", "moving_average=host"]
    if engine == "ddp":
        places += ["optimizer_state=host", "frozen_weights=stream"]
    tile = ["policy=tile", "tile_clips=1", "segment_blocks=1", *places]
    overrides = [*COMMON, *engine_settings[engine], "train.accumulation=2", *(f"memory.{setting}" for setting in tile)]
    ranks = run_ranks(2, train_steps, shared_spec, overrides)
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)
