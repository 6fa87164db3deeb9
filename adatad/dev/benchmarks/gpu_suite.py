"""Step time and peak memory of real training steps under every policy, beside the reference's recipe, on one GPU.

Variants are interleaved in one process and compared by medians; one that doesn't fit, or that the time didn't reach, is
reported as such. FLOPs are the planner's, counted on the meta device: executed ones have recomputation in them (and, of
g in tiles of one clip, 5 % that stochastic depth leaves out), useful ones are those of a step that recomputes nothing.
`--report` makes a page of it all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from adatad.dev.benchmarks.gpu_cases import (
    CASES,
    CLASSES,
    ON_HOST,
    REFERENCE,
    TILE,
    GpuCase,
    Variant,
    on_cards,
    spec_of,
)
from adatad.dev.benchmarks.gpu_epoch import epochs
from adatad.dev.benchmarks.gpu_report import Sheet, describe, facts, write_page
from adatad.dev.benchmarks.gpu_step import StepMeasurement, link_rate, matrix_rate, measure
from adatad.dev.benchmarks.results import Result
from adatad.errors import UserError
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Plan, Planner
from adatad.training.host_memory import available_bytes

BUDGET_SECONDS = 480.0
"""After this nothing more is begun."""
EPOCH_SHARE = 0.25
"""Of that, for real epochs, which come last."""
ROUNDS = 3
AUTO, NONE = Variant("auto", "memory.policy=auto"), Variant("none", "memory.policy=none")
OUT_OF_MEMORY, NOT_REACHED = "out of memory", "not reached in time"
COLUMNS = (
    "", "s a step", "of the reference's", "peak GiB", "reserved GiB", "planned GiB", "planned s", "TFLOP/s",
    "of the rate", "useful, of the rate",
)  # fmt: skip


@dataclass
class Suite:
    """What is measured, and on what. rate: FLOP/s of a large product; machine: what the planner is told."""

    device: torch.device
    rate: float
    machine: Machine
    measured: dict[GpuCase, dict[Variant, StepMeasurement]] = field(default_factory=dict)
    _planners: dict[tuple[str, ...], Planner] = field(default_factory=dict)

    def measure(self, cases: tuple[GpuCase, ...], rounds: int, until: float) -> None:
        """A round of all cases, then the next, as long as there is time: every case once before any twice."""
        self.measured = {case: {variant: StepMeasurement() for variant in case.variants} for case in cases}
        for _ in range(rounds):
            for case, variants in self.measured.items():
                for variant, so_far in variants.items():
                    if so_far.fits and time.monotonic() < until:
                        measure(case, variant, self.device, so_far)

    def plan(self, case: GpuCase, variant: Variant) -> Plan:
        """What the planner says of a variant, told the rates that this device and its link have."""
        planner, memory = self.planner(case, variant), spec_of(case, variant).memory
        return planner.plan(planner.resolved(memory), "ddp")

    def planner(self, case: GpuCase, variant: Variant) -> Planner:
        """One for all variants of a case whose weights have one dtype: most of its work is the same for them."""
        spec = spec_of(case, variant)
        key = case.config, case.overrides, spec.memory.weight_dtype
        if key not in self._planners:
            self._planners[key] = Planner(spec, self.machine, torch.bfloat16, CLASSES)
        return self._planners[key]

    def useful_flops(self, case: GpuCase) -> int:
        """FLOPs of a step that keeps every activation."""
        return self.plan(case, NONE).flops


def run(
    cases: tuple[GpuCase, ...] = CASES,
    device: torch.device | None = None,
    rounds: int = ROUNDS,
    seconds: float = BUDGET_SECONDS,
    report: Path | None = None,
    with_epochs: bool = True,
) -> list[Result]:
    """Prints the tables of all figures; returns those that have a bar.

    seconds: to spend, roughly; report: a folder that gets a page gpu-NAME.md. Raises UserError without a GPU.
    """
    if device is None:
        if not torch.cuda.is_available():
            raise UserError("the suite gpu needs a CUDA device, and torch sees none on this machine")
        device = torch.device("cuda", 0)
    deadline = time.monotonic() + seconds
    rate = matrix_rate(device)
    suite = Suite(device, rate, machine_of(device, rate))
    print(f"{describe(device)}; matrix product: {rate / 1e12:.1f} TFLOP/s")
    # The largest case is the first, and the one that a smaller card has no room for.
    cards = on_cards(cases[0], suite.planner(cases[0], AUTO))
    for_epochs = EPOCH_SHARE * seconds if with_epochs else 0.0
    suite.measure((*cases[:2], cards, *cases[2:]), rounds, deadline - for_epochs)
    sheets = [sheet_of(suite, case) for case in suite.measured if case.variants]
    if with_epochs:
        sheets.append(epochs(device, max(for_epochs, deadline - time.monotonic())))
    results = [result for case in suite.measured for result in (*bars(suite, case), *planner_bars(suite, case))]
    for sheet in sheets:
        show(sheet)
    rates = rate, matrix_rate(device)
    print(f"matrix product at the end: {rates[1] / 1e12:.1f} TFLOP/s")
    if report is not None:
        print(f"written: {write_page(report, facts(device, rates, suite.machine), sheets, results)}")
    return results


def machine_of(device: torch.device, rate: float) -> Machine:
    """What this device and its link can do, in the planner's terms."""
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 1000 * GIB
    return Machine(memory, available_bytes(), rate / 1e12, link_rate(device) / 1e9)


