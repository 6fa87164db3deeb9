"""The progress bar of training: epoch, step, loss, rate, memory, time left; lines with the time without a terminal."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adatad.training.log import TIME_OF_DAY

LINE_SECONDS = 60
"""Without a terminal: the longest time between two lines, if a step takes less."""


class ProgressBar:
    """Shows optimizer steps from `done` to `total`."""

    def __init__(self, console: Console, steps_per_epoch: int, epochs: int, done: int):
        self.console, self.steps_per_epoch, self.epochs = console, steps_per_epoch, epochs
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("{task.fields[values]}"),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        first = f"{done // steps_per_epoch + 1}/{epochs}"
        self._total = steps_per_epoch * epochs
        self._first_step: int | None = None
        self._first_time = self._line_time = time.monotonic()
        self._task = self._bar.add_task("train", total=self._total, completed=done, epoch=first, values="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int, epoch: int, loss: float, rate: float, memory_bytes: int) -> None:
        """After `step` optimizer steps in all."""
        values = f"loss {loss:.3f}  lr {rate:.1e}  memory {memory_bytes / 2**30:.2f} GiB"
        self._bar.update(self._task, completed=step, epoch=f"{epoch + 1}/{self.epochs}", values=values)
        now = time.monotonic()
        if self._first_step is None:
            # The first step is slower than all others: it says nothing about the time left.
            self._first_step, self._first_time = step, now
        if not self.console.is_terminal and (step % self.steps_per_epoch == 0 or now - self._line_time >= LINE_SECONDS):
            self._line_time = now
            line = f"{time.strftime(TIME_OF_DAY)} epoch {epoch + 1}/{self.epochs}  step {step}/{self._total}  {values}"
            self.console.print(f"{line}  left {self._left(step, now)}", markup=False, highlight=False, soft_wrap=True)

    def _left(self, step: int, now: float) -> str:
        """Time to the end of training, without evaluations to come."""
        if step == self._first_step:
            return "-"
        seconds = (now - self._first_time) / (step - self._first_step) * (self._total - step)
        return str(timedelta(seconds=round(seconds)))
