"""Batches of windows for one rank, decoded ahead; their order depends on (seed, epoch) alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from adatad.data.dataset import Batch, Sample, collate
from adatad.data.draws import epoch_order
from adatad.errors import UserError
from adatad.stop_signals import STOP_SIGNALS

# torch raises the death of a loader process wherever the training process is at that moment, also within a step. The
# wait for a batch finds it as well, between two steps, where what was trained can be saved. (No public switch.)
signal_handling._SIGCHLD_handler_set = True

PREFETCH = 2
"""Batches that each loader process is ahead."""
POLL_SECONDS = 1
STOPPED_SECONDS = 10
"""A loader process that is found stopped for so long won't go on by itself."""
IDLE_SECONDS = 250.0
"""A loader process that is waited for and hasn't computed anything for so long is taken for stuck."""
SHARED_MEMORY = "/dev/shm"
MAX_NAMED = 3
CURE_SHARED_MEMORY = "give the container more (docker run --shm-size=4g or --ipc=host), or set data.workers=0"


class LoaderError(UserError):
    """A loader process that is gone or doesn't answer; the message names it, its videos and the cure."""


@dataclass(frozen=True)
class Share:
    """The part of each global batch that one rank works on, in micro-batches."""

    rank: int
    world: int
    accumulation: int
    global_batch: int

    @property
    def micro_batch(self) -> int:
        """Windows of one micro-batch of one rank."""
        return self.global_batch // (self.world * self.accumulation)


class EpochBatches:
    """Addresses (epoch, number) of this rank's micro-batches, from a position to the end of training.

    The last partial global batch of an epoch is left out. One object for all epochs lets loader processes live, and
    read ahead, across their borders.
    """

    def __init__(self, count: int, share: Share, seed: int, epochs: int, start: tuple[int, int]):
        self.count, self.share, self.seed, self.epochs, self.start = count, share, seed, epochs, start
        self.steps_per_epoch = count // share.global_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, first_step = self.start
        for epoch in range(first_epoch, self.epochs):
            order = epoch_order(self.seed, epoch, self.count)
            for step in range(first_step if epoch == first_epoch else 0, self.steps_per_epoch):
                first = step * self.share.global_batch + self.share.rank * self.share.micro_batch
                for micro in range(self.share.accumulation):
                    begin = first + micro * self.share.micro_batch * self.share.world
                    yield [(epoch, int(number)) for number in order[begin : begin + self.share.micro_batch]]


