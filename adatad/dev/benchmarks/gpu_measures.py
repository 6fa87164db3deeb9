"""Measurements on a GPU: real training steps on random frames, epochs of `adatad train`, and rates of the device."""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from adatad.data.prepare.demo import make_demo
from adatad.dev.benchmarks.cpu_suite import peak_resident, resident_floor
from adatad.dev.benchmarks.gpu_cases import CLASSES, GpuCase, Variant, spec_of
from adatad.dev.benchmarks.tables import ROOT, Sheet
from adatad.memory.offload import GIB, HostMemoryError
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.training.metered import random_batch
from adatad.training.out_of_memory import is_out_of_memory
from adatad.training.resolve import resolve_model
from adatad.training.setup import build_train_state
from adatad.training.step import train_step

# Few, since they are repeated in every round.
TIMED_STEPS = 2
CONTEXT_BYTES = GIB
"""Bytes of a card that the allocator doesn't have, such as CUDA's context."""

SPEC = "configs/demo/tia.yaml"
VIDEOS = 40, 2
"""Videos of training and of validation."""
MODEL = (
    "model.backbone.preset=base", "model.backbone.weights=random", "data.size_pixels=160", "memory.policy=tile",
    "data.augment={crop_short_side_pixels: 182, flip: 0.5, rand_augment: true, "
    "color_jitter: {brightness: 0.5, contrast: 0.5, saturation: 0.5, hue: 0.1}}",
    "data.workers=4",
)  # fmt: skip
"""VideoMAE-B on 128 frames of 160 pixels, with all of THUMOS-14's augmentation."""
SCHEDULE = ("schedule.epochs=1", "schedule.warmup_epochs=0", "train.evaluate_untrained=false")
EPOCH_COLUMNS = ("", "s a step", "waiting for data", "peak GiB", "steps")
# Of an epoch: processes start, files are indexed, kernels are chosen.
WARM_UP_STEPS = 3


@dataclass
class StepMeasurement:
    """Steps of one case and variant: seconds of each; most bytes allocated, and held by the allocator. fits: False once
    it ran out of memory."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    reserved_bytes: int = 0
    fits: bool = True

    @property
    def is_timed(self) -> bool:
        """True if steps were timed and none ran out of memory."""
        return self.fits and bool(self.seconds)

    @property
    def median(self) -> float:
        """Median of the steps' seconds."""
        return statistics.median(self.seconds)


class StepPeak(NamedTuple):
    """Most bytes allocated, and most bytes that the allocator held."""

    allocated: int
    reserved: int


def measure(case: GpuCase, variant: Variant, device: torch.device, into: StepMeasurement) -> None:
    """Build, warm up and time steps into a measurement; free everything. A variant that runs out of memory, by whatever
    error, is noted as such.
    """
    # Built anew in each round: that takes a second or two, as long as moving its state to the host and back would.
    step, seconds = None, []
    try:
        with capped(variant.cap_gib, device), peak_memory(device) as peak:
            step = build_step(spec_of(case, variant), variant, device)
            step()  # makes the optimizer's state and chooses kernels
            seconds = [timed(step, device) for _ in range(TIMED_STEPS)]
            found = peak()
        # Only now: a variant that fails half-way leaves no figures.
        into.seconds += seconds
        into.peak_bytes = max(into.peak_bytes, found.allocated)
        into.reserved_bytes = max(into.reserved_bytes, found.reserved)
    except (RuntimeError, MemoryError, HostMemoryError) as error:
        if not (isinstance(error, (MemoryError, HostMemoryError)) or is_out_of_memory(error)):
            raise
        into.fits = False
    finally:
        step = None  # the closure holds model and optimizer
        release(device)


def release(device: torch.device) -> None:
    """Free unreferenced memory of the device, and pinned memory."""
    gc.collect()
    if device.type == "cuda":
        # Copies that a step began may still run.
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        # Private, and the only way to free cached pinned memory.
        torch._C._host_emptyCache()


def build_step(spec: Spec, variant: Variant, device: torch.device) -> Callable[[], None]:
    """Return the trainer's own step as a function, on random frames."""
    torch.manual_seed(0)
    with device:
        model = build_model(spec.model, CLASSES)
    processes = Processes(0, 1, device)
    parts = build_train_state(resolve_model(spec, processes, CLASSES), processes, model)
    averages = [p.detach().float().clone() for p in parts.model.parameters()] if variant.averages_all else []
    batch = random_batch(spec, windows=1, num_classes=CLASSES, device=torch.device("cpu"))
    if device.type == "cuda":
        # In pinned memory, as from the loader.
        batch = batch._replace(frames=batch.frames.pin_memory())
    numbers = iter(range(1, 100))  # more steps than are ever timed; each draws its own dropout

    def step() -> None:
        """Train on the batch once, with dropout of its own."""
        train_step(parts, [batch], next(numbers))
        update_averages(averages, parts.model)

    return step


