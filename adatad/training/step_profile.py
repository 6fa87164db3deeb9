"""The profile of a few training steps: where their time goes, as a table, a trace and a snapshot of a GPU's memory.

The run's own loop trains them, and ends when they are done. Warm-up steps come first: plain ones, which say how long a
step takes without a profiler, then one under the profiler, whose own start is slow.
"""

from __future__ import annotations

import gzip
import platform
import resource
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from adatad.errors import UserError
from adatad.files import FileError, atomic_write, check_output, reason, write_json
from adatad.memory.scopes import show_ranges
from adatad.parallel.base import TORCH_WORKS_WITH, require_names
from adatad.spec.sizes import clips_of_window
from adatad.training.part_times import PREFIX, STEP, part_times
from adatad.training.resolve import ResolvedRun
from adatad.training.run_directory import size
from adatad.training.setup import TrainState
from adatad.training.throughput import Throughput, throughput_of

PROFILE = "profile.json"
PLAIN_STEPS = 3
"""Warm-up steps without the profiler; the first makes the optimizer's state and isn't timed."""
WARMUP_STEPS = PLAIN_STEPS + 1
TAIL_BYTES = 64
MIN_FREE_BYTES = 64 << 20
"""Room that the files of a profile may take on the disk, and so must have before training begins."""
MAX_ALLOCATIONS = 1_000_000
"""Allocations of which the snapshot keeps the history: the last ones, a kilobyte or more each."""
SNAPSHOT_NAMES = ("_record_memory_history", "_dump_snapshot")
"""Private names of torch.cuda.memory: the allocator's history has no public ones."""


class StepProfiler:
    """Profiles `steps` steps of a training, which calls `begin_step` and `end_step` around each of its steps."""

    def __init__(self, steps: int, state: TrainState, directory: Path):
        """Check that everything can be written. All ranks call it; raises FileError, or UserError if torch lacks a name
        that it needs."""
        self.steps, self.state, self.directory = steps, state, directory
        processes = state.processes
        self.on_device = processes.device.type == "cuda"
        if self.on_device:
            require_names("torch", TORCH_WORKS_WITH, "torch.cuda.memory", torch.cuda.memory, SNAPSHOT_NAMES)
        processes.on_main(lambda: check_files(directory, processes.world, self.on_device))
        self.seconds: list[float] = []
        """Of each step, warm-up included."""
        self.waited: list[float] = []
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_device else [])]
        self._profile = profile(
            activities=activities, schedule=schedule(wait=PLAIN_STEPS, warmup=1, active=steps, repeat=1),
            profile_memory=True,
        )  # fmt: skip
        self._modules: ModuleRanges | None = None
        self._range: AbstractContextManager | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether all steps have been profiled."""
        return len(self.seconds) == WARMUP_STEPS + self.steps

    def begin_step(self) -> None:
        """Begin a step, before its data is waited for."""
        done = len(self.seconds)
        if done == 0:
            self._profile.start()
        if done == PLAIN_STEPS:
            show_ranges(open_range)
            self._modules = ModuleRanges(self.state.model)
        if done == WARMUP_STEPS and self.on_device:
            # Stacks of C++ would take longer than the step.
            torch.cuda.memory._record_memory_history(stacks="python", max_entries=MAX_ALLOCATIONS)
        if done >= PLAIN_STEPS:
            self._range = open_range(STEP)
            self._range.__enter__()

    def end_step(self, step_seconds: float, waited_seconds: float) -> None:
        """End a step. step_seconds: since it began, `waited_seconds` of them for data."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        self.seconds.append(step_seconds)
        self.waited.append(waited_seconds)
        self._profile.step()
        if self.is_complete:
            self._show_nothing()
            self._profile.stop()

    def close(self) -> None:
        """Stop profiling, wherever the training has ended."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self.seconds and not self.is_complete:
            self._profile.stop()
        self._show_nothing()
        if self.on_device:
            torch.cuda.memory._record_memory_history(enabled=None)

    def _show_nothing(self) -> None:
        show_ranges(None)
        if self._modules is not None:
            self._modules.remove()
            self._modules = None

    def write(self, throughput: Throughput | None = None) -> dict[str, Any]:
        """Write this rank's files, and on the first rank profile.json; return its content. All ranks call it.

        throughput: the run's, if it is known; None: it is counted here. Raises FileError, on all ranks alike.
        """
        processes, failed, content = self.state.processes, None, {}
        by_rank = processes.gather(mean(self.seconds[WARMUP_STEPS:]))
        try:
            self._write_own()
            if processes.is_main:
                content = self._content(throughput or throughput_of(self.state.run, processes), by_rank)
                write_json(self.directory / PROFILE, content)
        except FileError as error:
            failed = str(error)
        # Ranks must not wait for one that has left with an error.
        if lines := [line for line in processes.gather(failed) if line]:
            raise FileError(lines[0])
        return content

    def _write_own(self) -> None:
        rank = self.state.processes.rank
        if self.on_device:
            with atomic_write(self.directory / snapshot_name(rank)) as unfinished:
                torch.cuda.memory._dump_snapshot(str(unfinished))
            torch.cuda.memory._record_memory_history(enabled=None)
        write_trace(self._profile, self.directory / trace_name(rank))

    def _content(self, throughput: Throughput | None, by_rank: list[float]) -> dict[str, Any]:
        """Return what profile.json holds: of this rank, but for `profiled_step_seconds_by_rank`."""
        run, processes = self.state.run, self.state.processes
        # The fastest: what delays a plain step, such as a loader that has only just begun, isn't a part of it.
        spec, plain = run.spec, min(self.seconds[1:PLAIN_STEPS])
        frames = clips_of_window(spec.data, spec.model.backbone.clip_frames) * spec.model.backbone.clip_frames
        parts = part_times(self._profile.events(), self.steps, self.on_device)
        whole = 1000 * by_rank[processes.rank]
        rates = {} if throughput is None else {
            "executed_flops": throughput.flops.executed, "useful_flops": throughput.flops.useful,
            **throughput.values(plain), "peak_tflops": throughput.peak_tflops,
        }  # fmt: skip
        return {
            "device": torch.cuda.get_device_name(processes.device) if self.on_device else f"CPU ({cpu_name()})",
            "times_of": "device" if self.on_device else "cpu",
            "torch": torch.__version__,
            "ranks": processes.world,
            "rank": processes.rank,
            "warmup_steps": WARMUP_STEPS,
            "steps": self.steps,
            "step_seconds": plain,
            "profiled_step_seconds": by_rank[processes.rank],
            "profiled_step_seconds_by_rank": by_rank,
            "data_wait_seconds": mean(self.waited[WARMUP_STEPS:]),
            "frames_per_second": spec.train.global_batch * frames / plain,
            **rates,
            "parts": [{**row._asdict(), "share": row.milliseconds / whole} for row in parts],
            "trace": trace_name(processes.rank),
            "memory_snapshot": snapshot_name(processes.rank) if self.on_device else None,
        }


def open_range(name: str) -> AbstractContextManager:
    """Return a range of the profile, open while the context lasts."""
    return record_function(PREFIX + name)


class ModuleRanges:
    """Ranges for the parts of a model that are called as modules, by hooks, until `remove`."""

    def __init__(self, model: nn.Module):
        self._open: list[AbstractContextManager] = []
        self._handles = []
        for module, name in named_parts(model):
            # By default each call binds the name that the loop has last.
            before = lambda *_, name=name: self._enter(name)  # noqa: E731
            self._handles.append(module.register_forward_pre_hook(before))
            # Also after an error: checkpointing ends a recomputation by one, as soon as it has what it wants.
            self._handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    def _enter(self, name: str) -> None:
        self._open.append(open_range(name))
        self._open[-1].__enter__()

    def _leave(self) -> None:
        self._open.pop().__exit__(None, None, None)

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()


def named_parts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the modules of a detector's model that are parts of a step, with the parts' names."""
    backbone, parts = model.backbone, [(model.detector, "detector")]
    if backbone is None:
        return parts
    adapters = [block.adapter for block in backbone.blocks if block.adapter is not None]
    adapters += getattr(backbone, "side_adapters", [])
    return [
        *parts, (backbone, "backbone"), *((block, "blocks") for block in backbone.blocks),
        *((adapter, "adapters") for adapter in adapters),
    ]  # fmt: skip


