"""Step time and peak memory of real training steps on one GPU, under every policy and by the reference's recipe.

Variants are interleaved in one process and compared by medians; one that doesn't fit, or that the time didn't reach, is
reported as such. FLOPs are the planner's, counted on the meta device: executed ones have recomputation in them (and, of
g in tiles of one clip, 5 % that stochastic depth leaves out), useful ones are those of a step that recomputes nothing.
`--report` writes a page for docs/benchmarks: everybody with another card can add theirs.
"""

from __future__ import annotations

import datetime
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

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
from adatad.dev.benchmarks.gpu_measures import StepMeasurement, epochs, link_rate, matrix_rate, measure
from adatad.dev.benchmarks.tables import ROOT, Result, Sheet, show_sheet
from adatad.errors import UserError
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Plan, Planner
from adatad.training.host_memory import available_bytes

BUDGET_SECONDS = 480.0
"""Time after which no measurement is begun."""
EPOCH_SHARE = 0.25
"""Share of the time for real epochs, which come last."""
# Steps vary by clocks and heat over minutes: rounds spread each variant's over the whole time.
ROUNDS = 3
AUTO, NONE = Variant("auto", "memory.policy=auto"), Variant("none", "memory.policy=none")
UNKNOWN = "unknown"
OUT_OF_MEMORY, NOT_REACHED = "out of memory", "not reached in time"
COLUMNS = (
    "", "s a step", "of the reference's", "peak GiB", "reserved GiB", "planned GiB", "planned s", "TFLOP/s",
    "of the rate", "useful, of the rate",
)  # fmt: skip


@dataclass
class Suite:
    """All measurements on a device. rate: FLOP/s of a large matrix product; machine: the device for the planner."""

    device: torch.device
    rate: float
    machine: Machine
    measured: dict[GpuCase, dict[Variant, StepMeasurement]] = field(default_factory=dict)
    _planners: dict[tuple[str, ...], Planner] = field(default_factory=dict)

    def measure(self, cases: tuple[GpuCase, ...], rounds: int, until: float) -> None:
        """Measure all cases in rounds, as long as there is time: every case once before any twice."""
        self.measured = {case: {variant: StepMeasurement() for variant in case.variants} for case in cases}
        for _ in range(rounds):
            for case, variants in self.measured.items():
                for variant, so_far in variants.items():
                    # What ran out of memory once does so again.
                    if so_far.fits and time.monotonic() < until:
                        measure(case, variant, self.device, so_far)

    def plan(self, case: GpuCase, variant: Variant) -> Plan:
        """Plan a variant, with the measured rates of this device and its link."""
        planner, memory = self.planner(case, variant), spec_of(case, variant).memory
        return planner.plan(planner.resolved(memory), "ddp")

    def planner(self, case: GpuCase, variant: Variant) -> Planner:
        """Return the planner of a variant, shared by those of the case with the same dtype of weights: it caches
        costs."""
        spec = spec_of(case, variant)
        # What costs depend on; policies and placements are combined from the same ones.
        key = case.config, case.overrides, spec.memory.weight_dtype
        if key not in self._planners:
            self._planners[key] = Planner(spec, self.machine, torch.bfloat16, CLASSES)
        return self._planners[key]

    def useful_flops(self, case: GpuCase) -> int:
        """Return the FLOPs of a step that recomputes nothing."""
        return self.plan(case, NONE).flops


def run(
    cases: tuple[GpuCase, ...] = CASES,
    device: torch.device | None = None,
    rounds: int = ROUNDS,
    seconds: float = BUDGET_SECONDS,
    report: Path | None = None,
    with_epochs: bool = True,
) -> list[Result]:
    """Print the tables of all figures; return those that have a bar.

    seconds: to spend, roughly; report: a folder that gets a page gpu-NAME.md. Raises UserError without a GPU.
    """
    if device is None:
        if not torch.cuda.is_available():
            raise UserError("the suite gpu needs a CUDA device, and torch sees none on this machine")
        device = torch.device("cuda", 0)
    deadline = time.monotonic() + seconds
    # First, on a device that nothing has warmed up or filled; once more at the end, to see whether it throttled.
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
        show_sheet(sheet)
    rates = rate, matrix_rate(device)
    print(f"matrix product at the end: {rates[1] / 1e12:.1f} TFLOP/s")
    if report is not None:
        print(f"written: {write_page(report, facts(device, rates, suite.machine), sheets, results)}")
    return results


def machine_of(device: torch.device, rate: float) -> Machine:
    """Return this device and its link in the planner's terms."""
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 1000 * GIB
    return Machine(memory, available_bytes(), rate / 1e12, link_rate(device) / 1e9)


def sheet_of(suite: Suite, case: GpuCase) -> Sheet:
    """Return the table of a case; steps published by others come last."""
    measured = suite.measured[case]
    useful = suite.useful_flops(case)
    reference = next((m.median for variant, m in measured.items() if variant.name == REFERENCE and m.is_timed), None)
    rows = [row_of(suite, case, variant, useful, reference) for variant in measured]
    for other in case.published:
        rows.append((f"{other.name}, {other.source}", f"{other.seconds:.2f}", "", other.peak, *[""] * 6))
    title = f"{case.name}, one window, {useful / 1e12:.0f} useful TFLOP a step"
    return Sheet(title, COLUMNS, rows)


def row_of(suite: Suite, case: GpuCase, variant: Variant, useful: int, reference: float | None) -> tuple[str, ...]:
    """Return the cells of a variant's row."""
    m, plan = suite.measured[case][variant], suite.plan(case, variant)
    # Planned figures stand also beside variants that didn't fit: they say why.
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