class Loader:
    """Batches of a data set, a few ahead if it has processes of its own.

    What a user can mend travels from those as a value and is raised here: an exception would arrive inside another
    one's traceback. idle_seconds: how long one that is waited for may do nothing. Iterating raises LoaderError.
    """

    def __init__(self, dataset: Dataset, batches: Any, workers: int, idle_seconds: float = IDLE_SECONDS):
        self.dataset, self.batches, self._idle_seconds = dataset, batches, idle_seconds
        self._asked = _Asked(batches)
        self._iterator: Any = None
        self._loader = DataLoader(
            _ErrorsAsValues(dataset), batch_sampler=self._asked, num_workers=workers,
            collate_fn=_collate_unless_error, pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_stop_signals, timeout=POLL_SECONDS if workers else 0,
            prefetch_factor=PREFETCH if workers else None,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # In an attribute: the traceback of an error would keep a variable, and with it its processes.
        self._iterator = iter(self._loader)
        try:
            while True:
                try:
                    batch = self._next()
                except StopIteration:
                    return
                self._asked.pending.popleft()
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            self._iterator = None

    def _next(self) -> Any:
        """The next batch, waited for as long as its process is alive and works."""
        if not self._loader.num_workers:
            return next(self._iterator)
        idle = stopped = 0
        seen: float | None = None
        while not self._died():
            received, batch = self._poll()
            if received:
                return batch
            # Counted in polls: this process may have been stopped as well (Ctrl-Z), for any time.
            worker = _awaited(self._iterator)
            status, used = _facts(worker)
            stopped = stopped + POLL_SECONDS if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else 0
            idle, seen = (idle + POLL_SECONDS if used == seen else 0), used
            if stopped >= STOPPED_SECONDS or idle >= self._idle_seconds:
                raise self._stuck(worker, "is stopped" if stopped else f"has done nothing for {idle} s ({status})")
        raise self._lost()

    def _poll(self) -> tuple[bool, Any]:
        """Whether a batch came within POLL_SECONDS, and the batch."""
        try:
            return True, next(self._iterator)
        except RuntimeError as error:
            # torch has no types of its own for these two.
            if "exited unexpectedly" not in str(error) and "timed out" not in str(error):
                raise
        except (EOFError, ConnectionError, FileNotFoundError):
            # It died while it handed a batch over; its exit code may take a moment.
            time.sleep(POLL_SECONDS)
            if not self._died():
                raise
        return False, None

    def _died(self) -> bool:
        return any(worker.exitcode is not None for worker in self._iterator._workers)

    def _lost(self) -> LoaderError:
        dead = next(worker for worker in self._iterator._workers if worker.exitcode is not None)
        code, cure = dead.exitcode, "lower data.workers, or give the process more memory"
        match code:
            case -9:
                fate = "was killed (SIGKILL), as the system does when memory runs out"
            case -7:
                fate, cure = f"was killed (SIGBUS), as when {SHARED_MEMORY} is full", CURE_SHARED_MEMORY
            case code if code < 0:
                fate = f"was killed ({signal.Signals(-code).name})"
            case _:
                fate = f"left with exit code {code}"
        return LoaderError(
            f"a loader process (pid {dead.pid}) {fate}; the wait was for {self._awaited_videos()}. {cure}"
        )

    def _stuck(self, worker: Any, what: str) -> LoaderError:
        error = LoaderError(
            f"the loader process {worker.pid} {what}; it was to read {self._awaited_videos()}. Look at that file and "
            f"its disk; {_shared_memory_left()}data.workers=0 reads in the training process"
        )
        # It can't be asked to leave, and Python would wait for it at its end.
        worker.kill()
        worker.join(STOPPED_SECONDS)
        if worker.exitcode is None:
            multiprocessing.process._children.discard(worker)
        return error

    def _awaited_videos(self) -> str:
        addresses = self._asked.pending[0] if self._asked.pending else []
        names = [self.dataset.video_of(a) if hasattr(self.dataset, "video_of") else str(a) for a in addresses]
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        return ", ".join(names[:MAX_NAMED]) + more


class _Asked:
    """Addresses of batches, and in `pending` those that were handed out and haven't come back as batches."""

    def __init__(self, batches: Any):
        self.batches = batches
        self.pending: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        self.pending = pending = deque()
        for addresses in self.batches:
            pending.append(addresses)
            yield addresses

    def __len__(self) -> int:
        return len(self.batches)


def _awaited(iterator: Any) -> Any:
    """The process whose batch is the next one in order. (torch doesn't say which.)"""
    return iterator._workers[iterator._task_info[iterator._rcvd_idx][0]]


def _facts(worker: Any) -> tuple[str, float]:
    """A process's state, and the seconds that it has computed so far."""
    with suppress(psutil.Error):
        process = psutil.Process(worker.pid)
        times = process.cpu_times()
        return process.status(), times.user + times.system
    return "gone", -1.0


def check_shared_memory(batch_bytes: int, batches_ahead: int, processes: int = 1) -> None:
    """Raises LoaderError if /dev/shm can't hold what loader processes hand over there: a worker that finds no room
    drops its batch, and training would wait for it for ever.

    batches_ahead: of one rank, with those that a step works on; processes: ranks on this machine.
    """
    if not sys.platform.startswith("linux"):
        return
    needed = batch_bytes * batches_ahead * processes
    try:
        facts = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        raise LoaderError(f"{SHARED_MEMORY}: {error.strerror}: loader processes need it; set data.workers=0") from error
    if facts.f_flag & os.ST_RDONLY or not os.access(SHARED_MEMORY, os.W_OK):
        raise LoaderError(f"{SHARED_MEMORY} can't be written to: loader processes need it; set data.workers=0")
    free = facts.f_bavail * facts.f_frsize
    if free < needed:
        raise LoaderError(
            f"{SHARED_MEMORY} has {free / 1e6:,.0f} MB free; loader processes hand over batches of "
            f"{batch_bytes / 1e6:,.1f} MB there, up to {batches_ahead * processes} at a time: {needed / 1e6:,.0f} MB. "
            f"{CURE_SHARED_MEMORY[0].upper()}{CURE_SHARED_MEMORY[1:]}; fewer data.workers need less"
        )


def _shared_memory_left() -> str:
    with suppress(OSError):
        facts = os.statvfs(SHARED_MEMORY)
        return f"{SHARED_MEMORY} has {facts.f_bavail * facts.f_frsize / 1e6:,.0f} MB free; "
    return ""


class _ErrorsAsValues(Dataset):
    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, address: Any) -> Sample | UserError:
        try:
            return self.dataset[address]
        except UserError as error:
            return error


def _collate_unless_error(samples: list[Sample | UserError]) -> Batch | UserError:
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    return errors[0] if errors else collate(samples)


def _ignore_stop_signals(worker: int) -> None:
    """Signals that reach every process of a run are the training process's to answer, which ends its loaders itself.

    A loader process that dies of them would end the run before it has saved. SIGTERM from the training process still
    counts: Python ends with it what is left when a program leaves, and waits until that is gone.
    """
    # Nor may they wake the thread that the training process has for them.
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # Only waiting for a signal tells who sent it; macOS can't.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_the_parent_says_so, daemon=True).start()


def _leave_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
