"""Batches from loader processes, and a watch over them: which one died, was stopped or hangs, and on which videos."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from adatad.data.balance import Repeats
from adatad.data.dataset import Batch, Sample, collate
from adatad.data.rng import epoch_order
from adatad.errors import UserError
from adatad.files import listed
from adatad.stop_signals import STOP_SIGNALS

# torch's SIGCHLD handler raises the death of a loader process wherever the training process is, also within a step.
# The wait for a batch notices it as well, between two steps, where the state can be saved. There is no public switch:
# this flag makes torch believe that its handler is installed.
signal_handling._SIGCHLD_handler_set = True

PREFETCH = 2
"""Batches that each loader process reads ahead."""
POLL_SECONDS = 1
"""Seconds from one look at the loader processes to the next."""
STOPPED_SECONDS = 10
"""A loader process that is stopped for this long won't go on by itself."""
IDLE_SECONDS = 250.0
"""A loader process that is waited for and used no CPU for this long counts as stuck."""
SHARED_MEMORY = "/dev/shm"
MAX_NAMED = 3
"""Videos that an error names."""
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
SHARED_MEMORY_FIX = "give the container more (docker run --shm-size=4g or --ipc=host), or set data.workers=0"


@dataclass(frozen=True)
class Share:
    """Part of each global batch that one rank works on, in micro-batches."""

    rank: int
    world: int
    accumulation: int
    global_batch: int

    @property
    def micro_batch(self) -> int:
        """Number of windows in one micro-batch of one rank."""
        return self.global_batch // (self.world * self.accumulation)


class EpochBatches:
    """Addresses (epoch, number) of this rank's micro-batches, from a position to the end of training.

    The last partial global batch of an epoch is dropped. One object for all epochs lets loader processes live, and read
    ahead, from one epoch into the next. repeats: which of `count` videos come more than once in an epoch, if any do.
    """

    def __init__(
        self,
        count: int,
        share: Share,
        seed: int,
        epochs: int,
        start: tuple[int, int],
        repeats: Repeats | None = None,
    ):
        self.count, self.share, self.seed, self.epochs, self.start = count, share, seed, epochs, start
        self.repeats = repeats
        self.steps_per_epoch = (repeats.windows if repeats else count) // share.global_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, first_step = self.start
        for epoch in range(first_epoch, self.epochs):
            repeats = self.repeats
            order = repeats.order(self.seed, epoch) if repeats else epoch_order(self.seed, epoch, self.count)
            # A resumed run begins amid its first epoch, in that epoch's own order.
            for step in range(first_step if epoch == first_epoch else 0, self.steps_per_epoch):
                first = step * self.share.global_batch + self.share.rank * self.share.micro_batch
                for micro in range(self.share.accumulation):
                    # Ranks lie inside a micro-batch: the first one is spread over all ranks, then the second one.
                    begin = first + micro * self.share.micro_batch * self.share.world
                    yield [(epoch, int(number)) for number in order[begin : begin + self.share.micro_batch]]


