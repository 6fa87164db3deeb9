"""The same spec gives the same training on any engine, number of ranks and split into micro-batches."""

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
    from conftest import TINY_SPEC

    path = tmp_path_factory.mktemp("invariance") / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=path.parent / "runs"))
    return str(path)


@pytest.fixture(scope="session")
def truth(invariance_spec) -> Outcome:
    """One process, no recomputation, no accumulation."""
    return run_ranks(1, train_steps, invariance_spec, COMMON)[0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_of_every_engine_under_every_policy(engine, policy, invariance_spec, truth):
    overrides = [*COMMON, f"parallel.engine={engine}", *POLICIES[policy]]
    ranks = run_ranks(2, train_steps, invariance_spec, overrides)
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)
    assert [v["cost"] for v in ranks[0].values] == [v["cost"] for v in ranks[1].values]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_times_micro_batches(world, accumulation, invariance_spec, truth):
    ranks = run_ranks(world, train_steps, invariance_spec, [*COMMON, f"train.accumulation={accumulation}"])
    assert difference(ranks[0], truth) < 1e-5, worst(ranks[0], truth)
