"""The choice of an engine and a memory plan where a spec leaves them open, and the resolved run that comes of it.

First the engine, then the plan for it (`adatad.training.plan`), then everything else (`adatad.training.resolve`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adatad.data.annotations import Annotations
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Plan
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.checks import memory_checks
from adatad.training.plan import Choice, PlanError, check_fits, choose, least_rank, planner_for
from adatad.training.resolve import ResolvedRun, outputs_of, resolve_run


def resolve_choices(
    spec: Spec, processes: Processes, annotations: Annotations, outputs: Sequence[str] | None = None
) -> Iterator[tuple[ResolvedRun, tuple[str, ...]]]:
    """Yield the run of a spec with lines on what was chosen for it, then, where the planner knows a smaller plan, that.

    Generated one by one: the caller takes the second only if memory runs out under the first. All ranks choose alike.
    Raises PlanError if nothing fits, DeviceError if the GPU can't do what the spec wants.
    """
    outputs = outputs or outputs_of(spec, annotations)
    choice, lines = _choose(spec, processes, len(outputs))
    while choice is not None:
        # The run's files keep the engine as the spec has it: on other GPUs `auto` may be another.
        saved = choice.spec.model_copy(update={"parallel": spec.parallel})
        yield resolve_run(choice.spec, processes, annotations, outputs, saved), (*lines, *choice.lines)
        choice = choice.smaller


def _choose(spec: Spec, processes: Processes, num_classes: int) -> tuple[Choice, tuple[str, ...]]:
    """Return the engine and memory plan, and lines on the engine if it was open."""
    if spec.parallel.engine != "auto":
        return choose(spec, processes, num_classes), ()
    ddp, fsdp = with_engine(spec, "ddp"), with_engine(spec, "fsdp")
    # The detector of features is small, and the planner counts backbones.
    if spec.model.backbone.mode == "features":
        return choose(ddp, processes, num_classes), ()
    # Sharding saves nothing on one process, and the planner counts the memory of GPUs.
    if processes.world == 1 or processes.device.type != "cuda":
        return choose(ddp, processes, num_classes), ()
    if spec.memory.policy == "auto":
        try:
            return choose(ddp, processes, num_classes), ("parallel.engine auto: ddp, since a plan fits with it",)
        except PlanError as error:
            reason = str(error).splitlines()[0]
        # Outside of the except clause: if fsdp doesn't fit either, its own error is the one to be shown.
        return choose(fsdp, processes, num_classes), (f"parallel.engine auto: fsdp, since with ddp {reason}",)
    # A collective: all ranks decide by the smallest GPU among them, and so alike.
    machine = least_rank(processes)
    # Some memory settings work with ddp alone.
    plans = [
        None if memory_checks(one) else planner_for(one, processes, machine, num_classes).own() for one in (ddp, fsdp)
    ]
    engine, line = engine_that_fits(*plans, machine)
    return choose(with_engine(spec, engine), processes, num_classes), (line,)


def engine_that_fits(ddp: Plan | None, fsdp: Plan | None, machine: Machine) -> tuple[str, str]:
    """Return ddp where weights, gradients and optimizer state fit beside the spec's own memory plan, fsdp where they
    don't; and a line that says why. None: a plan that the planner can't count, or that the engine can't run."""
    if ddp is None or fsdp is None:
        return "ddp", "parallel.engine auto: ddp; the planner can't count this memory.policy"
    need, room = f"{ddp.bytes / GIB:.1f}", f"{machine.usable_bytes / GIB:.1f} GiB"
    if ddp.fits(machine):
        return "ddp", f"parallel.engine auto: ddp: a rank takes {need} of {room} by the planner's estimate"
    line = f"parallel.engine auto: fsdp: with ddp a rank would take {need} of {room}, with fsdp {fsdp.bytes / GIB:.1f}"
    return "fsdp", f"{line}, by the planner's estimate"


def check_some_engine_fits(spec: Spec, gpu_memory_gib: float, ranks: int, num_classes: int) -> None:
    """Raise PlanError if the spec, as it stands, would run out of GPUs of that size, under any engine that
    `parallel.engine: auto` may become on them."""
    try:
        check_fits(spec, gpu_memory_gib, ranks, num_classes)
    except PlanError:
        sharded = with_engine(spec, "fsdp")
        if spec.parallel.engine != "auto" or ranks == 1 or memory_checks(sharded):
            raise
        check_fits(sharded, gpu_memory_gib, ranks, num_classes)


def with_engine(spec: Spec, engine: str) -> Spec:
    """Return the spec with another engine."""
    return spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"engine": engine})})
