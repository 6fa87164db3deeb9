"""Output of commands: the program's name in errors, tables, and streams that outlast their readers.

When stdout or stderr can't be written any more (a closed pipe, a terminal that has gone, a full disk), printing is
given up, and the command goes on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# Parent of all loggers of the package; a run gives it a log file.
LOGGER = "adatad"
_untold: list[str] = []
_program: str | None = None


def name_program(name: str) -> None:
    """Set the name, such as "adatad train", that errors of this process begin with."""
    global _program
    _program = name


def program() -> str:
    """Return the name of the running command; the script's if none was set."""
    return _program or sys.argv[0]


def print_table(table: Table, file: IO[str] | None = None) -> None:
    """Print a table whose cells are data: without markup, and without cutting cells on a narrow terminal."""
    from rich.console import Console  # takes long, and errors are printed without it

    console = Console(markup=False, emoji=False, highlight=False, file=file)
    # rich cuts cells to the terminal's width; wider lines that the terminal wraps keep all of them.
    needed = console.measure(table, options=console.options.update(width=1_000)).minimum
    console.width = max(console.width, needed)
    console.print(table)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns without frames, of which three tables fit on a screen, below an empty line; nothing is cut or
    broken."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    print()
    for cells in (headings, *rows):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())


class LastingStream:
    """A text stream that drops its text once the stream below fails."""

    def __init__(self, stream: Any, name: str):
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        if not self._lost:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream below, if it still works."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def writelines(self, lines: Any) -> None:
        """Write lines one by one."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Return whether this is a terminal that still works."""
        with suppress(OSError, ValueError):
            return not self._lost and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        self._lost = True
        with suppress(OSError, ValueError):
            # Python would flush the buffer again at exit, and fail: let that go to /dev/null.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _untold.append(f"{self._name} can't be written any more ({why}): nothing is printed there from now on")
        tell_log()


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let no error of writing to stdout or stderr end the command while the context lasts."""
    before = sys.stdout, sys.stderr
    # Nested calls leave the outer one's streams in place.
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is not None and not isinstance(stream, LastingStream):
            setattr(sys, name, LastingStream(stream, name))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def tell_log() -> None:
    """Write into the run's log file, if there is one by now, what couldn't be said on the terminal."""
    files = [handler for handler in logging.getLogger(LOGGER).handlers if isinstance(handler, logging.FileHandler)]
    # Straight to the files' handlers: the logger's others print on the stream that failed.
    while files and _untold:
        # By hand: a logger would ask all of its handlers.
        record = logging.LogRecord(LOGGER, logging.WARNING, __file__, 0, _untold.pop(0), None, None)
        for handler in files:
            handler.handle(record)
