"""Step time and peak memory of real training steps under every policy, beside the reference's recipe, on one GPU.

Variants are interleaved in one process and compared by medians; one that doesn't fit is reported as such. Executed
FLOPs are counted while a step runs, recomputation included; useful ones are those of a step that recomputes nothing.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from adatad.benchmarks.cpu import peak_resident, resident_floor
from adatad.benchmarks.table import Result
from adatad.errors import UserError
from adatad.memory.flops import FlopCount
from adatad.memory.meta import gpu_like_meta
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Planner
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import Spec, load
from adatad.training.loop import train_step
from adatad.training.metered import META, meta_parts, random_batch
from adatad.training.setup import assemble

CLASSES = 20
BUDGET_SECONDS = 420.0
"""After this no further round is started."""


class Case(NamedTuple):
    """A model and a window. tile: its setting of policy tile."""

    name: str
    config: str
    overrides: str
    tile: str


class Variant(NamedTuple):
    """One way to run a case. averages_all: a moving average of all weights beside the step, frozen ones too."""

    name: str
    overrides: str
    averages_all: bool = False


@dataclass
class Measured:
    """Of one case and variant; `seconds` of each step. fits: False once it ran out of memory."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    executed_flops: int = 0
    fits: bool = True


CASES = (
    Case("L 768 x 160", "l_768x160_adapter", "", "memory.tile_clips=3 memory.segment_blocks=4"),
    Case("L 1536 x 224", "l_768x160_adapter", "data.window.frames_per_position=2 data.size_pixels=224",
         "memory.tile_clips=2 memory.segment_blocks=4"),
    Case("g 768 x 160", "g_768x160_adapter", "", "memory.tile_clips=2 memory.segment_blocks=5"),
    Case("g 1536 x 224", "g_1536x224_adapter", "", "memory.tile_clips=1 memory.segment_blocks=5"),
)  # fmt: skip
REFERENCE = "reference's recipe"
ON_HOST = "tile, hold, on the host"
"""Rows, halos and frames."""


def variants(case: Case) -> tuple[Variant, ...]:
    """The reference checkpoints blocks, with fp32 weights and residuals under autocast; it averages all weights."""
    return (
        Variant(REFERENCE, "memory.policy=block memory.weight_dtype=fp32", averages_all=True),
        Variant("none", "memory.policy=none"),
        Variant("selective", "memory.policy=selective"),
        Variant("block", "memory.policy=block"),
        Variant("tile, hold", f"memory.policy=tile {case.tile}"),
        Variant("tile, rebuild", f"memory.policy=tile {case.tile} memory.recompute=rebuild"),
        Variant(ON_HOST, f"memory.policy=tile {case.tile} memory.rows=host memory.halos=host memory.frames=host"),
    )


def run(cases: tuple[Case, ...] = CASES, device: torch.device | None = None, rounds: int = 3) -> list[Result]:
    """Under eight minutes on a data centre's GPU. Prints the table of all figures; returns those that have a bar."""
    if device is None:
        if not torch.cuda.is_available():
            raise UserError("the suite gpu needs a CUDA device, and torch sees none on this machine")
        device = torch.device("cuda")
    started, results = time.monotonic(), []
    rate = matrix_rate(device)
    print(f"{describe(device)}; matrix product: {rate / 1e12:.1f} TFLOP/s")
    for case in cases:
        measured = {variant: Measured() for variant in variants(case)}
        for number in range(rounds):
            if number and time.monotonic() - started > BUDGET_SECONDS:
                break
            for variant, so_far in measured.items():
                if so_far.fits:
                    measure(case, variant, device, so_far)
        useful = useful_flops(case)
        show(case, measured, useful, rate)
        results += bars(case, {variant.name: m for variant, m in measured.items()}, rate)
        if device.type == "cuda":
            results += planner_bars(case, measured, rate)
    print(f"matrix product at the end: {matrix_rate(device) / 1e12:.1f} TFLOP/s")
    return results


def spec_of(case: Case, variant: Variant) -> Spec:
    overrides = f"{case.overrides} {variant.overrides} train.global_batch=1".split()
    return load(f"configs/thumos/{case.config}.yaml", overrides, check_files=False)


def measure(case: Case, variant: Variant, device: torch.device, into: Measured) -> None:
    """Build, warm up, and time two steps; everything is freed afterwards."""
    try:
        with peak_memory(device) as peak:
            step = build_step(spec_of(case, variant), variant, device)
            with FlopCount() as flops:
                step()
            for _ in range(2):
                into.seconds.append(timed(step, device))
        into.executed_flops = flops.total
        into.peak_bytes = max(into.peak_bytes, peak())
    except torch.cuda.OutOfMemoryError:
        into.fits = False
    finally:
        step = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def build_step(spec: Spec, variant: Variant, device: torch.device) -> Callable[[], None]:
    """The trainer's own step on random frames."""
    torch.manual_seed(0)
    with device:
        model = build_model(spec.model, CLASSES)
    parts = assemble(spec, Processes(0, 1, device), model, CLASSES, steps_per_epoch=100)
    averages = [p.detach().float().clone() for p in parts.model.parameters()] if variant.averages_all else []
    batch = random_batch(spec, windows=1, num_classes=CLASSES, device=torch.device("cpu"))
    if device.type == "cuda":
        # As the loader gives it.
        batch = batch._replace(frames=batch.frames.pin_memory())
    numbers = iter(range(1, 100))

    def step() -> None:
        train_step(parts, [batch], next(numbers))
        update_averages(averages, parts.model)

    return step