class Loader:
    """Batches of a data set, a few ahead if there are loader processes.

    A UserError travels from them as a value and is raised here: a raised exception would arrive inside the traceback of
    another one. idle_seconds: how long an awaited process may do nothing; complete: applied to a batch in the process
    that loads it. Iterating raises LoaderError.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Any,
        workers: int,
        idle_seconds: float = IDLE_SECONDS,
        complete: Callable[[Batch], Batch] | None = None,
    ):
        self.dataset, self.batches, self._idle_seconds = dataset, batches, idle_seconds
        self._addresses = PendingAddresses(batches)
        self._loader = DataLoader(
            _ErrorsAsValues(dataset), batch_sampler=self._addresses, num_workers=workers,
            collate_fn=partial(_completed, complete) if complete else _collate_unless_error,
            pin_memory=torch.cuda.is_available(), worker_init_fn=_ignore_stop_signals,
            # The timeout makes torch return to us, to look at the processes; it isn't an error by itself.
            timeout=POLL_SECONDS if workers else 0, prefetch_factor=PREFETCH if workers else None,
        )  # fmt: skip
        self._iterator: Any = None
        self._watch: LoaderWatch | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # In attributes, not local variables: an error's traceback keeps locals alive, and with them the processes.
        with _termination_blocked():
            self._iterator = iter(self._loader)
        if self._loader.num_workers:
            video_of = getattr(self.dataset, "video_of", str)
            self._watch = LoaderWatch(self._iterator, self._addresses, video_of, self._idle_seconds)
        try:
            while True:
                try:
                    batch = self._next()
                except StopIteration:
                    return
                self._addresses.pending.popleft()
                # As a value until here; the traceback is this process's own.
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            self._iterator = None
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def _next(self) -> Any:
        """Return the next batch, waiting for as long as its process is alive and works."""
        if self._watch is None:
            return next(self._iterator)
        with self._watch:
            # Errors first: a dead worker's batch never comes.
            while (error := self._watch.error()) is None:
                received, batch = self._poll()
                if received:
                    return batch
        raise error

    def _poll(self) -> tuple[bool, Any]:
        """Return whether a batch came within POLL_SECONDS, and the batch."""
        try:
            return True, next(self._iterator)
        except RuntimeError as error:
            # torch raises plain RuntimeErrors for a dead worker and for a timeout: only the text tells.
            if "exited unexpectedly" not in str(error) and "timed out" not in str(error):
                raise
        except (EOFError, OSError):
            # The process died while it handed a batch over; its exit code may come a moment later.
            time.sleep(POLL_SECONDS)
            if self._watch.error() is None:
                raise
        return False, None


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


def _completed(complete: Callable[[Batch], Batch], samples: list[Sample | UserError]) -> Batch | UserError:
    batch = _collate_unless_error(samples)
    return batch if isinstance(batch, UserError) else complete(batch)


@contextmanager
def _termination_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread: processes forked meanwhile keep it blocked in each of their threads.

    A loader process can't block it for itself: torch starts its pool's threads there before our code runs, and a signal
    ends a process by any thread that takes it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_stop_signals(worker: int) -> None:
    """Leave signals that reach every process of a run to the training process, which ends its loaders itself.

    A loader process that dies of one would end the run before it has saved. SIGTERM from the training process still
    counts: with it Python ends remaining processes at exit, and waits until they are gone.
    """
    # The forked process shares the wakeup pipe of the training process's signal thread: detach from it.
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # Only sigwaitinfo tells who sent a signal, which macOS doesn't have.
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_leave_when_the_parent_says_so, daemon=True).start()


def _leave_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class LoaderError(UserError):
    """Raised for a loader process that died or doesn't answer; the message names it, its videos and what to do."""


class PendingAddresses:
    """Addresses of batches as torch's loader takes them; `pending` has those that haven't come back as batches yet."""

    def __init__(self, batches: Any):
        self.batches = batches
        self.pending: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        # Anew: batches of an iteration that was given up never come.
        self.pending = pending = deque()
        for addresses in self.batches:
            pending.append(addresses)
            yield addresses

    def __len__(self) -> int:
        return len(self.batches)


