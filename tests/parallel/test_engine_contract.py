"""The same spec gives the same training on any engine, number of ranks, policy, placement and split of the batch.

The factors are combined so that every pair of their values occurs; `--full` tests the product of engines and policies
as well. One process group of each engine trains all its cases.
"""

import itertools
from typing import NamedTuple

import pytest
from ranks import run_ranks
from steps import ALL_POLICIES, MODES, POLICIES, STEPS, difference, mode, train_cases, worst

pytestmark = pytest.mark.slow
ENGINES = ["ddp", "fsdp", "zero1", "zero2", "zero3", "fairscale"]
FEW_STEPS = 4
HOST = [f"memory.{what}=host" for what in ("saved_inputs", "halos", "frames", "moving_average")]
HOST_OF_DDP = ["memory.optimizer_state=host", "memory.frozen_weights=stream"]
SHARDED = ("fsdp", "zero3", "fairscale")
"""Engines that shard the frozen weights."""


class Case(NamedTuple):
    """A value of each factor."""

    engine: str
    policy: str
    mode: str
    placement: str
    accumulation: int

    @property
    def overrides(self) -> list[str]:
        host = HOST + (HOST_OF_DDP if self.engine == "ddp" else []) if self.placement == "host" else []
        split = [f"train.accumulation={self.accumulation}"] if self.accumulation > 1 else []
        return [*mode(self.mode), *ALL_POLICIES[self.policy], *host, *split]

    @property
    def possible(self) -> bool:
        """Whether the spec allows it: what waits on the host are a wave's tensors, and side takes no ranges."""
        if self.mode == "side" and self.policy == "ranges":
            return False
        return self.placement == "device" or (self.policy == "tile" and self.mode in ("adapter", "full", "plain"))

    def pairs(self) -> set:
        return set(itertools.combinations(enumerate(self), 2))


def all_pairs() -> list[Case]:
    """Few cases in which every pair of values of two factors occurs that can."""
    cases = map(Case._make, itertools.product(ENGINES, ALL_POLICIES, MODES, ["device", "host"], [1, 2]))
    possible = [case for case in cases if case.possible]
    open_pairs = set().union(*(case.pairs() for case in possible))
    chosen = []
    while open_pairs:
        best = max(possible, key=lambda case: len(case.pairs() & open_pairs))
        chosen.append(best)
        open_pairs -= best.pairs()
    return chosen


MORE = [
    # Over micro-batches gradients of hooks wait, or don't, and those of the wave are exchanged at each.
    *(Case(engine, policy, "full", "device", 2) for engine in SHARDED for policy in ("none", "tile")),
    *(Case(engine, "tile", "adapter", "device", 2) for engine in SHARDED),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_as_one_process(engine, rateless_spec, truth, engine_settings):
    cases = {case for case in [*all_pairs(), *MORE] if case.engine == engine}
    named = {"-".join(map(str, case)): case for case in sorted(cases)}
    overrides = {name: [*case.overrides, *engine_settings[engine]] for name, case in named.items()}
    if engine == "fairscale":
        some = [*mode("adapter"), "model.backbone.adapter.blocks=[1,3]", *POLICIES["tile"]]
        overrides["some blocks"] = [*some, *engine_settings[engine]]
        kept = [*mode("adapter"), "parallel.checkpoint_offload=true", *POLICIES["block"]]
        overrides["offloaded checkpoints"] = [*kept, *engine_settings[engine]]
    first, second = run_ranks(2, train_cases, rateless_spec, overrides, FEW_STEPS, timeout_seconds=600)
    for name, outcome in first.items():
        alone = mode(named[name].mode if name in named else "adapter")
        if name == "some blocks":
            alone.append("model.backbone.adapter.blocks=[1,3]")
        expected = truth(alone, FEW_STEPS)
        assert difference(outcome, expected) < 1e-5, (name, worst(outcome, expected))
        assert [v["cost"] for v in outcome.values] == [v["cost"] for v in second[name].values], name


def test_one_rank_of_every_engine_trains_as_one_process(rateless_spec, truth, engine_settings):
    cases = {
        f"{engine} {policy}": [*mode("adapter"), *engine_settings[engine], *POLICIES[policy]]
        for engine in ENGINES[1:]
        for policy in (("block", "tile") if engine in SHARDED else ("none",))
    }
    cases["ddp, accumulated"] = [*mode("adapter"), "train.accumulation=4"]
    for name, outcome in run_ranks(1, train_cases, rateless_spec, cases, FEW_STEPS, timeout_seconds=600)[0].items():
        assert difference(outcome, truth(mode("adapter"), FEW_STEPS)) < 1e-5, name


FAMILIES = {
    # Softmax cancels a part of the keys' bias, whose gradient is rounding noise: see NOISE in steps.py.
    "vjepa2": ["model.backbone.preset=vjepa2-large", "model.backbone.position_grid=null",
               "model.freeze=[backbone.blocks.*.attn.qkv.bias]"],
    # Tubelets of one frame, and clips of eight.
    "internvideo2": ["model.backbone.preset=internvideo2-1b"],
}  # fmt: skip
"""Overrides for each family of backbones but VideoMAE, which the other cases are of."""


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_train_every_family_as_one_process(family, rateless_spec, truth, engine_settings):
    cases = [("fsdp", "tile", "full"), ("zero3", "tile", "full"), ("fairscale", "tile", "full")]
    if family == "vjepa2":
        # What doesn't depend on the family: one will do.
        cases += [("ddp", "tile", "full"), ("fsdp", "none", "adapter"), ("zero2", "block", "adapter")]
    overrides = {
        case: [*mode(case[2]), *FAMILIES[family], *POLICIES[case[1]], *engine_settings[case[0]]] for case in cases
    }
    for case, outcome in run_ranks(2, train_cases, rateless_spec, overrides, 2, timeout_seconds=600)[0].items():
        expected = truth([*mode(case[2]), *FAMILIES[family]], 2)
        assert difference(outcome, expected) < 1e-5, (case, worst(outcome, expected))


def test_four_ranks_train_as_one_process(rateless_spec, truth):
    outcome = run_ranks(4, train_cases, rateless_spec, {"ddp": mode("adapter")}, STEPS)[0]["ddp"]
    expected = truth(mode("adapter"), STEPS)
    assert difference(outcome, expected) < 1e-5, worst(outcome, expected)


@pytest.mark.full
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_of_every_engine_under_every_policy(engine, rateless_spec, truth, engine_settings):
    cases = {
        f"{policy} {name}": [*mode(name), *engine_settings[engine], *ALL_POLICIES[policy]]
        for policy in ALL_POLICIES
        for name in MODES
        if (policy, name) != ("ranges", "side")
    }
    for name, outcome in run_ranks(2, train_cases, rateless_spec, cases, STEPS, timeout_seconds=1800)[0].items():
        expected = truth(mode(name.split()[1]), STEPS)
        assert difference(outcome, expected) < 1e-5, (name, worst(outcome, expected))


def test_every_pair_of_factors_occurs():
    chosen = all_pairs()
    assert len(chosen) <= 36
    assert all(case.possible for case in chosen)
    assert {(case.engine, case.policy) for case in chosen} == set(itertools.product(ENGINES, ALL_POLICIES))
    assert {(case.engine, case.mode) for case in chosen} == set(itertools.product(ENGINES, MODES))
