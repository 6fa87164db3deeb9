"""All golden cases under a folder, as a table."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adatad.parity.cases import find_cases, read_case
from adatad.parity.compare import Row
from adatad.parity.data_files import NAMES, find_data_files, run_data_file
from adatad.parity.model_case import run_case
from adatad.spec.schema import MemorySpec


def verify(folder: Path, failures_only: bool = False, memory: MemorySpec | None = None) -> int:
    """Print a row a case and quantity, computed under a memory policy (default: none).

    Returns 0 if all are within tolerance, 1 if not, 2 if there is no case.
    """
    if not folder.is_dir():
        print(f"{folder}: no such folder", file=sys.stderr)
        return 2
    models, files = find_cases(folder), find_data_files(folder)
    if not models and not files:
        print(
            f"{folder}: holds no case: neither a folder with case.json, weights.npz, inputs.npz, ... "
            f"nor a file of {', '.join(NAMES)}",
            file=sys.stderr,
        )
        return 2
    rows, unreadable = [], []
    for case in (*models, *files):
        try:
            rows += run_data_file(case) if case in files else run_case(read_case(case), memory)
        except Exception as error:  # Whatever a file's content leads to; the others are compared all the same.
            unreadable.append(f"{case}: can't be run: {type(error).__name__}: {error}")
    # Names and messages may hold what would be markup.
    console = Console(markup=False, emoji=False)
    console.print(table(rows, failures_only))
    for line in unreadable:
        console.print(line, style="red")
    over = [row for row in rows if not row.passed]
    count = f"{len(models)} cases, {len(files)} files"
    console.print(f"{count}, {len(rows)} comparisons, {len(over)} over tolerance, {len(unreadable)} unreadable")
    return 1 if over or unreadable else 0


def table(rows: list[Row], failures_only: bool) -> Table:
    table = Table("case", "quantity", "largest error", "tolerance", "")
    for row in rows:
        if not (failures_only and row.passed):
            style = None if row.passed else "red"
            verdict = "ok" if row.passed else "OVER"
            table.add_row(row.case, row.quantity, f"{row.error:.2e}", f"{row.tolerance:.0e}", verdict, style=style)
    return table
