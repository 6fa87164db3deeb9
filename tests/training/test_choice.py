"""What `parallel.engine: auto` comes to, and what a run's files keep of it."""

import torch

from adatad.memory.offload import GIB
from adatad.memory.planner import Machine
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.choice import engine_that_fits, resolve_choices
from adatad.training.resolve import annotations_for, resolve_model


class PlanOf:
    """A plan of a size, as the choice looks at it."""

    def __init__(self, gib):
        self.bytes = gib * GIB

    def fits(self, machine):
        return self.bytes <= machine.usable_bytes


def test_ddp_is_taken_where_it_fits_and_fsdp_where_it_does_not():
    machine = Machine(24 * GIB, ranks=2)
    engine, line = engine_that_fits(PlanOf(10), PlanOf(6), machine)
    assert (engine, "10.0 of 20.6 GiB" in line) == ("ddp", True)
    engine, line = engine_that_fits(PlanOf(30), PlanOf(12), machine)
    assert (engine, "30.0 of 20.6 GiB" in line, "fsdp 12.0" in line) == ("fsdp", True, True)
    assert engine_that_fits(PlanOf(30), None, machine)[0] == "ddp"


def test_no_auto_is_left_in_a_resolved_run_and_files_keep_it(tiny_spec):
    spec, cpu = load(tiny_spec, ["memory.policy=auto"]), Processes(0, 1, torch.device("cpu"))
    run, lines = next(resolve_choices(spec, cpu, annotations_for(spec)))
    memory = run.spec.memory
    assert (run.spec.parallel.engine, run.spec.train.precision) == ("ddp", "fp32")
    assert "auto" not in (memory.policy, memory.order, memory.weight_dtype, memory.residual_dtype)
    assert (run.saved_spec.parallel.engine, run.saved_spec.train.precision) == ("auto", "auto")
    assert run.saved_spec.memory.policy == memory.policy
    assert any("memory.policy auto" in line for line in lines)


def test_weights_that_are_sharded_or_streamed_come_block_by_block(tiny_spec):
    cpu = Processes(0, 1, torch.device("cpu"))
    for setting, order in (
        ("parallel.engine=fsdp", "blocks"),
        ("memory.frozen_weights=stream", "blocks"),
        ("train.precision=bf16", "tiles"),
    ):
        spec = load(tiny_spec, ["memory.policy=tile", setting])
        memory = resolve_model(spec, cpu, 3).spec.memory
        assert memory.order == order
        assert memory.weight_dtype == memory.residual_dtype == ("bf16" if "bf16" in setting else "fp32")
