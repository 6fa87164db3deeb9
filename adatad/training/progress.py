"""The progress of training: epoch, step, loss, rate, memory, time left; lines with the time without a terminal."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console

from adatad.progress_bar import LINE_SECONDS, TIME_OF_DAY, new_bar, showing, time_left


class ProgressBar:
    """Shows optimizer steps from `done` to `total`; tasks that begin meanwhile, as evaluation, are shown below it."""

    def __init__(self, console: Console, steps_per_epoch: int, epochs: int, done: int):
        self.console, self.steps_per_epoch, self.epochs = console, steps_per_epoch, epochs
        self._bar, self._context = new_bar(console), ExitStack()
        self._total = steps_per_epoch * epochs
        self._first_step: int | None = None
        self._first_time = self._line_time = time.monotonic()
        name = f"epoch {done // steps_per_epoch + 1}/{epochs}"
        self._task = self._bar.add_task(name, total=self._total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        self._context.enter_context(showing(self._bar))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.close()

    def show(self, step: int, epoch: int, loss: float, rate: float, memory_bytes: int) -> None:
        """Show the values after `step` optimizer steps in all."""
        values = f"loss {loss:.3f}  lr {rate:.1e}  memory {memory_bytes / 2**30:.2f} GiB"
        name = f"epoch {epoch + 1}/{self.epochs}"
        self._bar.update(self._task, completed=step, description=name, note=values)
        now = time.monotonic()
        if self._first_step is None:
            # The first step is slower than all others: it says nothing about the time left.
            self._first_step, self._first_time = step, now
        if not self.console.is_terminal and (step % self.steps_per_epoch == 0 or now - self._line_time >= LINE_SECONDS):
            self._line_time = now
            # Without evaluations to come.
            left = time_left(now - self._first_time, step - self._first_step, self._total - step)
            line = f"{time.strftime(TIME_OF_DAY)} {name}  step {step}/{self._total}  {values}  left {left}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
