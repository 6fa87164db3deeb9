"""The progress bar of training: epoch, step, loss, rate, memory, time left; a line an epoch without a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
        self._task = self._bar.add_task("train", total=steps_per_epoch * epochs, completed=done, epoch=first, values="")

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
        if not self.console.is_terminal and step % self.steps_per_epoch == 0:
            self.console.print(f"epoch {epoch + 1}/{self.epochs}  step {step}  {values}")
