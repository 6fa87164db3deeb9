"""The table of plans that `adatad plan` prints."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table

from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Plan, Planner
from adatad.memory.remedies import remedies, shortfall
from adatad.spec import Spec

GROUPS = {
    "weights": ("frozen weights", "trained weights", "buffers", "adapter casts", "weight casts", "gathered"),
    "AdamW, average": ("optimizer state", "moving average", "update"),
    "frames": ("frames", "frames ahead"),
    "kept": ("saved activations", "saved inputs", "halos", "saved gradients", "offload buffers"),
    "held": ("held graphs", "window"),
    "in work": ("tile",),
    "detector": ("detector", "features", "gradients"),
}
"""Columns of the table, and the categories that each adds up."""
META = torch.device("meta")


def print_plans(spec: Spec, args: argparse.Namespace) -> int:
    """Prints the table, the fastest that fits, and its settings; returns the exit code. args: of `adatad plan`."""
    train, clip = spec.train, spec.parallel.clip
    if args.gpus % clip:
        print(f"parallel.clip {clip} doesn't divide {args.gpus} GPUs (--gpus)", file=sys.stderr)
        return 2
    if train.global_batch * clip % (args.gpus * train.accumulation):
        shared = f" / parallel.clip {clip}" if clip > 1 else ""
        print(f"train.global_batch {train.global_batch} can't be divided by {args.gpus} GPUs{shared} x "
              f"train.accumulation {train.accumulation}", file=sys.stderr)  # fmt: skip
        return 2
    host = None if args.host_memory is None else args.host_memory * GIB / args.gpus
    machine = Machine(args.gpu_memory * GIB, host, args.tflops, args.pcie, args.gpus)
    engines = ("ddp", "fsdp") if args.gpus > 1 else ("ddp",)
    planner = Planner(spec, machine, autocast_dtype(spec.train.precision, META), args.classes, engines)
    plans = planner.plans()
    best, own = planner.best(plans), planner.own()
    console = Console(width=max(Console().width, 150), markup=False, emoji=False)
    console.print(table_of(planner, plans, best, own))
    print("GiB of one rank at the fullest moment. s a step: estimated, not measured. + fits, * is the spec's own.")
    if best is None:
        say_misfit(planner, plans)
    else:
        print(f"fastest that fits: {best.describe()}{engine_of(best, planner)}: {best.bytes / GIB:.2f} of "
              f"{machine.usable_bytes / GIB:.2f} GiB, about {best.seconds:.1f} s a step")  # fmt: skip
        print(f"--set {' '.join(best.settings(spec))}")
    if args.count:
        print_counts(spec, planner, {"fastest": best, "own": own}, args.classes)
    return 0 if best else 2


def table_of(planner: Planner, plans: list[Plan], best: Plan | None, own: Plan | None) -> Table:
    machine = planner.machine
    title = f"{planner.spec.name}: {machine.usable_bytes / GIB:.2f} GiB usable on each of {machine.ranks} GPU"
    table = Table(title=f"{title}{'s' * (machine.ranks > 1)}, windows of a micro-batch: "
                  f"{planner.units(planner.spec.train.accumulation).windows}", title_justify="left")  # fmt: skip
    table.add_column("")
    table.add_column("plan", overflow="fold")
    for name in ("GiB", *GROUPS, "host GiB", "TFLOP", "s a step"):
        table.add_column(name, justify="right")
    for plan in shown(planner, plans, best, own):
        marks = "+" * plan.fits(machine) + "*" * (plan == own)
        sizes = [sum(plan.categories.get(name, 0) for name in names) for names in GROUPS.values()]
        figures = [f"{size / GIB:.2f}" for size in (plan.bytes, *sizes, plan.host_bytes)]
        style = "green" if plan == best else None if plan.fits(machine) else "dim"
        row = [marks, plan.describe() + engine_of(plan, planner), *figures, f"{plan.flops / 1e12:.4g}"]
        table.add_row(*row, f"{plan.seconds:.3g}", style=style)
    return table


def engine_of(plan: Plan, planner: Planner) -> str:
    return f", {plan.engine}" if planner.machine.ranks > 1 else ""


def shown(planner: Planner, plans: list[Plan], best: Plan | None, own: Plan | None) -> list[Plan]:
    """Of every engine, policy and placement the fastest that fits, or else the smallest; in their order."""
    groups: dict[tuple, list[Plan]] = {}
    for plan in plans:
        key = plan.engine, plan.memory.policy, plan.memory.recompute, plan.away
        groups.setdefault(key, []).append(plan)
    chosen = [planner.best(group) or planner.smallest(group) for group in groups.values()]
    chosen = [plan for plan in chosen if not any(_beats(other, plan) for other in chosen)]
    chosen += [plan for plan in (best, own) if plan is not None]
    return sorted(_distinct(chosen), key=lambda plan: plan.order)


def _beats(one: Plan, other: Plan) -> bool:
    """In every way, of the same engine and policy."""
    alike = one != other and one.engine == other.engine and one.memory.policy == other.memory.policy
    pairs = ((one.bytes, other.bytes), (one.host_bytes, other.host_bytes), (one.seconds, other.seconds))
    return alike and all(mine <= theirs for mine, theirs in pairs)


def _distinct(plans: Iterable[Plan]) -> list[Plan]:
    distinct: list[Plan] = []
    for plan in plans:
        if plan not in distinct:
            distinct.append(plan)
    return distinct


def say_misfit(planner: Planner, plans: list[Plan]) -> None:
    print(f"nothing fits: {shortfall(planner, plans)}")
    for cure in remedies(planner, plans):
        host = f" and {cure.plan.host_bytes / GIB:.1f} on the host" if cure.plan.host_bytes else ""
        print(
            f"it would fit with {cure.what}: {cure.plan.bytes / GIB:.2f} GiB{host}\n  --set {' '.join(cure.settings)}"
        )


def print_counts(spec: Spec, planner: Planner, plans: dict[str, Plan | None], classes: int) -> None:
    """What the meter counts of a whole step beside the formulas, for one process."""
    # Takes seconds to load, with all of training.
    from adatad.training.plan import count

    alone = Planner(spec, Machine(planner.machine.memory_bytes), planner.arithmetic, classes)
    ranks = planner.machine.ranks
    for name, plan in plans.items():
        if plan is None:
            continue
        started = time.monotonic()
        train = spec.train.model_copy(update={"global_batch": spec.train.global_batch * spec.parallel.clip // ranks})
        one = Planner(spec.model_copy(update={"train": train}), alone.machine, planner.arithmetic, classes)
        formula = one.plan(plan.memory, "ddp", plan.accumulation).bytes
        counted = count(spec, plan, ranks, classes)
        print(f"{name}: one process by formulas {formula / GIB:.3f} GiB, counted {counted.bytes / GIB:.3f} GiB "
              f"({formula / counted.bytes - 1:+.2%}) in {time.monotonic() - started:.0f} s")  # fmt: skip