def sheet_of(suite: Suite, case: GpuCase) -> Sheet:
    """All figures of a case; what others published last."""
    measured = suite.measured[case]
    useful = suite.useful_flops(case)
    reference = next((m.median for variant, m in measured.items() if variant.name == REFERENCE and m.is_timed), None)
    rows = [row_of(suite, case, variant, useful, reference) for variant in measured]
    for other in case.published:
        rows.append((f"{other.name}, {other.source}", f"{other.seconds:.2f}", "", other.peak, *[""] * 6))
    title = f"{case.name}, one window, {useful / 1e12:.0f} useful TFLOP a step"
    return Sheet(title, COLUMNS, rows)


def row_of(suite: Suite, case: GpuCase, variant: Variant, useful: int, reference: float | None) -> tuple[str, ...]:
    m, plan = suite.measured[case][variant], suite.plan(case, variant)
    planned = f"{plan.bytes / GIB:.2f}", f"{plan.seconds:.3f}"
    if not m.is_timed:
        reason = NOT_REACHED if m.fits else OUT_OF_MEMORY
        return variant.name, reason, "", "", "", *planned, "", "", ""
    seconds = m.median
    ratio = f"{seconds / reference:.2f}" if reference else ""
    executed = plan.flops / seconds
    return (
        variant.name, f"{seconds:.3f}", ratio, f"{m.peak_bytes / GIB:.2f}", f"{m.reserved_bytes / GIB:.2f}", *planned,
        f"{executed / 1e12:.1f}", f"{executed / suite.rate:.0%}", f"{useful / seconds / suite.rate:.0%}",
    )  # fmt: skip


def show(sheet: Sheet) -> None:
    table = Table(*sheet.columns, title=sheet.title, title_justify="left")
    for row in sheet.rows:
        table.add_row(*row)
    Console(width=160).print(table)


def bars(suite: Suite, case: GpuCase) -> list[Result]:
    """Times as ratios to the reference's recipe; for g also the part of the device's rate that isn't used."""
    measured = suite.measured[case]
    times = {variant.name: m.median for variant, m in measured.items() if m.is_timed}
    is_giant, results = case.name.startswith("g "), []
    if REFERENCE in times and TILE in times:
        ratio = times[TILE] / times[REFERENCE]
        results.append(Result(f"{case.name}: {TILE} / {REFERENCE}", ratio, 0.9 if is_giant else 1.0, 1.0))
    kept = [times[name] for name in ("none", "selective") if name in times]
    if REFERENCE in times and kept:
        ratio = min(kept) / times[REFERENCE]
        results.append(Result(f"{case.name}: none or selective / {REFERENCE}", ratio, 0.75, 1.0))
    if ON_HOST in times and TILE in times:
        results.append(Result(f"{case.name}: {ON_HOST} / {TILE}", times[ON_HOST] / times[TILE], 1.1))
    if is_giant and TILE in times:
        flops = next(suite.plan(case, variant).flops for variant in measured if variant.name == TILE)
        used = flops / times[TILE] / suite.rate
        results.append(Result(f"{case.name}: {TILE}, share of the matrix rate left idle", 1 - used, 0.55))
    for variant, m in measured.items():
        if variant.cap_gib is not None and (m.is_timed or not m.fits):
            name = f"{case.name}: auto ran out of {variant.cap_gib:g} GB"
            results.append(Result(name, float(not m.fits), 0.0))
    return results


def planner_bars(suite: Suite, case: GpuCase) -> list[Result]:
    """How far the planner's memory and time are off, on a GPU."""
    results = []
    for variant, m in suite.measured[case].items():
        if suite.device.type != "cuda" or not m.is_timed or variant.averages_all:
            continue
        plan = suite.plan(case, variant)
        name = f"{case.name}: {variant.name}, off by which the planner's"
        results += [
            Result(f"{name} memory is", abs(plan.bytes / m.peak_bytes - 1), 0.08),
            Result(f"{name} time is", abs(plan.seconds / m.median - 1), 0.2),
        ]
    return results
