"""Output of a run while it trains: its log and progress bar, and a warning if it waits for data.

Nothing here may end a training: what can't be written is said once, and tried again.
"""

from __future__ import annotations

import logging
import logging.handlers
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType

from rich.console import Console
from rich.logging import RichHandler

from adatad.files import FileError, reason
from adatad.printing import LOGGER, tell_log
from adatad.progress_bar import LINE_SECONDS, TIME_OF_DAY, new_bar, showing, time_left


# Watched: tools that rotate logs rename the file, and lines would go on into the old one.
class LogFile(logging.handlers.WatchedFileHandler):
    """Handler for log.txt. Lines that can't be written are lost, which is said once; a deleted file is made anew."""

    def __init__(self, path: Path, console: Console):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._console, self._failing = console, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; on failure say so on the console, once until a line can be written again."""
        # The base class would print a traceback on stderr for each line.
        failing, self._failing = self._failing, False
        try:
            self.reopenIfNeeded()
            if self.stream is None:
                # It couldn't be made anew before.
                self.stream = self._open()
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except (OSError, ValueError, AttributeError) as error:
            self._failing = True
            if not failing:
                self._console.print(
                    f"{self.baseFilename} can't be written ({reason(error)}); the run goes on", markup=False
                )

    def close(self) -> None:
        """Close the file, whatever the disk says."""
        # Closing flushes once more what the disk didn't take.
        with suppress(OSError):
            super().close()


class PlainLines(logging.Handler):
    """Handler that prints lines with the time of day, for a console that isn't a terminal."""

    def __init__(self, console: Console):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", TIME_OF_DAY))
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line without wrapping or colours."""
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def log_to(path: Path, console: Console) -> logging.Logger:
    """Return the run's logger, into the log.txt at `path` and onto the console. Raises FileError."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    # A process may train several runs, one after another: each has its own file.
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    try:
        logger.addHandler(LogFile(path, console))
    except OSError as error:
        raise FileError(f"{path}: can't be written: {reason(error)}; make room, or give another run.root") from error
    if console.is_terminal:
        on_screen = RichHandler(console=console, show_time=False, show_level=False, show_path=False, markup=False)
    else:
        on_screen = PlainLines(console)
    logger.addHandler(on_screen)
    tell_log()
    return logger


class BestEffort:
    """Writes that training can do without: a failure is said once, and so is that it works again."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._failing: set[str] = set()

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn an error of writing into a warning. what: a file or a kind of files, for the warning."""
        try:
            yield
        except (OSError, FileError) as error:
            if what not in self._failing:
                self._failing.add(what)
                # A FileError says more than fits here, and has the system's error for its cause.
                why = reason(error.__cause__ or error)
                self._warn(f"{what} can't be written ({why}); training goes on without, and tries again")
        else:
            if what in self._failing:
                self._failing.remove(what)
                self._warn(f"{what} can be written again")


def silent_logger() -> logging.Logger:
    """Return the logger of ranks other than the first, which says nothing."""
    logger = logging.getLogger("adatad.other_ranks")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    return logger


NO_SPEED: Mapping[str, float] = MappingProxyType({})


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

    def show(
        self, step: int, epoch: int, loss: float, rate: float, memory_bytes: int, speed: Mapping[str, float] = NO_SPEED
    ) -> None:
        """Show the values after `step` optimizer steps in all. speed: `Throughput.values`, if it is known."""
        values = f"loss {loss:.3f}  lr {rate:.1e}  memory {memory_bytes / 2**30:.2f} GiB"
        if "tflops_per_second" in speed:
            values += f"  {speed['tflops_per_second']:.3g} TFLOP/s"
        if "mfu" in speed:
            values += f"  MFU {100 * speed['mfu']:.0f} %"
        name = f"epoch {epoch + 1}/{self.epochs}"
        self._bar.update(self._task, completed=step, description=name, note=values)
        now = time.monotonic()
        if self._first_step is None:
            # The first step is slower than all others: it says nothing about the time left.
            self._first_step, self._first_time = step, now
        if not self.console.is_terminal and (step % self.steps_per_epoch == 0 or now - self._line_time >= LINE_SECONDS):
            self._line_time = now
            # Time of training alone, without the evaluations to come.
            left = time_left(now - self._first_time, step - self._first_step, self._total - step)
            line = f"{time.strftime(TIME_OF_DAY)} {name}  step {step}/{self._total}  {values}  left {left}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


MAX_WAIT_SHARE = 0.1
"""Share of an epoch's time above which waiting for data is worth a warning."""


class DataWait:
    """Time that an epoch's steps have waited for data. The first step of a run isn't counted: its loader has only just
    begun."""

    def __init__(self) -> None:
        self.waited_seconds = self.whole_seconds = 0.0
        self._started = self._said = False

    def add(self, waited_seconds: float, whole_seconds: float) -> None:
        """Count a step that took `whole_seconds`, of which it waited for its batch `waited_seconds`."""
        if self._started:
            self.waited_seconds += waited_seconds
            self.whole_seconds += whole_seconds
        self._started = True

    def end_epoch(self) -> str | None:
        """Return a line to log, once in a run, if waiting took too much of the epoch; the next one is counted
        afresh."""
        share = self.waited_seconds / self.whole_seconds if self.whole_seconds else 0.0
        self.waited_seconds = self.whole_seconds = 0.0
        if self._said or share <= MAX_WAIT_SHARE:
            return None
        self._said = True
        return (
            f"{share:.0%} of this epoch's time went into waiting for data: raise data.workers; "
            "`adatad data benchmark SPEC` says what limits and how many are needed"
        )