def bars(suite: Suite, case: GpuCase) -> list[Result]:
    """Return times as ratios to the reference's recipe; for g also the share of the device's rate that isn't used."""
    measured = suite.measured[case]
    times = {variant.name: m.median for variant, m in measured.items() if m.is_timed}
    # g's bars are stricter: long windows of a large model are what tiles are for.
    is_giant, results = case.name.startswith("g "), []
    if REFERENCE in times and TILE in times:
        ratio = times[TILE] / times[REFERENCE]
        results.append(Result(f"{case.name}: {TILE} / {REFERENCE}", ratio, 0.9 if is_giant else 1.0, 1.0))
    # The faster of the two that fit: what `auto` would take on a card with room.
    kept = [times[name] for name in ("none", "selective") if name in times]
    if REFERENCE in times and kept:
        ratio = min(kept) / times[REFERENCE]
        results.append(Result(f"{case.name}: none or selective / {REFERENCE}", ratio, 0.75, 1.0))
    if ON_HOST in times and TILE in times:
        results.append(Result(f"{case.name}: {ON_HOST} / {TILE}", times[ON_HOST] / times[TILE], 1.1))
    if is_giant and TILE in times:
        flops = next(suite.plan(case, variant).flops for variant in measured if variant.name == TILE)
        # Executed FLOPs, recomputation included: how busy the card is, not how useful.
        used = flops / times[TILE] / suite.rate
        results.append(Result(f"{case.name}: {TILE}, share of the matrix rate left idle", 1 - used, 0.55))
    for variant, m in measured.items():
        if variant.cap_gib is not None and (m.is_timed or not m.fits):
            name = f"{case.name}: auto ran out of {variant.cap_gib:g} GB"
            results.append(Result(name, float(not m.fits), 0.0))
    return results


def planner_bars(suite: Suite, case: GpuCase) -> list[Result]:
    """Return the relative errors of the planner's memory and time, on a GPU."""
    results = []
    for variant, m in suite.measured[case].items():
        # The planner doesn't know of an average of all weights, which no run of ours keeps.
        if suite.device.type != "cuda" or not m.is_timed or variant.averages_all:
            continue
        plan = suite.plan(case, variant)
        name = f"{case.name}: {variant.name}, off by which the planner's"
        results += [
            Result(f"{name} memory is", abs(plan.bytes / m.peak_bytes - 1), 0.08),
            Result(f"{name} time is", abs(plan.seconds / m.median - 1), 0.2),
        ]
    return results


def describe(device: torch.device) -> str:
    """Return the device and versions in one line."""
    if device.type != "cuda":
        return f"CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def facts(device: torch.device, rates: tuple[float, float], machine: Machine) -> dict[str, str]:
    """Return the facts that figures depend on. rates: FLOP/s of a large product before and after the suite."""
    has_gpu = device.type == "cuda"
    # nvidia-smi may number GPUs otherwise than torch, but all have one driver.
    drivers = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    changed = " and changes that aren't committed" if output_of("git", "status", "--porcelain") else ""
    return {
        "device": torch.cuda.get_device_name(device) if has_gpu else "CPU",
        "memory": f"{machine.memory_bytes / GIB:.1f} GiB" if has_gpu else UNKNOWN,
        "driver": (drivers[0].strip() if drivers else UNKNOWN) if has_gpu else "none",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "commit": (output_of("git", "rev-parse", "--short", "HEAD") or UNKNOWN) + changed,
        "date": datetime.date.today().isoformat(),
        "16-bit matrix product": " before, ".join(f"{rate / 1e12:.1f} TFLOP/s" for rate in rates) + " after",
        "host to device": f"{machine.pcie_gbps:.1f} GB/s",
    }


def output_of(*command: str) -> str:
    """Return a program's output; "" if there is no such program, or if it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write_page(folder: Path, known: dict[str, str], sheets: list[Sheet], results: list[Result]) -> Path:
    """Write gpu-NAME.md, replacing an older page of such a card; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{slug(known['device'])}.md"
    path.write_text(page(known, sheets, results), encoding="utf-8")
    return path


def slug(name: str) -> str:
    """Return a name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def page(known: dict[str, str], sheets: list[Sheet], results: list[Result]) -> str:
    """Return the page in Markdown."""
    met = sum(result.passed for result in results)
    parts = [
        f"# Training steps on {known['device']}",
        # As it is typed in the checkout.
        f"```bash\n{shlex.join(['adatad', *sys.argv[1:]])}\n```",
        as_table(("", ""), [(name, value) for name, value in known.items()]),
        "Steps of `adatad train`'s own code on random frames, medians; variants are interleaved. Peak: bytes that "
        "tensors took at most; reserved: that the allocator held for them. Planned: by the formulas that "
        "`memory.policy: auto` goes by, told the rates above. The rate is that of the matrix product; useful FLOPs are "
        "those of a step that recomputes nothing.",
    ]
    for sheet in sheets:
        parts += [f"## {sheet.title}", as_table(sheet.columns, sheet.rows)]
    rows = [(r.name, f"{r.value:.2f}", "" if r.bar is None else f"{r.bar:.2f}", "yes" if r.passed else "**no**")
            for r in results]  # fmt: skip
    parts += [f"## Bars: {met} of {len(results)} met", as_table(("", "measured", "at most", "met"), rows)]
    return "\n\n".join(parts) + "\n"


def as_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
