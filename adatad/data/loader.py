"""Batches of windows for one rank, decoded ahead; their order depends on (seed, epoch) alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from adatad.data.dataset import Batch, Sample, collate
from adatad.data.draws import epoch_order
from adatad.data.loader_watch import IDLE_SECONDS, POLL_SECONDS, Asked, LoaderWatch
from adatad.errors import UserError
from adatad.stop_signals import STOP_SIGNALS

# torch raises the death of a loader process wherever the training process is at that moment, also within a step. The
# wait for a batch finds it as well, between two steps, where what was trained can be saved. (No public switch.)
signal_handling._SIGCHLD_handler_set = True

PREFETCH = 2
"""Batches that each loader process is ahead."""


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
    one's traceback. idle_seconds: how long one that is waited for may do nothing. complete: what is done to a batch
    where it is loaded; it travels to those processes. Iterating raises LoaderError.
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
        self._asked = Asked(batches)
        self._loader = DataLoader(
            _ErrorsAsValues(dataset), batch_sampler=self._asked, num_workers=workers,
            collate_fn=partial(_completed, complete) if complete else _collate_unless_error,
            pin_memory=torch.cuda.is_available(), worker_init_fn=_ignore_stop_signals,
            timeout=POLL_SECONDS if workers else 0, prefetch_factor=PREFETCH if workers else None,
        )  # fmt: skip
        self._iterator: Any = None
        self._watch: LoaderWatch | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # In attributes: the traceback of an error would keep variables, and with them the processes.
        self._iterator = iter(self._loader)
        if self._loader.num_workers:
            video_of = getattr(self.dataset, "video_of", str)
            self._watch = LoaderWatch(self._iterator, self._asked, video_of, self._idle_seconds)
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
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def _next(self) -> Any:
        """The next batch, waited for as long as its process is alive and works."""
        if self._watch is None:
            return next(self._iterator)
        with self._watch:
            while (error := self._watch.error()) is None:
                received, batch = self._poll()
                if received:
                    return batch
        raise error

    def _poll(self) -> tuple[bool, Any]:
        """Whether a batch came within POLL_SECONDS, and the batch."""
        try:
            return True, next(self._iterator)
        except RuntimeError as error:
            # torch has no types of its own for these two.
            if "exited unexpectedly" not in str(error) and "timed out" not in str(error):
                raise
        except (EOFError, OSError):
            # It died while it handed a batch over; its exit code may take a moment.
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
