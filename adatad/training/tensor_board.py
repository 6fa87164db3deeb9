"""TensorBoard as a tracker: the files in a run's folder tensorboard/."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from adatad.training.monitor import BestEffort
from adatad.training.trackers import OF_EVERY_RUN, Setting

RETRY_SECONDS = 60
"""Time after which TensorBoard's files are tried again."""


class TensorBoard:
    """Tracker that writes TensorBoard's files into a run directory.

    first_step: steps that the run has done before; what TensorBoard has of later ones is dropped, as a resumed run
    repeats them.
    """

    def __init__(self, run_directory: Path, first_step: int, best_effort: BestEffort):
        self._folder, self._best_effort = run_directory / "tensorboard", best_effort
        self._board: SummaryWriter | None = None
        self._retry_at = 0.0
        self._end_of_row: Summary | None = None
        _silence_board_threads()
        self._open(first_step + 1 if first_step else None)

    def start(self, hyperparameters: dict[str, Setting], figures: Sequence[str], spec_yaml: str) -> None:
        """Show the spec as a text, and begin the run's row of the table of hyperparameters."""
        # Not add_hparams: it would make a run of its own, beside the one that has the curves.
        columns, row, self._end_of_row = hparams(hyperparameters, dict.fromkeys(figures, 0.0))
        _put_first(columns, OF_EVERY_RUN)
        self._do(lambda board: board.add_text("spec", f"```yaml\n{spec_yaml}\n```"))
        self._do(lambda board: [board.file_writer.add_summary(part) for part in (columns, row)])

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._do(lambda board: [board.add_scalar(name, value, step) for name, value in values.items()])

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Show an image, uint8 [height, width, 3]."""
        self._do(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Add a distribution of numbers."""
        self._do(lambda board: board.add_histogram(name, np.asarray(values), step))

    def final(self, figures: dict[str, float]) -> None:
        """End the run's row of hyperparameters, whose figures are the last points of their curves."""
        if self._end_of_row is not None:
            self._do(lambda board: board.file_writer.add_summary(self._end_of_row))

    def close(self) -> None:
        """Close the file."""
        self._do(lambda board: board.close())
        self._board = None

    def _open(self, purge_step: int | None = None) -> None:
        with self._best_effort.writing("tensorboard"):
            self._board = SummaryWriter(self._folder, purge_step=purge_step)

    def _do(self, action: Callable[[SummaryWriter], object]) -> None:
        if self._board is None and time.monotonic() >= self._retry_at:
            self._open()
        # Values of this time are lost to TensorBoard; metrics.jsonl has them.
        if self._board is None:
            return
        with self._best_effort.writing("tensorboard"):
            try:
                action(self._board)
            except OSError:
                # Its thread has ended for good: after a while another writer begins another file.
                self._board, self._retry_at = None, time.monotonic() + RETRY_SECONDS
                raise


def _put_first(columns: Summary, names: Collection[str]) -> None:
    """Let the table of hyperparameters begin with the columns of these names."""
    data = columns.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    for column in content.experiment.hparam_infos:
        # TensorBoard sorts those that differ between runs before the others, and shows five until asked for more.
        column.differs = column.name in names
    data.content = content.SerializeToString()


def _silence_board_threads() -> None:
    """Print no traceback when a full disk ends TensorBoard's thread: its writer raises the same error again."""
    # A hook of all threads, as TensorBoard gives no access to its own; the thread is known by its private class's name.
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        """Pass all errors on but those of a disk in TensorBoard's thread."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            previous(args)

    # Marked, so that a second run in this process doesn't put a hook around the hook.
    hook.of_board = True
    if not getattr(previous, "of_board", False):
        threading.excepthook = hook
