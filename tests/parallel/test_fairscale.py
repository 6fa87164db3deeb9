"""fairscale's sharding beyond what all engines share: what is whole when, offloaded checkpoints, precision."""

import pytest
import torch
from faulty import NO_FAULT, run_all
from ranks import run_ranks
from steps import POLICIES, Run, train_cases

from adatad.spec import SpecError, load
from adatad.training.checkpoint import read_checkpoint
from adatad.training.run_directory import run_directory
from adatad.training.signals import EXIT_CODE_RESUME

DEEP = ["model.backbone.depth=4", "train.global_batch=4", "schedule.epochs=8", "data.window.crop_ratio=[0.9,1.0]"]
ENGINE = ["parallel.engine=fairscale"]
pytestmark = pytest.mark.slow


def test_bf16_keeps_and_gathers_frozen_weights_in_bf16(tiny_spec):
    cases = {policy: [*DEEP, *POLICIES[policy], "train.precision=bf16"] for policy in ("none", "tile")}
    truths = run_ranks(1, train_cases, str(tiny_spec), cases, 4)[0]
    ours = run_ranks(2, train_cases, str(tiny_spec), {name: [*o, *ENGINE] for name, o in cases.items()}, 4)[0]
    for name, truth in truths.items():
        costs = [[value["cost"] for value in outcome.values] for outcome in (ours[name], truth)]
        assert costs[0] == pytest.approx(costs[1], rel=2e-2), name


def test_offloaded_checkpoints_run_a_block_again_in_the_same_arithmetic(tiny_spec):
    settings = [*DEEP, *POLICIES["block"], *ENGINE, "train.precision=bf16"]
    cases = {flag: [*settings, f"parallel.checkpoint_offload={flag}"] for flag in ("false", "true")}
    outcomes = run_ranks(2, train_cases, str(tiny_spec), cases, 2)[0]
    assert outcomes["true"].values == outcomes["false"].values


def overflow_on_one_rank(spec_file: str, overrides: list[str]) -> tuple[float, float, bool]:
    """Loss scale before and after a step in which one rank's gradients overflow, and whether the step was applied."""
    from adatad.parallel.processes import start_processes
    from adatad.training.loaders import training_loader
    from adatad.training.resolve import resolve_run
    from adatad.training.setup import initial_state
    from adatad.training.step import train_step

    spec = load(spec_file, overrides)
    with start_processes() as processes:
        parts = initial_state(resolve_run(spec, processes), processes)
        batches = iter(training_loader(parts.run, (0, 0)))
        train_step(parts, [next(batches)], 0)
        before, reduced = parts.engine.scaler.get_scale(), parts.engine.backward

        def backward(loss):
            reduced(loss)
            if processes.rank == 1:
                next(iter(parts.engine.named.values())).grad.fill_(torch.inf)

        parts.engine.backward = backward
        values = train_step(parts, [next(batches)], 1)
        return before, parts.engine.scaler.get_scale(), values["applied"]


def test_loss_scales_of_all_ranks_stay_the_same(tiny_spec):
    settings = ["train.global_batch=2", *ENGINE, "train.precision=fp16"]
    for before, after, applied in run_ranks(2, overflow_on_one_rank, str(tiny_spec), settings):
        assert (after, applied) == (before / 2, False)


def frozen_shares(spec_file: str, cases: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Largest share of the blocks' frozen bytes that was whole at any gather of each case, and that after a step."""
    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        return {name: frozen_share(Run(spec_file, overrides, processes)) for name, overrides in cases.items()}


def frozen_share(run: Run) -> dict[str, float]:
    from adatad.parallel.fairscale import Unit

    units = run.parts.engine.units
    blocks = [p for unit in units[:-1] for p in unit.frozen]
    everything = [p for unit in units for p in unit.params]
    sizes = {id(p): p._orig_size.numel() for p in everything}

    def whole(parameters: list) -> float:
        there = [p for p in parameters if hasattr(p, "_full_param_padded")]
        held = sum(sizes[id(p)] for p in there if p._full_param_padded.untyped_storage().size())
        return held / sum(sizes[id(p)] for p in parameters)

    peak = 0.0
    gather = Unit._rebuild_full_params

    def watched(unit, *args, **kwargs):
        nonlocal peak
        out = gather(unit, *args, **kwargs)
        peak = max(peak, whole(blocks))
        return out

    Unit._rebuild_full_params = watched
    try:
        run.train(1)
    finally:
        Unit._rebuild_full_params = gather
    return {"peak": peak, "after": whole(everything)}


def test_at_most_two_blocks_are_whole_and_nothing_after_a_step(tiny_spec):
    cases = {
        f"{policy}, accumulation {accumulation}": [
            *DEEP, "model.backbone.depth=8", *POLICIES[policy], *ENGINE, f"train.accumulation={accumulation}"
        ]
        for policy in POLICIES for accumulation in (1, 2)
    }  # fmt: skip
    for ranks in run_ranks(2, frozen_shares, str(tiny_spec), cases):
        for name, shares in ranks.items():
            assert 0 < shares["peak"] <= 2 / 8 + 1e-9, name
            assert shares["after"] == 0, name


def test_offloaded_checkpoints_belong_to_policy_block(tiny_spec):
    with pytest.raises(SpecError, match=r"needs engine fairscale and memory.policy block, not fairscale and none"):
        load(tiny_spec, [*ENGINE, "parallel.checkpoint_offload=true"])
    with pytest.raises(SpecError, match="not auto and block"):
        load(tiny_spec, ["memory.policy=block", "parallel.checkpoint_offload=true"])


def through_whole_and_parts(spec_file: str, overrides: list[str]) -> bool:
    """Whether parts put together and cut again are the same parts."""
    from adatad.parallel.processes import start_processes
    from adatad.training.resolve import resolve_run
    from adatad.training.setup import initial_state

    spec = load(spec_file, overrides)
    with start_processes() as processes:
        engine = initial_state(resolve_run(spec, processes), processes).engine
        parts = engine.master_parameters()
        again = engine.shard(processes.gather(engine.gather_full(parts))[0])
        return all(torch.equal(again[name], part) for name, part in parts.items())


def test_whole_tensors_are_cut_as_they_were(tiny_spec):
    assert all(run_ranks(3, through_whole_and_parts, str(tiny_spec), ["train.global_batch=3", *ENGINE]))


def test_a_run_changes_its_engine_and_its_number_of_ranks_midway(tiny_spec):
    assert run_all(tiny_spec, NO_FAULT, "--id", "1", world=1).codes == [0]
    parts = [("fairscale", 2, 2), ("ddp", 1, 4), ("fairscale", 1, 5), ("fairscale", 2, None)]
    for engine, world, stop in parts:
        fault = ("stop", 0, stop - 1) if stop else NO_FAULT
        arguments = ["--set", f"parallel.engine={engine}", "--id", "2", "--resume", "auto"]
        left = run_all(tiny_spec, fault, *arguments, world=world)
        assert left.codes == [EXIT_CODE_RESUME if stop else 0] * world, left.log
    truth, ours = (
        read_checkpoint(run_directory(load(tiny_spec, [f"run.id={n}"])).checkpoints / "step-00000006") for n in (1, 2)
    )
    for one, other in ((ours.parameters, truth.parameters), (ours.ema, truth.ema)):
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            torch.testing.assert_close(one[name], tensor, rtol=0, atol=1e-5)
