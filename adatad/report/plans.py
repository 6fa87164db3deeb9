"""Text that `adatad plan` prints: the best plan in five lines, or a table of all; and what would make a spec fit."""

from __future__ import annotations

import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from adatad.data.annotations import read_annotations
from adatad.data.balance import windows_of_epoch
from adatad.data.windows import evaluation_windows
from adatad.errors import UserError
from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.cards import CARDS, UNKNOWN, Card
from adatad.memory.offload import GIB
from adatad.memory.planner import EFFICIENCY, Machine, Plan, Planner
from adatad.memory.suggestions import shortfall, suggestions
from adatad.spec import Spec
from adatad.spec.quirks import Quirks
from adatad.spec.sizes import end_epoch, steps_per_epoch

# Nothing is computed for a plan: also on a machine whose GPU is busy, or without one.
META = torch.device("meta")
LIFE_SIGN_SECONDS = 5.0
"""Seconds between lines on stderr that say that planning goes on."""
MAX_COUNTED_LAUNCHES = 20_000
"""Launches of a step that is counted without being asked: that takes two seconds."""
# A terminal's usual width: what is pasted from it must not be broken at another place.
LINE_COLUMNS = 80


@dataclass(frozen=True)
class Target:
    """The machine that a plan is made for. card: by what name it goes, and whether its rates are known."""

    machine: Machine
    title: str
    assumed: bool

    @property
    def sizes(self) -> str:
        """Usable memory and the card, in words."""
        return f"{self.machine.usable_bytes / GIB:.1f} GiB usable of {self.title}"


def target_of(
    gpu: str | None = None,
    gpu_memory_gib: float | None = None,
    host_memory_gib: float | None = None,
    gpus: int = 1,
    tflops: float | None = None,
    pcie_gbps: float | None = None,
) -> Target:
    """Make out the machine: a card by its name, or this machine's; every figure that is given takes the place of the
    card's. host_memory_gib: of all ranks. Raises UserError where no size of memory is known."""
    # A size that is given means another machine's card: rates of the one here would be wrong for it.
    card, here = CARDS.get(gpu or ""), torch.cuda.is_available()
    if gpu and card is None:
        raise UserError(f"--gpu {gpu}: expected one of {', '.join(CARDS)}")
    if card is None and here and gpu_memory_gib is None:
        card = _card_here()
    if card is None and gpu_memory_gib is None:
        raise UserError("no GPU is here: name one with --gpu (such as rtx4090), or give --gpu-memory (such as 24GB)")
    # Without a card or its rate the hours rest on a guess, which the line then says.
    assumed = card is None and tflops is None
    card = card or UNKNOWN
    memory = gpu_memory_gib or card.memory_gib
    host = None if host_memory_gib is None else host_memory_gib * GIB / gpus
    machine = Machine(
        memory * GIB, host, tflops or card.tflops, pcie_gbps or card.pcie_gbps, gpus,
        launch_seconds=card.launch_seconds,
    )  # fmt: skip
    return Target(machine, f"{card.title} ({memory:g} GB)" if card is UNKNOWN else card.title, assumed)


def _card_here() -> Card:
    """Return this machine's first GPU; rates are those of the card of that name, if it is known."""
    properties = torch.cuda.get_device_properties(0)
    plain = properties.name.lower().replace(" ", "")
    # Names of drivers are longer ("NVIDIA A100-SXM4-80GB"), and a card comes with several sizes of memory.
    known = [card for name, card in CARDS.items() if name.partition("-")[0] in plain]
    memory = properties.total_memory / GIB
    rates = min(known, key=lambda card: abs(card.memory_gib - memory), default=UNKNOWN)
    return rates._replace(title=properties.name, memory_gib=memory)