@torch.no_grad()
def update_averages(averages: list[torch.Tensor], model: nn.Module, decay: float = 0.999) -> None:
    """Update a moving average of all parameters, as the reference does."""
    if averages:
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, list(model.parameters()), alpha=1 - decay)


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Return the seconds until all of a step's work is done."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def capped(size_gib: float | None, device: torch.device) -> Iterator[None]:
    """Limit the allocator to what it would have on a card of that size."""
    if size_gib is None or device.type != "cuda":
        yield
        return
    # The fraction is of the device's total memory.
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (size_gib * GIB - CONTEXT_BYTES) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], StepPeak]]:
    """Yield a function that returns the peak bytes since entering: of the allocator, or resident memory on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: StepPeak(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    else:
        floor = resident_floor()
        yield lambda: StepPeak(*[peak_resident() - floor] * 2)


def link_rate(device: torch.device) -> float:
    """Measure the bytes a second from pinned host memory to the device."""
    # 256 MiB: large enough to reach the link's rate.
    here = torch.empty(2**28 if device.type == "cuda" else 2**20, dtype=torch.uint8)
    here = here.pin_memory() if device.type == "cuda" else here
    there = torch.empty_like(here, device=device)
    seconds = [timed(lambda: there.copy_(here, non_blocking=True), device) for _ in range(6)][1:]
    return here.nbytes / statistics.median(seconds)


def matrix_rate(device: torch.device) -> float:
    """Measure the FLOP/s of a bf16 product of square matrices, the calibration of all times."""
    # 8192: large enough that a data centre's card reaches its rate.
    size = 8192 if device.type == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = [timed(lambda: a @ a, device) for _ in range(12)][2:]
    return 2 * size**3 / statistics.median(seconds)


def epochs(
    device: torch.device, seconds: float, model: tuple[str, ...] = MODEL, videos: tuple[int, int] = VIDEOS
) -> Sheet:
    """Measure an epoch on one process, and on two if there are two GPUs, with one global batch. seconds: limit."""
    counts = [1, 2] if device.type == "cuda" and torch.cuda.device_count() > 1 else [1]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder, "demo"), *videos)
        for count in counts:
            name = "one process" if count == 1 else f"{count} ranks of ddp"
            rows.append((name, *epoch(Path(folder), count, seconds / len(counts), model)))
    return Sheet(
        "A real epoch: loader, augmentation and training, global batch 2, the built-in data", EPOCH_COLUMNS, rows
    )


def epoch(folder: Path, processes: int, seconds: float, model: tuple[str, ...]) -> tuple[str, str, str, str]:
    """Run an epoch; return the cells of its row. If it failed, the first cell says why."""
    run = folder / f"runs{processes}"
    settings = (
        f"data.annotations={folder}/demo/annotations.json", f"data.videos={folder}/demo/videos", f"run.root={run}",
        *SCHEDULE, *model,
    )  # fmt: skip
    command = [sys.executable, "tools/train.py", SPEC, "--set", *settings]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *start, *command[1:], "parallel.engine=ddp"]
    code, output = run_for(command, seconds)
    if code is None:
        return f"not done in {seconds:.0f} s", "", "", ""
    found = list(run.rglob("metrics.jsonl"))
    if code or not found:
        said = [line for line in output.splitlines() if line.strip()]
        return f"failed: {said[-1][:100] if said else code}", "", "", ""
    return figures([json.loads(line) for line in found[0].read_text().splitlines()])


def run_for(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a command; return exit code and output. After the time limit it is killed with its ranks; the code is
    None."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output = process.communicate(timeout=seconds)[0]
            return process.returncode, output
        except subprocess.TimeoutExpired:
            # The whole session: torchrun's ranks would outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]


def figures(lines: list[dict]) -> tuple[str, str, str, str]:
    """Return the cells of a row from the lines of metrics.jsonl, without the first steps, which start loader processes
    and compile kernels."""
    steps = [line for line in lines if line["kind"] == "train"]
    settled = steps[WARM_UP_STEPS:] or steps
    seconds = statistics.median(line["step_seconds"] for line in settled)
    waiting = sum(line["data_wait_seconds"] for line in settled) / sum(line["step_seconds"] for line in settled)
    peak = max(line["memory_bytes"] or 0 for line in steps) / GIB
    return f"{seconds:.3f}", f"{waiting:.0%}", f"{peak:.2f}", str(len(steps))
