"""Plans for a spec: on the machine at hand when training starts, and counted by the meter to compare."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace

import torch

from adatad.errors import UserError
from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.meter import Peak
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Plan, Planner
from adatad.memory.suggestions import shortfall, suggestions
from adatad.parallel.devices import check_card
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.training.host_memory import available_bytes
from adatad.training.metered import step_memory


class PlanError(UserError):
    """A spec that fits this machine under no plan; the message says by how much, and what would make it fit."""


@dataclass(frozen=True)
class Choice:
    """A spec with what the planner took for `memory.policy: auto`; lines: what, and why. smaller: the same with the
    next smaller plan, if there is one."""

    spec: Spec
    lines: tuple[str, ...] = ()
    smaller: Choice | None = None


def this_rank(processes: Processes, empty: bool = True) -> Machine:
    """Return what this rank has: a GPU's free memory (or all of it, if it isn't `empty` now). On a CPU the available
    RAM is device and host."""
    # Ranks of one machine share its memory; without a launcher's variable all may be on this one.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes.world))
    host = available_bytes() / local
    # `shared`: what waits on the host takes from the same memory as what is computed with.
    if processes.device.type != "cuda":
        return Machine(host, None, ranks=processes.world, shared=True)
    # After a failed step the allocator still holds the run's own memory, which isn't free but can be used again.
    free, total = torch.cuda.mem_get_info(processes.device)
    return Machine(free if empty else total, host, ranks=processes.world)


def least_rank(processes: Processes) -> Machine:
    """Return what every rank has at least. All ranks call it."""
    own = this_rank(processes)
    sizes = processes.gather((own.memory_bytes, own.host_bytes))
    # The least of all ranks: a plan that one rank can't keep to would end all of them.
    host = None if own.host_bytes is None else min(host for _, host in sizes)
    return replace(own, memory_bytes=min(memory for memory, _ in sizes), host_bytes=host)


def choose(spec: Spec, processes: Processes, num_classes: int) -> Choice:
    """Resolve `memory.policy: auto`; any other spec stays as it is. All ranks choose alike. Raises PlanError,
    DeviceError if the GPU can't do what the spec wants."""
    # Before the planner: its estimates are for a dtype that the GPU may only emulate.
    check_card(spec, processes.device)
    if spec.model.backbone.mode == "features":
        # No backbone, so nothing to plan.
        return Choice(spec.model_copy(update={"memory": spec.memory.model_copy(update={"policy": "none"})}))
    if spec.memory.policy != "auto":
        return Choice(spec)
    planner = planner_for(spec, processes, least_rank(processes), num_classes)
    plans = planner.plans()
    taken = planner.best(plans)
    if taken is None:
        raise PlanError(explain_misfit(planner, plans))
    # Kept for a step that runs out of memory after all: it is an estimate, and others may use the GPU.
    smaller = planner.smaller(plans, taken)
    then = None if smaller is None else Choice(with_plan(spec, smaller), (say(planner, plans, smaller),))
    return Choice(with_plan(spec, taken), (say(planner, plans, taken),), then)


def planner_for(spec: Spec, processes: Processes, machine: Machine, num_classes: int) -> Planner:
    """Return the planner of a spec on a machine."""
    return Planner(spec, machine, autocast_dtype(spec.train.precision, processes.device), num_classes)


def check_fits(spec: Spec, gpu_memory_gib: float, ranks: int, num_classes: int) -> None:
    """Raise PlanError if a rank of the spec, as it stands, would run out of a GPU of that size by the formulas."""
    machine = Machine(gpu_memory_gib * GIB, ranks=ranks)
    planner = Planner(spec, machine, autocast_dtype(spec.train.precision, torch.device("meta")), num_classes)
    # The spec's own plan first: only where that doesn't fit are all plans made, which takes seconds.
    own = planner.own()
    if own is not None and own.fits(machine):
        return
    plans = planner.plans()
    best = planner.best(plans)
    if best is None:
        raise PlanError(explain_misfit(planner, plans))
    if own is not None:
        raise PlanError(
            f"{own.describe()} takes {own.bytes / GIB:.1f} GiB, more than the {machine.usable_bytes / GIB:.1f} "
            f"that are usable of {gpu_memory_gib:g}; {best.describe()} takes {best.bytes / GIB:.1f}: "
            f"{shlex.join(['--set', *best.settings(spec)])}"
        )


def with_plan(spec: Spec, plan: Plan) -> Spec:
    """Return the spec with a plan's settings in it."""
    return spec.model_copy(update={"memory": plan.memory})


def say(planner: Planner, plans: list[Plan], taken: Plan) -> str:
    """Return one line: what was taken, what it takes, and what the fastest would need."""
    room = f"{taken.bytes / GIB:.1f} of {planner.machine.usable_bytes / GIB:.1f} GiB"
    host = f" and {taken.host_bytes / GIB:.1f} on the host" if taken.host_bytes else ""
    line = f"memory.policy auto: {taken.describe()}: {room}{host} by the planner's estimate"
    # What there would be on a larger GPU: it says whether more memory would save time.
    fastest = min(plans, key=lambda plan: plan.order)
    if fastest.memory.policy != taken.memory.policy:
        line += f"; {fastest.describe()} would need {fastest.bytes / GIB:.1f}"
    return line


def explain_misfit(planner: Planner, plans: list[Plan]) -> str:
    """Return lines that say by how much a spec doesn't fit, and what would make it fit."""
    lines = [f"nothing fits: {shortfall(planner, plans)}"]
    for found in suggestions(planner, plans):
        lines.append(f"  it would fit with {found.what}: {shlex.join(['--set', *found.settings])}")
    return "\n".join(lines)


def count(spec: Spec, plan: Plan, ranks: int = 1, num_classes: int = 20) -> Peak:
    """Return the meter's count of one process's step under a plan: without what an engine exchanges with other
    ranks."""
    train = spec.train
    # One process alone: buffers of an engine's exchange aren't counted.
    parallel = spec.parallel.model_copy(update={"engine": "ddp"})
    planned = spec.model_copy(update={"memory": plan.memory, "parallel": parallel})
    groups = max(1, ranks // spec.parallel.clip)
    return step_memory(planned, num_classes, max(1, train.global_batch // (train.accumulation * groups)))
