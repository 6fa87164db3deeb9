"""The run's log, on the terminal and with times in log.txt; and writes that training can do without on a full disk."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from adatad.files import FileError, reason
from adatad.printing import LOGGER, tell_log
from adatad.progress_bar import TIME_OF_DAY


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
    """The run's logger, into the log.txt at `path` and onto the console. Raises FileError."""
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