def write_plans(spec: Spec, target: Target, num_classes: int = 20, table: bool = False, count: bool = False) -> bool:
    """Print the best plan, or the table of all, and return whether one fits. count: count the printed plan's memory for
    real, however long that takes. Raises UserError where the GPUs can't share the batch, and without a
    backbone."""
    if spec.model.backbone.mode == "features":
        raise UserError(
            "model.backbone.mode features: there is no backbone whose memory could be planned; it is trained "
            "with memory.policy none"
        )
    gpus = target.machine.ranks
    check_shares(spec, gpus)
    # Those that `parallel.engine: auto` may become; on one GPU sharding saves nothing.
    engines = ("ddp", "fsdp") if gpus > 1 else ("ddp",)
    planner = Planner(spec, target.machine, autocast_dtype(spec.train.precision, META), num_classes, engines)
    with life_signs("planning"):
        plans = planner.plans()
        best = planner.best(plans)
        if table:
            print_table(planner, plans, best)
        if best is None:
            print(f"nothing fits: {shortfall(planner, plans)}")
            for found in suggestions(planner, plans):
                host = f" and {found.plan.host_bytes / GIB:.1f} on the host" if found.plan.host_bytes else ""
                print(f"it would fit with {found.what}: {found.plan.bytes / GIB:.2f} GiB{host}")
                print(textwrap.indent(flags(found.settings), "  "))
            return False
        counted = None
        # With several ranks the count leaves out what the engine exchanges, so the estimate is nearer.
        if gpus == 1 and (count or best.launches <= MAX_COUNTED_LAUNCHES):
            # Takes seconds to load, with all of training.
            from adatad.training.plan import count as count_step

            counted = count_step(spec, best, gpus, num_classes).bytes
        for line in lines_of(planner, best, target, counted):
            print(line)
    return True


def check_shares(spec: Spec, gpus: int) -> None:
    """Raise UserError if a global batch can't be shared out to so many GPUs."""
    train, clip = spec.train, spec.parallel.clip
    if gpus % clip:
        raise UserError(f"parallel.clip {clip} doesn't divide {gpus} GPUs (--gpus)")
    if train.global_batch * clip % (gpus * train.accumulation):
        shared = f" / parallel.clip {clip}" if clip > 1 else ""
        raise UserError(
            f"train.global_batch {train.global_batch} can't be divided by {gpus} GPUs{shared} x "
            f"train.accumulation {train.accumulation}"
        )


def lines_of(planner: Planner, plan: Plan, target: Target, counted: int | None) -> Iterator[str]:
    """Yield the five lines. counted: bytes on the device, if they were counted."""
    machine = target.machine
    engine = f", {plan.engine}" if machine.ranks > 1 else ""
    yield _wrapped(f"plan    {plan.describe()}{engine}")
    size, how = (plan.bytes, "estimated within 5 %") if counted is None else (counted, "counted")
    yield _wrapped(f"device  {size / GIB:.2f} GiB ({how}) of {target.sizes}")
    room = "" if machine.host_bytes is None else f" of {machine.host_bytes / GIB:.1f}"
    yield f"host    {plan.host_bytes / GIB:.2f} GiB{room} for each rank" if plan.host_bytes else "host    nothing"
    yield _wrapped(f"time    {hours_of(planner, plan, target)}")
    yield flags(plan.settings(planner.spec))


