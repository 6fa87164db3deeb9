"""What every suite prints: a table, a last line that says which bars weren't met, and an exit code."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


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
        return self.bar is None or self.value <= self.bar


def show(title: str, results: list[Result]) -> None:
    table = Table("", "measured", "at most", "reference", "", title=title, title_justify="left")
    for result in results:
        numbers = ["" if x is None else f"{x:.2f}" for x in (result.value, result.bar, result.reference)]
        table.add_row(result.name, *numbers, result.note, style=None if result.passed else "red")
    Console(width=140).print(table)


def verdict(results: list[Result]) -> int:
    """Prints one line; 1 if a bar wasn't met."""
    missed = [result.name for result in results if not result.passed]
    print(f"not met: {', '.join(missed)}" if missed else "all bars met")
    return 1 if missed else 0
