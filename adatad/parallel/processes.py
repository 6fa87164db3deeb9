"""The processes of a run: one alone, or those that torchrun started; gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from adatad.errors import UserError
from adatad.parallel.devices import device_of
from adatad.parallel.failures import FailureReporter
from adatad.parallel.watchdog import Monitor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all of the run."""

    rank: int
    world: int
    device: torch.device
    job: dist.Store | None = field(default=None, compare=False)
    """Store that all attempts of a job that torchrun restarts share; None without torchrun."""
    monitor: Monitor | None = field(default=None, compare=False)
    """Watch over the other ranks; None for a process alone."""

    @property
    def is_main(self) -> bool:
        """True on the first rank, which logs and writes files."""
        return self.rank == 0

    # What the host counts stays in host memory and goes over gloo, on GPUs too (`backend_of`): it waits for no device,
    # and when a rank has died it fails at once, while NCCL would wait until its watchdog ends the process.

    def sum(self, value: int) -> int:
        """Return the sum of an integer over all ranks."""
        if self.world == 1:
            return value
        # In host memory, so that gloo takes it: see above.
        total = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(total)
        return int(total)

    def sum_floats(self, values: list[float]) -> list[float]:
        """Return the sums of floats over all ranks, in float64."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self.sum(int(flag)) > 0

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's object, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """Return what the first rank's action returns, on every rank; raise what it raises, on every rank.

        Only the first rank acts, as files may change while several look at them: every rank gets the same answer.
        """
        result, error = None, None
        if self.is_main:
            try:
                result = action()
            except Exception as caught:
                error = caught
        # The error goes through the same exchange, so that no rank is left waiting for one that has failed.
        result, error = self.gather((result, error))[0]
        if error is not None:
            raise error
        return result

    def note(self, fact: str, text: str = "") -> None:
        """Record a fact for later attempts of this job."""
        if self.job is not None:
            self.job.set(fact, text)

    def noted(self, fact: str) -> bool:
        """Return whether an attempt of this job recorded a fact."""
        return self.job is not None and self.job.check([fact])

    def noted_text(self, fact: str) -> str | None:
        """Return the text that an attempt of this job recorded with a fact; None if none did."""
        return self.job.get(fact).decode() if self.noted(fact) else None

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            dist.barrier()


class ProcessesError(UserError):
    """Variables of a launcher that don't fit together; the message says which, and what to do."""


@dataclass(frozen=True)
class LaunchedRank:
    """This process among those that a launcher started, by its variables."""

    rank: int
    world: int
    local_rank: int


HOW_TO_START = (
    "start several processes with torchrun (or srun, deepspeed: docs/engines.md), or unset RANK, WORLD_SIZE and "
    "LOCAL_RANK to run alone (some containers set them)"
)


def is_first_rank() -> bool:
    """Return whether this process is the first that torchrun started, or alone: the one whose results are printed."""
    return os.environ.get("RANK", "").strip() in ("", "0")


def launched_rank() -> LaunchedRank:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; one process alone without them. Raises ProcessesError."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        _refuse_empty(name)
    # One rank under torchrun counts as several: it may be restarted, and the job's store tells it what was before.
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and os.environ.get("RANK", "0") == "0"
    if alone and "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return LaunchedRank(0, 1, _number("LOCAL_RANK", 0))
    world, rank = _number("WORLD_SIZE", None), _number("RANK", None)
    if world < 1 or rank >= world:
        raise ProcessesError(f"RANK is {rank}, and WORLD_SIZE {world}: expected a rank below it; {HOW_TO_START}")
    if world > 1 or "TORCHELASTIC_RESTART_COUNT" in os.environ:
        _refuse_empty("MASTER_ADDR")
        if "MASTER_ADDR" not in os.environ:
            raise ProcessesError(f"RANK and WORLD_SIZE are set, MASTER_ADDR isn't: {HOW_TO_START}")
        port = _number("MASTER_PORT", None)
        if not 0 < port < 65536:
            raise ProcessesError(f"MASTER_PORT is {port}; expected a port from 1 to 65535; {HOW_TO_START}")
    return LaunchedRank(rank, world, _number("LOCAL_RANK", 0))


