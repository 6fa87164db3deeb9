"""Progress of tasks on stderr: a bar on a terminal; otherwise lines with the time of day and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

TIME_OF_DAY = "%H:%M:%S"
LINE_SECONDS = 30.0
"""Least time between two lines of a task without a terminal; a shorter task prints nothing."""
_shown: Progress | None = None
"""The bar on the terminal, to which later tasks are added: a terminal holds one bar at a time."""


class Task:
    """One bar, which functions that take long are given to call `update`."""

    def __init__(self, what: str, show: Callable[[int, int | None, str], None]):
        self.what, self._show, self.done = what, show, 0
        self.total: int | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` parts of `total` are done."""
        self.done, self.total = done, self.total if total is None else total
        self._show(done, self.total, note)

    def advance(self) -> None:
        """Show that one more part is done."""
        self.update(self.done + 1)


@contextmanager
def progress(what: str, total: int | None = None, quiet: bool = False) -> Iterator[Task]:
    """Show the progress of a task while the context lasts, below the bar that is shown already, if there is one.

    what: the parts that are counted, such as "videos checked". quiet: show nothing, as on all ranks but the first.
    """
    if quiet or sys.stderr is None:
        yield Task(what, lambda done, total, note: None)
        return
    # Without a terminal, unless a bar for a console of the caller's is shown.
    if _shown is None and not sys.stderr.isatty():
        task = Task(what, Lines(what))
        task.total = total
        yield task
        return
    with nullcontext(_shown) if _shown else showing(new_bar()) as bar:
        number = bar.add_task(what, total=total, note="")
        task = Task(what, lambda done, total, note: bar.update(number, completed=done, total=total, note=note))
        task.total = total
        try:
            yield task
        finally:
            bar.remove_task(number)


@contextmanager
def showing(bar: Progress) -> Iterator[Progress]:
    """Show a bar, which tasks that begin while the context lasts are added to."""
    global _shown
    before = _shown
    with bar:
        # A disabled bar shows nothing, so that tasks inside of it print lines.
        _shown = None if bar.disable else bar
        try:
            yield bar
        finally:
            _shown = before


def new_bar(console: Console | None = None) -> Progress:
    """Return an unstarted bar, on stderr by default, whose tasks have a field `note`; disabled without a terminal."""
    # Imported here: commands that finish at once don't wait for rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), Left(),
        console=console, disable=not console.is_terminal, redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


class Lines:
    """Progress as lines, one at most every LINE_SECONDS."""

    def __init__(self, what: str, write: Callable[[str], None] | None = None):
        self.what, self._write = what, write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._began = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        # The monotonic clock: setting the time of day mustn't stop or flood the lines.
        now = time.monotonic()
        if self._first is None:
            # Parts that an earlier, resumed run did say nothing about the speed of this one.
            self._first = max(done - 1, 0)
        # Logs are read later: a line for each part would bury everything else.
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        left = time_left(now - self._began, done - self._first, (total or 0) - done)
        parts = [f"{time.strftime(TIME_OF_DAY)} {self.what} {done}" + (f"/{total}" if total else ""), note]
        self._write("  ".join([part for part in parts if part] + ([f"left {left}"] if total else [])))


def time_left(seconds: float, done: int, remaining: int) -> str:
    """Return the time that the remaining parts take if `done` took `seconds`, as 0:01:30; "-" if unknown."""
    return str(timedelta(seconds=round(seconds / done * remaining))) if done > 0 else "-"
