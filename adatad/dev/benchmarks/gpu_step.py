"""Real training steps on one device, built, warmed up, timed, and freed again; what the device itself can do."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from adatad.dev.benchmarks.cpu_suite import peak_resident, resident_floor
from adatad.dev.benchmarks.gpu_cases import CLASSES, GpuCase, Variant, spec_of
from adatad.memory.offload import GIB, HostMemoryError
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.training.metered import random_batch
from adatad.training.out_of_memory import is_out_of_memory
from adatad.training.resolve import resolve_model
from adatad.training.setup import build_train_state
from adatad.training.step import train_step

TIMED_STEPS = 2
CONTEXT_BYTES = GIB
"""Of a card, for what isn't the allocator's."""


@dataclass
class StepMeasurement:
    """Of one case and variant; `seconds` of each step; bytes that were allocated, and that the allocator held, at
    most. fits: False once it ran out of memory."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    reserved_bytes: int = 0
    fits: bool = True

    @property
    def is_timed(self) -> bool:
        return self.fits and bool(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class StepPeak(NamedTuple):
    allocated: int
    reserved: int


def measure(case: GpuCase, variant: Variant, device: torch.device, into: StepMeasurement) -> None:
    """Build, warm up, and time steps; everything is freed afterwards. A variant that memory runs out for, in whatever
    way that is said, is noted as such.

    It is built anew in each round: on the device that takes a second or two, as long as its state would take to and
    from the host, where there may be no room for it.
    """
    step, seconds = None, []
    try:
        with capped(variant.cap_gib, device), peak_memory(device) as peak:
            step = build_step(spec_of(case, variant), variant, device)
            step()
            seconds = [timed(step, device) for _ in range(TIMED_STEPS)]
            found = peak()
        into.seconds += seconds
        into.peak_bytes = max(into.peak_bytes, found.allocated)
        into.reserved_bytes = max(into.reserved_bytes, found.reserved)
    except (RuntimeError, MemoryError, HostMemoryError) as error:
        if not (isinstance(error, (MemoryError, HostMemoryError)) or is_out_of_memory(error)):
            raise
        into.fits = False
    finally:
        step = None
        release(device)


def release(device: torch.device) -> None:
    """Give back what nothing refers to, pinned memory too."""
    gc.collect()
    if device.type == "cuda":
        # Copies that a step began may still be on their way.
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()


def build_step(spec: Spec, variant: Variant, device: torch.device) -> Callable[[], None]:
    """The trainer's own step on random frames."""
    torch.manual_seed(0)
    with device:
        model = build_model(spec.model, CLASSES)
    processes = Processes(0, 1, device)
    parts = build_train_state(resolve_model(spec, processes, CLASSES), processes, model)
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
def capped(size_gib: float | None, device: torch.device) -> Iterator[None]:
    """Let the allocator have no more than it would on a card of that size, context aside."""
    if size_gib is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (size_gib * GIB - CONTEXT_BYTES) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], StepPeak]]:
    """Gives a function for the peak bytes since entering: of the allocator, or resident memory on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: StepPeak(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    else:
        floor = resident_floor()
        yield lambda: StepPeak(*[peak_resident() - floor] * 2)


def link_rate(device: torch.device) -> float:
    """Bytes a second from pinned host memory to the device."""
    here = torch.empty(2**28 if device.type == "cuda" else 2**20, dtype=torch.uint8)
    here = here.pin_memory() if device.type == "cuda" else here
    there = torch.empty_like(here, device=device)
    seconds = [timed(lambda: there.copy_(here, non_blocking=True), device) for _ in range(6)][1:]
    return here.nbytes / statistics.median(seconds)


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 product of square matrices: what this device really does, and the calibration of all times."""
    size = 8192 if device.type == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = [timed(lambda: a @ a, device) for _ in range(12)][2:]
    return 2 * size**3 / statistics.median(seconds)
