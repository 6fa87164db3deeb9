"""Golden cases under a folder: found, run, and printed as a table.

A case of the model is a folder with a case.json; a case of data, post-processing or evaluation is a JSON file, whose
name tells its form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adatad.dev.parity.comparison import (
    NOT_COMPUTED,
    TOLERANCES,
    UNREADABLE,
    Comparison,
    described,
    largest,
    rows_of_cases,
)
from adatad.dev.parity.golden_cases import FILES, CaseError, files_named, find_cases, read_case, read_object
from adatad.dev.parity.map_file import run_epic_map, run_map, run_recall
from adatad.dev.parity.model_case import run_case
from adatad.dev.parity.post_file import run_nms, run_post
from adatad.dev.parity.transforms_file import run_transforms
from adatad.dev.parity.windows_file import run_windows
from adatad.files import shown
from adatad.spec.schema import MemorySpec
from adatad.training.optimizer import learning_rate

LOWEST_RATE = 1e-8
"""The end of the reference's cosine for cases that don't name one."""


def verify(folder: Path, failures_only: bool = False, memory: MemorySpec | None = None) -> int:
    """Print a row for each case and quantity, computed under a memory policy (default: none).

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
    # Lines on damaged cases come after the table, on stderr, so that neither hides the other.
    rows, lines = [], []
    for case in (*models, *files):
        try:
            rows += run_data_file(case) if case in files else run_case(read_case(case), memory)
        except Exception as error:  # a damaged file can raise anything; the others are compared all the same
            text = described(error)
            lines.append(text if str(case) in text else f"{case}: can't be run: {text}")
    # Names and messages of cases may look like rich's markup.
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
    # An unreadable case weighs more: nothing was shown of it.
    return 2 if unreadable else int(over > 0)


def table(rows: list[Comparison], failures_only: bool) -> Table:
    """Return the rows as a table; with `failures_only`, those that failed."""
    table = Table("case", "quantity", "largest error", "tolerance", "")
    for row in rows:
        if failures_only and row.passed:
            continue
        figures = ("", "") if row.verdict else (f"{row.error:.2e}", f"{row.tolerance:.0e}")
        verdict = row.verdict or ("ok" if row.passed else "OVER")
        table.add_row(shown(row.case), shown(row.quantity), *figures, verdict, style=None if row.passed else "red")
    return table


def find_data_files(folder: Path) -> list[Path]:
    """Return the JSON files that are cases, at any depth under a folder."""
    return files_named(folder, NAMES)


def run_data_file(path: Path) -> list[Comparison]:
    """Return every comparison of a file. Raises CaseError or FileError where it can't be read, or holds none."""
    rows = run_content(path.name, read_object(path), path.parent)
    if not rows:
        raise CaseError(f"{path}: holds nothing to compare: none of the lists of cases that a {path.name} has")
    return rows


def run_content(name: str, content: dict[str, Any], folder: Path) -> list[Comparison]:
    """Return every comparison of the content of a file called `name`. folder: where its arrays lie, if it has any."""
    return run_transforms(content, folder) if name == TRANSFORMS else RUNNERS[name](content)


def run_rates(content: dict[str, Any]) -> list[Comparison]:
    """Return the comparisons of an lr.json: learning rates by step."""
    return rows_of_cases(content.get("cases", ()), _rates, "schedule")


def _rates(case: dict[str, Any]) -> Iterator[Comparison]:
    # In steps, as the schedule counts.
    warmup, total = (case[key] * case["steps_per_epoch"] for key in ("warmup_epochs", "max_epochs"))
    lowest = case.get("min_lr", LOWEST_RATE)
    errors = [
        abs(learning_rate(step, base, warmup, total, lowest) - rate)
        for step, rates in zip(case["steps"], case["lrs"], strict=True)
        for base, rate in zip(case["base_lrs"], rates, strict=True)
    ]
    yield Comparison(case["name"], "learning rates", largest(errors), TOLERANCES["learning_rate"])


RUNNERS: dict[str, Callable[[dict[str, Any]], list[Comparison]]] = {
    "nms.json": run_nms,
    "map.json": run_map,
    "map_epic.json": run_epic_map,
    "recall.json": run_recall,
    "post.json": run_post,
    "lr.json": run_rates,
    "windows.json": run_windows,
}
TRANSFORMS = "transforms.json"
NAMES = (*RUNNERS, TRANSFORMS)
"""Names of the files that are cases, wherever they lie under a folder."""