def hours_of(planner: Planner, plan: Plan, target: Target) -> str:
    """Estimate a run: its steps and evaluations, without reading the videos."""
    spec, machine = planner.spec, target.machine
    rate = f"at {EFFICIENCY:g} of {machine.tflops:g} TFLOP/s{', assumed (--gpu)' if target.assumed else ''}"
    step = f"{plan.seconds:.3g} s a step {rate}"
    try:
        found = read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic)
    except (UserError, OSError):
        return f"{step}; without the annotations no hours"
    # Evaluations at every n-th epoch from the first one allowed, and always at the end: as the trainer does.
    end = end_epoch(spec)
    steps = end * steps_per_epoch(spec, windows_of_epoch(spec.train.class_balance, found.train))
    train = spec.train
    rounds = sum(
        epoch >= train.evaluate_from_epoch and ((epoch + 1) % train.evaluate_every_epochs == 0 or epoch + 1 == end)
        for epoch in range(end)
    )
    windows = sum(len(evaluation_windows(video, spec.data.window)) for video in found.validation)
    # Each rank, or group of ranks that share windows, has its own part of the windows.
    evaluation = rounds * windows * planner.forward_seconds() / max(1, machine.ranks // spec.parallel.clip)
    hours = (steps * plan.seconds + evaluation) / 3600
    return f"{hours:.3g} h: {steps:,} x {plan.seconds:.3g} s + {rounds} evaluations, {rate}"


def flags(settings: list[str]) -> str:
    """Return `--set` and settings to paste into a shell, on lines that go on where one would be too long."""
    lines = ["--set"]
    for word in map(shlex.quote, settings):
        # 3: the space before the word, and " \\" behind it.
        if len(lines[-1]) + len(word) + 3 > LINE_COLUMNS and lines[-1] != "--set":
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, LINE_COLUMNS, subsequent_indent=" " * 8)


@contextmanager
def life_signs(what: str) -> Iterator[None]:
    """Say on stderr every few seconds that work goes on."""
    done, began = threading.Event(), time.monotonic()

    def say() -> None:
        """Print how long it has taken, every few seconds until it is done."""
        while not done.wait(LIFE_SIGN_SECONDS):
            print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    # A daemon: an interruption of planning must not wait for the next sign of life.
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# The table


def print_table(planner: Planner, plans: list[Plan], best: Plan | None) -> None:
    """Print the fastest plan that fits, or else the smallest, of every engine, policy and placement."""
    own, machine = planner.own(), planner.machine
    table = Table(title=f"{planner.spec.name}: GiB of one rank at its fullest", title_justify="left")
    table.add_column("")
    table.add_column("plan", overflow="fold")
    for name in ("device", "host", "TFLOP", "s a step"):
        table.add_column(name, justify="right")
    for plan in shown(planner, plans, best, own):
        marks = "+" * plan.fits(machine) + "*" * (plan == own)
        engine = f", {plan.engine}" if machine.ranks > 1 else ""
        figures = f"{plan.bytes / GIB:.2f}", f"{plan.host_bytes / GIB:.2f}", f"{plan.flops / 1e12:.4g}"
        style = "green" if plan == best else None if plan.fits(machine) else "dim"
        table.add_row(marks, plan.describe() + engine, *figures, f"{plan.seconds:.3g}", style=style)
    Console(markup=False, emoji=False).print(table)
    print("+ fits, * is the spec's own. Times are estimates.")


def shown(planner: Planner, plans: list[Plan], best: Plan | None, own: Plan | None) -> list[Plan]:
    """Return the plans of the table, in their order."""
    groups: dict[tuple, list[Plan]] = {}
    for plan in plans:
        policy = plan.memory.policy if isinstance(plan.memory.policy, str) else "ranges"
        # Tiles and segments are left out of the key: the table has the best of them.
        groups.setdefault((plan.engine, policy, plan.memory.recompute, plan.away), []).append(plan)
    # A group without a plan that fits is there too, with its smallest: it shows how much is missing.
    chosen = [planner.best(group) or planner.smallest(group) for group in groups.values()]
    chosen = [plan for plan in chosen if not any(_beats(other, plan) for other in chosen)]
    chosen += [plan for plan in (best, own) if plan is not None and plan not in chosen]
    return sorted(chosen, key=lambda plan: plan.order)


def _beats(one: Plan, other: Plan) -> bool:
    """Return whether a plan of the same engine and policy is better in every way."""
    alike = one != other and one.engine == other.engine and one.memory.policy == other.memory.policy
    pairs = ((one.bytes, other.bytes), (one.host_bytes, other.host_bytes), (one.seconds, other.seconds))
    return alike and all(mine <= theirs for mine, theirs in pairs)
