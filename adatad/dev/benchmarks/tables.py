"""Output of every suite: tables, and a last line that says which bars weren't met."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[3]
"""The checkout."""
WIDTH = 160
"""Characters of a line: tables are read in files too, where no terminal tells a width."""


@dataclass(frozen=True)
class Result:
    """One figure of a suite beside its bar (None: no bar) and what the reference takes (None: not known)."""

    name: str
    value: float
    bar: float | None = None
    reference: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """True if the bar is met, or there is none."""
        return self.bar is None or self.value <= self.bar


class Sheet(NamedTuple):
    """A table whose cells are text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def show_sheet(sheet: Sheet) -> None:
    """Print a table of text."""
    table = Table(*sheet.columns, title=sheet.title, title_justify="left")
    for row in sheet.rows:
        table.add_row(*row)
    Console(width=WIDTH).print(table)


def show(title: str, results: list[Result]) -> None:
    """Print a table of results, in red where a bar isn't met."""
    table = Table("", "measured", "at most", "reference", "", title=title, title_justify="left")
    for result in results:
        # Two digits: bars are ratios, GiB or percent, and no figure is sure beyond that.
        numbers = ["" if x is None else f"{x:.2f}" for x in (result.value, result.bar, result.reference)]
        table.add_row(result.name, *numbers, result.note, style=None if result.passed else "red")
    Console(width=WIDTH).print(table)


def verdict(results: list[Result]) -> int:
    """Print which bars weren't met, and return the exit code: 1 if there is one."""
    # Named at the end: the table may be longer than a screen.
    missed = [result.name for result in results if not result.passed]
    print(f"not met: {', '.join(missed)}" if missed else "all bars met")
    return 1 if missed else 0
