"""FSDP2 trains and finds what one process does, and holds no more frozen weights than it must."""

import numpy as np
import pytest
from ranks import run_ranks
from sharded_ranks import (
    evaluate_cases,
    go_on,
    kept_of_64,
    overflow_on_one_rank,
    train_and_keep,
    train_watched,
    train_with_evaluation_between,
)
from steps import ALL_POLICIES, POLICIES, difference, mode, train_cases, train_steps

pytestmark = pytest.mark.slow
FSDP = "parallel.engine=fsdp"


def test_frozen_weights_are_whole_for_two_units_at_most_and_never_after_a_step(rateless_spec):
    cases = {policy: [*mode("adapter"), FSDP, *overrides] for policy, overrides in ALL_POLICIES.items()}
    cases |= {f"side {policy}": [*mode("side"), FSDP, *POLICIES[policy]] for policy in POLICIES}
    for ranks in run_ranks(2, train_watched, rateless_spec, cases):
        for name, gathers in ranks.items():
            blocks_in_unit = 2 if name == "tile" else 1
            assert min(gathers.units) > 0
            assert 0 < gathers.most <= 2 * blocks_in_unit * max(gathers.units), (name, gathers)
            assert gathers.left == 0, name


def test_bf16_on_two_ranks_is_close_to_bf16_on_one(rateless_spec):
    cases = {
        f"{name} {policy}": [*mode(name), "train.precision=bf16", *POLICIES[policy]]
        for name, policy in (("adapter", "none"), ("adapter", "block"), ("adapter", "tile"), ("full", "tile"))
    }
    truths = run_ranks(1, train_cases, rateless_spec, cases, 4)[0]
    ours = run_ranks(2, train_cases, rateless_spec, {name: [*o, FSDP] for name, o in cases.items()}, 4)[0]
    for name, outcome in ours.items():
        assert 0 < difference(outcome, truths[name]) < 0.1, name


def test_offload_gives_the_same_numbers(rateless_spec):
    there = {
        "block": [*mode("adapter"), FSDP, *POLICIES["block"]],
        "tile": [*mode("adapter"), FSDP, *POLICIES["tile"]],
        "full": [*mode("full"), FSDP, *POLICIES["tile"]],
    }
    away = {f"{name} offloaded": [*overrides, "parallel.cpu_offload=true"] for name, overrides in there.items()}
    outcomes = run_ranks(2, train_cases, rateless_spec, there | away, 4)[0]
    for name in there:
        assert outcomes[name].values == outcomes[f"{name} offloaded"].values
        for parameter, value in outcomes[name].end.items():
            np.testing.assert_array_equal(outcomes[f"{name} offloaded"].end[parameter], value)


@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_on_many_ranks_finds_what_one_process_finds(world, rateless_spec):
    six = "train.global_batch=6"
    policies = {policy: [*mode("adapter"), six, *POLICIES[policy]] for policy in ("none", "tile")}
    policies["side tile"] = [*mode("side"), six, *POLICIES["tile"]]
    truths = run_ranks(1, evaluate_cases, rateless_spec, policies)[0]
    ours = run_ranks(world, evaluate_cases, rateless_spec, {n: [*o, FSDP] for n, o in policies.items()})
    for name, (_, detections) in truths.items():
        for rank in ours:
            assert rank[name][1] == detections, name
        assert sum(map(len, detections.values())) > 0
    batches = [rank["none"][0] for rank in ours]
    assert len(set(batches)) == (1 if world == 2 else 2)


def test_an_evaluation_between_steps_changes_nothing(rateless_spec):
    overrides = [*mode("adapter"), FSDP, "ema.decay=0.5"]
    plain = run_ranks(2, train_steps, rateless_spec, overrides, 4)[0]
    evaluated = run_ranks(2, train_with_evaluation_between, rateless_spec, overrides, 4)[0]
    assert evaluated.values == plain.values
    assert difference(evaluated, plain) == 0


def test_whole_tensors_go_on_on_any_engine(rateless_spec):
    overrides = mode("adapter")
    kept = run_ranks(2, train_and_keep, rateless_spec, [*overrides, FSDP, *POLICIES["tile"]], 2)[0]
    truth = run_ranks(1, train_steps, rateless_spec, overrides, 4)[0]
    for world, engine in ((1, "ddp"), (1, "fsdp"), (2, "fsdp")):
        resumed = run_ranks(world, go_on, rateless_spec, [*overrides, f"parallel.engine={engine}"], kept, 2, 2)[0]
        resumed.start, resumed.values = truth.start, truth.values[:2] + resumed.values
        assert difference(resumed, truth) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(precision, rateless_spec):
    overrides = [*mode("adapter"), FSDP, f"train.precision={precision}"]
    ranks = run_ranks(2, overflow_on_one_rank, rateless_spec, overrides)
    for rank in ranks:
        assert not rank["bad"]["applied"]
        assert rank["good"]["applied"]
    first = ranks[0]
    for name, value in first["before"].items():
        np.testing.assert_array_equal(first["between"][name], value)
    assert any((first["after"][name] != value).any() for name, value in first["before"].items())
    assert ranks[0]["scales"] == ranks[1]["scales"]
    if precision == "fp16":
        before, after = first["scales"]
        assert after == before / 2


@pytest.mark.parametrize("cpu_offload", ["false", "true"])
def test_each_of_64_ranks_keeps_a_tenth_of_a_gib_of_the_giant_backbone_at_most(cpu_offload):
    most = 0.1 * 2**30
    kept, whole = run_ranks(1, kept_of_64, "configs/thumos/g_768x160_adapter.yaml", cpu_offload)[0]
    assert whole > 1.9e9
    assert whole / 64 <= kept < min(most, 1.1 * whole / 64)