def _refuse_empty(name: str) -> None:
    if name in os.environ and not os.environ[name].strip():
        raise ProcessesError(f"{name} is set but empty: unset it, or give it a value; {HOW_TO_START}")


def _number(name: str, default: int | None) -> int:
    """Return a variable's whole number. default: of one that isn't set; None: it must be."""
    _refuse_empty(name)
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        others = [other for other in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if other in os.environ]
        verb = "is" if len(others) == 1 else "are"
        raise ProcessesError(f"{' and '.join(others)} {verb} set, {name} isn't: {HOW_TO_START}")
    if not re.fullmatch(r"[0-9]{1,9}", text.strip(), re.ASCII):
        raise ProcessesError(f"{name} is {text!r}; expected a whole number; {HOW_TO_START}")
    return int(text)


def meet(seconds: float) -> dist.Store:
    """Return the store that all ranks share. Raises ProcessesError if they don't find one another within that time."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        shared, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except (dist.DistError, RuntimeError, OSError) as error:
        text = str(error).strip() or repr(error)
        # The first rank holds the store: its port is the one that may be taken.
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            raise ProcessesError(
                f"MASTER_PORT: {where} is in use by another program, or another run: take another port "
                "(--master-port, or --standalone, which finds a free one)"
            ) from error
        raise ProcessesError(
            f"the ranks don't find one another at MASTER_ADDR:MASTER_PORT {where} within {seconds:g} s (is every rank "
            f"started, is that host known and its port open?): {text.splitlines()[0][:200]}"
        ) from error
    return shared


@contextmanager
def start_processes(hang_seconds: float = 600.0) -> Iterator[Processes]:
    """Join the process group that torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK) describe; alone without them.

    hang_seconds: how long a rank waits for the others before it fails. An error that leaves the context is preceded by
    a line that says which rank failed first, on which host, and how. Raises ProcessesError, DeviceError.
    """
    here = launched_rank()
    rank, world, device = here.rank, here.world, device_of(here.local_rank)
    monitor, job, attempt = None, None, os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if world > 1 or attempt is not None:
        shared = meet(hang_seconds)
        # Facts of the job, which later attempts read: under a prefix of their own.
        job = dist.PrefixStore("job", shared) if attempt is not None else None
    if world > 1:
        # torchrun's store outlives a restart: addresses and failures of the attempt before must not be found again.
        store = dist.PrefixStore(f"attempt {attempt or 0}", shared)
        dist.init_process_group(
            backend_of(device), store=dist.PrefixStore("group", store), rank=rank, world_size=world,
            timeout=timedelta(seconds=hang_seconds),
        )  # fmt: skip
        monitor = Monitor(FailureReporter(store, rank, world), hang_seconds)
    try:
        yield Processes(rank, world, device, job, monitor)
    except Exception as error:
        if monitor:
            monitor.report(error)
        # What others still exchange with this rank must fail at once: the group goes down with the process.
        raise
    except SystemExit:
        # A run that was asked to stop: all ranks leave, in good order.
        leave_group(monitor)
        raise
    leave_group(monitor)


def leave_group(monitor: Monitor | None) -> None:
    """Take the process group down, and let the others know that this rank leaves in good order."""
    if monitor:
        monitor.leave()
    if dist.is_initialized():
        dist.destroy_process_group()


def backend_of(device: torch.device) -> str:
    """Return the backends of collectives.

    Beside a GPU tensors in host memory, and objects, go over gloo, as checkpoints do; torch gives the group's timeout
    to both.
    """
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def ensure_group(processes: Processes) -> None:
    """Make a process group of this process alone, if there is none; for engines that always want one.

    It needs no port and no address; `start_processes` takes it down.
    """
    if not dist.is_initialized():
        dist.init_process_group(backend_of(processes.device), store=dist.HashStore(), rank=0, world_size=1)
