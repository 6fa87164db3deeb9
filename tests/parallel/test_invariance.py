"""The same spec gives the same training on any engine, number of ranks and split into micro-batches."""

import json

import pytest
from ranks import run_ranks
from steps import POLICIES, Outcome, difference, train_steps, worst

ENGINES = ["ddp", "fsdp", "zero1", "zero2", "zero3", "fairscale"]
COMMON = [
    "train.global_batch=4", "schedule.epochs=8", "data.window.crop_ratio=[0.9,1.0]",
    "data.augment={crop_short_side_pixels: 40, flip: 0.5, rand_augment: true, color_jitter: {}}",
]  # fmt: skip


@pytest.fixture(scope="session")
def invariance_spec(tiny_data, tmp_path_factory):
    from tiny_spec import TINY_SPEC

    path = tmp_path_factory.mktemp("invariance") / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=path.parent / "runs"))
    return str(path)


@pytest.fixture(scope="session")
def truth(invariance_spec) -> Outcome:
    """One process, no recomputation, no accumulation."""
    return run_ranks(1, train_steps, invariance_spec, COMMON)[0]


@pytest.fixture(scope="session")
def engine_settings(tmp_path_factory) -> dict[str, list[str]]:
    """Overrides for each engine; zero3's limits are those of so small a model: ds_configs/zero3.json would keep it
    whole."""
    limits = {"max_live_parameters": 12000, "max_reuse_distance": 1000, "prefetch_bucket_size": 3000}
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0} | {f"stage3_{k}": v for k, v in limits.items()}
    file = tmp_path_factory.mktemp("invariance_deepspeed") / "zero3.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    return {engine: [f"parallel.engine={engine}"] for engine in ENGINES} | {
        "zero3": ["parallel.engine=zero3", f"parallel.deepspeed={file}"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_of_every_engine_under_every_policy(engine, policy, invariance_spec, truth, engine_settings):
    overrides = [*COMMON, *engine_settings[engine], *POLICIES[policy]]
    ranks = run_ranks(2, train_steps, invariance_spec, overrides)
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)
    assert [v["cost"] for v in ranks[0].values] == [v["cost"] for v in ranks[1].values]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_times_micro_batches(world, accumulation, invariance_spec, truth):
    ranks = run_ranks(world, train_steps, invariance_spec, [*COMMON, f"train.accumulation={accumulation}"])
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero3"])
def test_two_ranks_with_all_that_an_engine_lets_wait_on_the_host(engine, invariance_spec, truth, engine_settings):
    places = ["rows=host", "halos=host", "frames=host", "moving_average=host"]
    if engine == "ddp":
        places += ["optimizer_state=host", "frozen_weights=stream"]
    tile = ["policy=tile", "tile_clips=1", "segment_blocks=1", *places]
    overrides = [*COMMON, *engine_settings[engine], "train.accumulation=2", *(f"memory.{setting}" for setting in tile)]
    ranks = run_ranks(2, train_steps, invariance_spec, overrides)
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)