def check_steps(run: ResolvedRun, steps: int, done: int = 0) -> None:
    """Raise UserError if a run that has done so many steps has too few left to profile `steps` of them."""
    if run.spec.data.features is not None:
        raise UserError("--profile: looks at the steps of a backbone, and data.features has none")
    left, needed = run.end_epoch * run.steps_per_epoch - done, steps + WARMUP_STEPS
    if left < needed:
        raise UserError(
            f"--profile {steps}: takes {needed} steps, {WARMUP_STEPS} of them to warm up; {max(0, left)} are left of "
            "the run: profile fewer, or train longer with --set schedule.epochs=N"
        )


def check_files(directory: Path, ranks: int, snapshots: bool) -> None:
    """Check that the files of a profile can be written, before any step is trained. Raises FileError."""
    names = [trace_name(rank) for rank in range(ranks)]
    names += [snapshot_name(rank) for rank in range(ranks)] if snapshots else []
    for name in (PROFILE, *names):
        check_output(directory / name)
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise FileError(f"{directory}: can't be looked at: {reason(error)}; run.root names another place") from error
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    room = free if most == resource.RLIM_INFINITY else min(free, most)
    if room < MIN_FREE_BYTES:
        raise FileError(
            f"{directory}: a file may have {size(room)} there; those of --profile need up to {size(MIN_FREE_BYTES)}: "
            "make room, or put runs elsewhere (run.root)"
        )


def write_trace(recorded: profile, path: Path) -> None:
    """Write a profile for Perfetto or chrome://tracing, packed. Raises FileError."""
    with atomic_write(path) as unfinished:
        plain = unfinished.with_suffix(".json")
        try:
            recorded.export_chrome_trace(str(plain))
            # torch says nothing of a disk that was full.
            if not is_whole(plain):
                raise FileError(f"{path}: torch wrote no whole trace; make room on the disk, and profile again")
            with plain.open("rb") as source, gzip.open(unfinished, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)
        finally:
            plain.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Return whether a JSON file of an object has been written to its end."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().rstrip().endswith(b"}")


def trace_name(rank: int) -> str:
    """Return the name of a rank's trace."""
    return f"profile_trace_rank{rank}.json.gz"


def snapshot_name(rank: int) -> str:
    """Return the name of a rank's memory snapshot, for pytorch.org/memory_viz."""
    return f"profile_memory_rank{rank}.pickle"


def cpu_name() -> str:
    """Return what the system calls the processor."""
    return platform.processor() or platform.machine()


def mean(values: list[float]) -> float:
    """Return the mean of some numbers."""
    return sum(values) / len(values)
