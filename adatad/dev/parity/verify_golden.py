"""All golden cases under a folder, as a table."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adatad.dev.parity.comparison import NOT_COMPUTED, UNREADABLE, Comparison, described
from adatad.dev.parity.data_files import NAMES, find_data_files, run_data_file
from adatad.dev.parity.golden_cases import FILES, CaseError, find_cases, read_case
from adatad.dev.parity.model_case import run_case
from adatad.files import shown
from adatad.spec.schema import MemorySpec


def verify(folder: Path, failures_only: bool = False, memory: MemorySpec | None = None) -> int:
    """Print a row a case and quantity, computed under a memory policy (default: none).

    Returns 0 if all are within tolerance, 1 if one isn't, 2 if a case can't be read. Raises CaseError where there is no
    case.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a folder of cases")
    models, files = find_cases(folder), find_data_files(folder)
    if not models and not files:
        raise CaseError(
            f"{folder}: holds no case: neither a folder with {', '.join(FILES)} nor a file of {', '.join(NAMES)}"
        )
    rows, lines = [], []
    for case in (*models, *files):
        try:
            rows += run_data_file(case) if case in files else run_case(read_case(case), memory)
        except Exception as error:  # Whatever a file's content leads to; the others are compared all the same.
            text = described(error)
            lines.append(text if str(case) in text else f"{case}: can't be run: {text}")
    # Names and messages may hold what would be markup.
    console = Console(markup=False, emoji=False)
    if rows:
        console.print(table(rows, failures_only))
    over = sum(not row.passed and row.verdict != UNREADABLE for row in rows)
    unreadable = len(lines) + sum(row.verdict == UNREADABLE for row in rows)
    compared = sum(not row.verdict for row in rows)
    print(
        f"{len(models)} cases, {len(files)} files, {compared} comparisons, {over} over tolerance, "
        f"{sum(row.verdict == NOT_COMPUTED for row in rows)} not computed, {unreadable} unreadable"
    )
    for line in lines:
        print(shown(line), file=sys.stderr)
    return 2 if unreadable else int(over > 0)


def table(rows: list[Comparison], failures_only: bool) -> Table:
    table = Table("case", "quantity", "largest error", "tolerance", "")
    for row in rows:
        if failures_only and row.passed:
            continue
        figures = ("", "") if row.verdict else (f"{row.error:.2e}", f"{row.tolerance:.0e}")
        verdict = row.verdict or ("ok" if row.passed else "OVER")
        table.add_row(shown(row.case), shown(row.quantity), *figures, verdict, style=None if row.passed else "red")
    return table
