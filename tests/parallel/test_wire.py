"""What engines hand to collectives, in bytes."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from steps import POLICIES, Run

from adatad.parallel.processes import start_processes
from adatad.parallel.wire import WireCounter

LOGGED = 200
"""Bytes of a step that are counts and losses."""


def count_collectives() -> tuple[dict, dict, int]:
    with start_processes(), WireCounter() as wire:
        dist.all_reduce(torch.ones(10))
        dist.all_gather_into_tensor(torch.ones(20), torch.ones(10))
        dist.reduce_scatter_tensor(torch.ones(10), torch.ones(20))
        dist.broadcast(torch.ones(5, dtype=torch.bfloat16), 0)
    return dict(wire.bytes_of), dict(wire.calls), wire.sent_bytes(2)


def test_collectives_count_with_their_whole_tensors():
    expected = {"all_reduce": 40, "all_gather": 80, "reduce_scatter": 80, "broadcast": 10}
    for bytes_of, calls, sent in run_ranks(2, count_collectives):
        assert bytes_of == expected
        assert calls == dict.fromkeys(expected, 1)
        assert sent == (2 * 40 + 80 + 80 + 10) // 2


def step_on_the_wire(spec_file: str, cases: dict[str, list[str]]) -> dict[str, tuple[dict, dict, dict]]:
    """By kind, bytes and calls of each case's third step; and sizes of its model."""
    results = {}
    with start_processes() as processes:
        for name, overrides in cases.items():
            run = Run(spec_file, overrides, processes)
            # In its second step DDP deals its buckets out anew.
            run.train(2)
            with WireCounter() as wire:
                run.train(1)
            parameters = list(run.parts.model.parameters())
            sizes = {
                "trained": sum(p.numel() * p.element_size() for p in parameters if p.requires_grad),
                "frozen blocks": sum(
                    p.numel() * p.element_size() for p in run.parts.model.backbone.blocks.parameters()
                    if not p.requires_grad
                ),
                "sent": wire.sent_bytes(processes.world),
            }  # fmt: skip
            results[name] = dict(wire.bytes_of), dict(wire.calls), sizes
    return results


@pytest.mark.slow
def test_ddp_moves_trained_gradients_and_fsdp_what_it_gathers(tiny_data, tmp_path):
    from conftest import TINY_SPEC

    spec_file = tmp_path / "tiny.yaml"
    spec_file.write_text(TINY_SPEC.format(data=tiny_data, runs=tmp_path / "runs"))
    common = ["train.global_batch=2", "model.backbone.depth=4"]
    cases = {
        f"{engine} {policy}": [*common, f"parallel.engine={engine}", *POLICIES[policy]]
        for engine in ("ddp", "fsdp") for policy in ("block", "tile")
    }  # fmt: skip
    for results in run_ranks(2, step_on_the_wire, str(spec_file), cases):
        for policy in ("block", "tile"):
            bytes_of, _, sizes = results[f"ddp {policy}"]
            assert sizes["trained"] <= bytes_of["all_reduce"] <= sizes["trained"] + LOGGED
            assert bytes_of.keys() == {"all_reduce"}
            bytes_of, _, sizes = results[f"fsdp {policy}"]
            # Blocks are gathered twice; parts of odd lengths are padded.
            assert bytes_of["all_gather"] >= 2 * sizes["frozen blocks"]
            assert sizes["trained"] <= bytes_of["reduce_scatter"] <= 1.1 * sizes["trained"]
            assert bytes_of["all_reduce"] <= LOGGED


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero1", "zero2"])
def test_zero_moves_trained_gradients_and_trained_parameters(engine, tiny_spec):
    cases = {policy: [f"parallel.engine={engine}", *POLICIES[policy]] for policy in ("block", "tile")}
    for results in run_ranks(2, step_on_the_wire, str(tiny_spec), cases):
        for bytes_of, _, sizes in results.values():
            # Parts are padded to equal lengths.
            assert sizes["trained"] <= bytes_of["all_reduce"] <= 1.1 * sizes["trained"] + LOGGED
            assert sizes["trained"] <= bytes_of["all_gather"] <= 1.1 * sizes["trained"]
            assert bytes_of.keys() == {"all_reduce", "all_gather"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero3", "fairscale"])
def test_engines_that_shard_move_gradients_once_and_nothing_whole_of_them(engine, tiny_spec):
    cases = {"block": [f"parallel.engine={engine}", *POLICIES["block"]]}
    for results in run_ranks(2, step_on_the_wire, str(tiny_spec), cases):
        bytes_of, _, _ = results["block"]
        parts = tiny_trained_bytes(str(tiny_spec))
        assert parts <= bytes_of["reduce_scatter"] <= 1.1 * parts + LOGGED
        assert bytes_of.get("all_reduce", 0) <= 2 * LOGGED


def tiny_trained_bytes(spec_file: str) -> int:
    """Of trained parameters, which sharding engines hide."""
    from adatad.models.detector import build_model
    from adatad.models.trained import trained_names
    from adatad.spec import load

    spec = load(spec_file)
    model = build_model(spec.model, num_classes=6)
    names = set(trained_names(model, spec.model.backbone))
    return sum(4 * parameter.numel() for name, parameter in model.named_parameters() if name in names)
