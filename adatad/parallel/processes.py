"""The processes of a run: one alone, or those that torchrun started; gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from adatad.parallel.faults import Witness


@dataclass(frozen=True)
class Processes:
    """This process among all of the run."""

    rank: int
    world: int
    device: torch.device
    job: dist.Store | None = field(default=None, compare=False)
    """What all attempts of a job that torchrun restarts share; None without torchrun."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: int) -> int:
        """Sum of an integer over all ranks."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(total)
        return int(total)

    def sum_floats(self, values: list[float]) -> list[float]:
        """Sums of floats over all ranks, in float64."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return self.sum(int(flag)) > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's object, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def note(self, fact: str) -> None:
        """Let later attempts of this job know."""
        if self.job is not None:
            self.job.set(fact, "")

    def noted(self, fact: str) -> bool:
        """Whether an attempt of this job noted it."""
        return self.job is not None and self.job.check([fact])

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def is_first_rank() -> bool:
    """Whether this process is the first that torchrun started, or alone: the one whose results are printed."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def start_processes(hang_seconds: float = 600.0) -> Iterator[Processes]:
    """Join the process group that torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK) describe; alone without them.

    hang_seconds: how long a rank waits for the others before it fails. An error that leaves the context is preceded by
    a line that says which rank failed first, on which host, and how.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    witness, job, attempt = None, None, os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if world > 1 or attempt is not None:
        shared, _, _ = next(dist.rendezvous("env://"))
        job = dist.PrefixStore("job", shared) if attempt is not None else None
    if world > 1:
        # torchrun's store outlives a restart: addresses and faults of the attempt before must not be found again.
        store = dist.PrefixStore(f"attempt {attempt or 0}", shared)
        dist.init_process_group(
            backend_of(device), store=dist.PrefixStore("group", store), rank=rank, world_size=world,
            timeout=timedelta(seconds=hang_seconds),
        )  # fmt: skip
        witness = Witness(store, rank, world)
    try:
        yield Processes(rank, world, device, job)
    except Exception as error:
        if witness:
            witness.report(error)
        # What others still exchange with this rank must fail at once: the group goes down with the process.
        raise
    except SystemExit:
        leave_group()
        raise
    leave_group()


def leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def backend_of(device: torch.device) -> str:
    """Of collectives. Beside a GPU tensors in host memory go over gloo, as checkpoints do."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def ensure_group(processes: Processes) -> None:
    """For engines that want a process group even of one process: a group of that one, if there is none.

    It needs no port and no address; `start_processes` takes it down.
    """
    if not dist.is_initialized():
        dist.init_process_group(backend_of(processes.device), store=dist.HashStore(), rank=0, world_size=1)