@torch.no_grad()
def update_averages(averages: list[torch.Tensor], model: nn.Module, decay: float = 0.999) -> None:
    if averages:
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, list(model.parameters()), alpha=1 - decay)


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds until all of a step's work is done."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives a function for the peak bytes since entering: of the allocator, or resident memory on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
    else:
        floor = resident_floor()
        yield lambda: peak_resident() - floor


def link_rate(device: torch.device) -> float:
    """Bytes a second from pinned host memory to the device."""
    here = torch.empty(2**28, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(here, device=device)
    seconds = [timed(lambda: there.copy_(here, non_blocking=True), device) for _ in range(6)][1:]
    return here.nbytes / statistics.median(seconds)


def useful_flops(case: Case) -> int:
    """FLOPs of a step that keeps every activation, counted on the meta device."""
    spec = spec_of(case, Variant("none", "memory.policy=none"))
    with gpu_like_meta(), FlopCount() as flops:
        parts = meta_parts(spec, CLASSES)
        train_step(parts, [random_batch(spec, 1, CLASSES, META)], step=1)
    return flops.total


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 product of square matrices: what this device really does, and the calibration of all times."""
    size = 8192 if device.type == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = [timed(lambda: a @ a, device) for _ in range(12)][2:]
    return 2 * size**3 / statistics.median(seconds)


def describe(device: torch.device) -> str:
    if device.type != "cuda":
        return f"CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def show(case: Case, measured: dict[Variant, Measured], useful: int, rate: float) -> None:
    columns = ("", "s a step", "of reference", "peak GiB", "TFLOP/s", "of the rate", "useful, of the rate")
    table = Table(*columns, title=f"{case.name}, one window, {useful / 1e12:.0f} useful TFLOP a step",
                  title_justify="left")  # fmt: skip
    times = {variant.name: statistics.median(m.seconds) for variant, m in measured.items() if m.fits}
    for variant, m in measured.items():
        if not m.fits:
            table.add_row(variant.name, "out of memory")
            continue
        seconds = times[variant.name]
        ratio = f"{seconds / times[REFERENCE]:.2f}" if REFERENCE in times else ""
        executed = m.executed_flops / seconds
        table.add_row(variant.name, f"{seconds:.3f}", ratio, f"{m.peak_bytes / 2**30:.2f}", f"{executed / 1e12:.1f}",
                      f"{executed / rate:.0%}", f"{useful / seconds / rate:.0%}")  # fmt: skip
    Console(width=120).print(table)


def bars(case: Case, measured: dict[str, Measured], rate: float) -> list[Result]:
    """Times as ratios to the reference's recipe; for g also the part of the device's rate that isn't used."""
    times = {name: statistics.median(m.seconds) for name, m in measured.items() if m.fits}
    results = []
    if REFERENCE in times and "tile, hold" in times:
        ratio = times["tile, hold"] / times[REFERENCE]
        results.append(Result(f"{case.name}: tile, hold / reference's recipe", ratio, 1.0, 1.0))
    kept = [times[name] for name in ("none", "selective") if name in times]
    if REFERENCE in times and kept:
        ratio = min(kept) / times[REFERENCE]
        results.append(Result(f"{case.name}: none or selective / reference's recipe", ratio, 0.75, 1.0))
    if ON_HOST in times and "tile, hold" in times:
        results.append(Result(f"{case.name}: {ON_HOST} / tile, hold", times[ON_HOST] / times["tile, hold"], 1.1))
    if case.name.startswith("g ") and "tile, hold" in times:
        used = measured["tile, hold"].executed_flops / times["tile, hold"] / rate
        results.append(Result(f"{case.name}: tile, hold, share of the matrix rate left idle", 1 - used, 0.55))
    return results


def planner_bars(case: Case, measured: dict[Variant, Measured], rate: float) -> list[Result]:
    """How far the planner's memory and time are off, told the rates that this device and its link have."""
    machine = Machine(1000 * GIB, tflops=rate / 1e12, pcie_gbps=link_rate(torch.device("cuda")) / 1e9)
    results = []
    for variant, m in measured.items():
        if not m.fits or variant.averages_all:
            continue
        plan = Planner(spec_of(case, variant), machine, torch.bfloat16, CLASSES).own()
        memory, seconds = plan.bytes / m.peak_bytes, plan.seconds / statistics.median(m.seconds)
        name = f"{case.name}: {variant.name}, off by which the planner's"
        results += [
            Result(f"{name} memory is", abs(memory - 1), 0.08),
            Result(f"{name} time is", abs(seconds - 1), 0.2),
        ]
    return results
