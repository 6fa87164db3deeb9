"""What a run says while it trains: its log, progress, metrics, and how long it waits for data."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.logging import RichHandler
from torch.utils.tensorboard import SummaryWriter

from adatad.files import FileError, reason
from adatad.printing import LOGGER, tell_log
from adatad.progress_bar import LINE_SECONDS, TIME_OF_DAY, new_bar, showing, time_left


class LogFile(logging.handlers.WatchedFileHandler):
    """log.txt. Lines that can't be written are lost, which is said once; a file that was deleted is made anew."""

    def __init__(self, path: Path, console: Console):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._console, self._failing = console, False

    def emit(self, record: logging.LogRecord) -> None:
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
        # Closing flushes once more what the disk didn't take.
        with suppress(OSError):
            super().close()


class PlainLines(logging.Handler):
    """Lines with the time of day, as they are, for what isn't a terminal."""

    def __init__(self, console: Console):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", TIME_OF_DAY))
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def log_to(path: Path, console: Console) -> logging.Logger:
    """Return the run's logger, into the log.txt at `path` and onto the console. Raises FileError."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
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


class Dispensable:
    """Writes that training can do without: what fails is said once, tried again the next time, and said when it works
    again."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._failing: set[str] = set()

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """what: a file or a kind of files, for the warning."""
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


RETRY_SECONDS = 60
MAX_PENDING_LINES = 100_000
"""Of metrics.jsonl, kept while they can't be written: about 100 MB."""


class Metrics:
    """metrics.jsonl and tensorboard/ of a run directory. Only the first rank makes one."""

    def __init__(self, run_directory: Path, first_step: int, dispensable: Dispensable):
        self._path, self._folder, self._dispensable = run_directory / "metrics.jsonl", run_directory, dispensable
        self._pending: list[bytes] = []
        self._board: SummaryWriter | None = None
        self._retry_at = 0.0
        _silence_board_threads()
        # A resumed run repeats the steps after its checkpoint: TensorBoard drops what it had of them.
        self._open_board(first_step + 1 if first_step else None)

    def write(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Scalars, or dictionaries of scalars to any depth, of one moment; lists go to the JSON lines alone."""
        line = json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n"
        self._pending = [*self._pending, line.encode()][-MAX_PENDING_LINES:]
        with self._dispensable.writing("metrics.jsonl"):
            self._append()
        self._to_board(lambda board: [board.add_scalar(tag, scalar, step) for tag, scalar in _scalars(kind, values)])

    def text(self, name: str, text: str) -> None:
        self._to_board(lambda board: board.add_text(name, f"```yaml\n{text}\n```"))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """image: uint8 [height, width, 3]."""
        self._to_board(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    def close(self) -> None:
        self._to_board(lambda board: board.close())
        self._board = None

    def _append(self) -> None:
        """All lines or none: half a line would join with the next one."""
        with self._path.open("ab", buffering=0) as file:
            size, content = os.fstat(file.fileno()).st_size, b"".join(self._pending)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
        self._pending = []

    def _open_board(self, purge_step: int | None = None) -> None:
        with self._dispensable.writing("tensorboard"):
            self._board = SummaryWriter(self._folder / "tensorboard", purge_step=purge_step)

    def _to_board(self, action: Any) -> None:
        if self._board is None and time.monotonic() >= self._retry_at:
            self._open_board()
        if self._board is None:
            return
        with self._dispensable.writing("tensorboard"):
            try:
                action(self._board)
            except OSError:
                # Its thread has ended: another writer begins another file.
                self._board, self._retry_at = None, time.monotonic() + RETRY_SECONDS
                raise


def memory_values(allocated: int, device: torch.device) -> dict[str, int]:
    """Peak bytes as metrics name them: what tensors took, and on a GPU what the allocator held for them, with gaps."""
    reserved = {"reserved_bytes": torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}
    return {"memory_bytes": allocated, **reserved}


def _silence_board_threads() -> None:
    """A full disk ends TensorBoard's thread with an error, which its writer raises again: no traceback besides."""
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            previous(args)

    hook.of_board = True
    if not getattr(previous, "of_board", False):
        threading.excepthook = hook


def _scalars(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers inside a value, each with the names that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _scalars(f"{tag}/{name}", inner)
    elif isinstance(value, (int, float)):
        yield tag, value


TOO_MUCH = 0.1
"""Share of the time of steps above which waiting is worth a warning."""


class DataWait:
    """Sums over the steps of an epoch. The first step of a run isn't counted: its loader has only just begun."""

    def __init__(self) -> None:
        self.waited_seconds = self.whole_seconds = 0.0
        self._started = self._said = False

    def add(self, waited_seconds: float, whole_seconds: float) -> None:
        """A step that took `whole_seconds`, of which it waited for its batch `waited_seconds`."""
        if self._started:
            self.waited_seconds += waited_seconds
            self.whole_seconds += whole_seconds
        self._started = True

    def end_epoch(self) -> str | None:
        """Return a line to log, once in a run, if waiting took too much of the epoch; the next one is counted
        afresh."""
        share = self.waited_seconds / self.whole_seconds if self.whole_seconds else 0.0
        self.waited_seconds = self.whole_seconds = 0.0
        if self._said or share <= TOO_MUCH:
            return None
        self._said = True
        return (
            f"{share:.0%} of this epoch's time went into waiting for data: raise data.workers; "
            "`adatad data benchmark SPEC` says what limits and how many are needed"
        )