class LoaderWatch:
    """Watch over the processes of one iteration of torch's DataLoader, from a thread, while training waits for a batch.

    A process that is stopped or hangs is killed: whatever the training process was waiting for then ends with an error,
    also inside torch, where there is no time limit. video_of: returns the name of the video at an address.
    """

    def __init__(self, iterator: Any, addresses: PendingAddresses, video_of: Callable[[Any], str], idle_seconds: float):
        self._iterator, self._addresses = iterator, addresses
        self._video_of, self._idle_seconds = video_of, idle_seconds
        self._verdict: str | None = None
        self._waits, self._waiting = 0, False
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="loader watch", daemon=True).start()

    def __enter__(self) -> None:
        """Begin a wait for the next batch."""
        self._waits, self._waiting = self._waits + 1, True

    def __exit__(self, *_: Any) -> None:
        self._waiting = False

    def close(self) -> None:
        """End the thread at its next look."""
        self._ended.set()
        # An error's traceback may keep this object alive, and with it torch's iterator, whose end ends the processes.
        self._iterator = None

    def error(self) -> LoaderError | None:
        """Return an error on a dead process, or None."""
        if self._verdict is not None:
            return LoaderError(self._verdict)
        # `_workers` is private to torch; there is no public way to the processes.
        for number, worker in enumerate(self._iterator._workers):
            if worker.exitcode is not None:
                fate, fix = fate_of(worker.exitcode)
                return LoaderError(
                    f"a loader process (pid {worker.pid}) {fate}; it was to read {self._videos_of(number)}. {fix}"
                )
        return None

    def _look(self) -> None:
        """Look at the processes every POLL_SECONDS, until one has to be given up."""
        idle, seen, stopped = 0, None, 0
        while not self._ended.wait(POLL_SECONDS):
            with suppress(AttributeError, KeyError, IndexError, psutil.Error):
                # Idle time is counted in looks, not by a clock: the training process may have been stopped as well
                # (Ctrl-Z). `_workers`, `_task_info` and `_rcvd_idx` are private to torch's DataLoader iterator; if a
                # release renames them, AttributeError is suppressed and the watch sees nothing.
                workers = [psutil.Process(worker.pid) for worker in self._iterator._workers]
                status = [process.status() for process in workers]
                halted = [number for number, state in enumerate(status) if state in STOPPED]
                stopped = stopped + POLL_SECONDS if self._waiting and halted else 0
                awaited = self._iterator._task_info[self._iterator._rcvd_idx][0]
                times = workers[awaited].cpu_times()
                now = (self._waits, times.user + times.system)
                idle, seen = (idle + POLL_SECONDS if self._waiting and now == seen else 0), now
                if stopped >= STOPPED_SECONDS:
                    return self._give_up(halted[0], "is stopped")
                if idle >= self._idle_seconds:
                    return self._give_up(awaited, f"has done nothing for {idle} s (it is {status[awaited]})")
        return None

    def _give_up(self, number: int, what: str) -> None:
        """Write down what is wrong with a process, then kill them all, which ends the wait for a batch."""
        workers, left = list(self._iterator._workers), ""
        with suppress(OSError):
            facts = os.statvfs(SHARED_MEMORY)
            left = f"{SHARED_MEMORY} has {facts.f_bavail * facts.f_frsize / 1e6:,.0f} MB free; "
        self._verdict = (
            f"the loader process {workers[number].pid} {what}; it was to read {self._videos_of(number)}. Look at that "
            f"file and its disk; {left}data.workers=0 reads in the training process"
        )
        for worker in workers:
            worker.kill()
        # Python joins its children at exit: one that can't be killed (on a disk that hangs) would block it for ever.
        multiprocessing.process._children.difference_update(workers)

    def _videos_of(self, number: int) -> str:
        """Return the videos of the first batch that a process still owes."""
        iterator, pending = self._iterator, self._addresses.pending
        addresses: Any = []
        with suppress(AttributeError, KeyError, IndexError, RuntimeError):
            # Batches are numbered in the order they were handed out, `_rcvd_idx` is the next one to come: its addresses
            # are the first pending ones.
            owed = [index for index, facts in sorted(iterator._task_info.items()) if facts == (number,)]
            addresses = pending[owed[0] - iterator._rcvd_idx]
        names = [self._video_of(address) for address in addresses]
        return listed(names, MAX_NAMED) or "nothing more"


def fate_of(exit_code: int) -> tuple[str, str]:
    """Return how a process ended, and what helps."""
    fix = "Lower data.workers, or give the process more memory"
    match exit_code:
        case -9:
            return "was killed (SIGKILL), as the system does when memory runs out", fix
        case -7:
            return f"was killed (SIGBUS), as when {SHARED_MEMORY} is full", SHARED_MEMORY_FIX
        case code if code < 0:
            with suppress(ValueError):
                return f"was killed ({signal.Signals(-code).name})", fix
    return f"left with exit code {exit_code}", fix


def require_shared_memory(batch_bytes: int, batches_ahead: int, processes: int = 1) -> None:
    """Raise LoaderError if /dev/shm can't hold what loader processes hand over there.

    A worker that finds no room drops its batch, and training would wait for it for ever. batches_ahead: of one rank,
    including those that a step works on; processes: ranks on this machine.
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
            f"{SHARED_MEMORY} has {free / 1e6:,.1f} MB free; loader processes hand over windows of "
            f"{batch_bytes / 1e6:,.1f} MB there, up to {batches_ahead * processes} at a time: {needed / 1e6:,.1f} MB. "
            f"{SHARED_MEMORY_FIX[0].upper()}{SHARED_MEMORY_FIX[1:]}; fewer data.workers need less"
        )
