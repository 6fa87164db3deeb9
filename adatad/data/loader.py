"""Batches of windows for one rank, decoded ahead; their order depends on (seed, epoch) alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from adatad.data.dataset import Batch, Sample, collate
from adatad.data.draws import epoch_order
from adatad.errors import UserError


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
    one's traceback.
    """

    def __init__(self, dataset: Dataset, batches: Any, workers: int):
        self.dataset, self.batches = dataset, batches
        self._loader = DataLoader(
            _ErrorsAsValues(dataset), batch_sampler=batches, num_workers=workers, collate_fn=_collate_unless_error,
            pin_memory=torch.cuda.is_available(), worker_init_fn=_ignore_stop_signals,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


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
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # Only waiting for a signal tells who sent it; macOS can't.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_the_parent_says_so, daemon=True).start()


def _leave_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
