"""Comparison of runs: curves of mAP over the steps of training, and a table of the final values."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from adatad.errors import UserError
from adatad.files import FileError, files_to_write, shown, write_bytes
from adatad.printing import program
from adatad.report.page import curve
from adatad.report.run_files import Record, by_step, is_number, read_metrics, read_result
from adatad.report.timelines import to_png


class CompareError(UserError):
    """Raised for a run directory without results, or without those asked for; the message names it."""


def compare(runs: Sequence[Path], picture: Path, group: str | None = None) -> Table:
    """Draw the mAP curves of finished runs into a PNG file, and return a table of their final values.

    group: a name from their "groups" whose mAP is compared; None for that of all instances. Raises CompareError.
    """
    series: dict[str, tuple[list[int], list[float]]] = {}
    table = Table("run", "average mAP, %", "untrained, %", "minutes")
    # A run that is given twice would be drawn over itself.
    names = _names(dict.fromkeys(runs))
    # Before reading, so that a picture that can't be written is known at once; and never over an input.
    with files_to_write([picture], [run / file for run in names for file in ("metrics.jsonl", "result.json")]):
        read = {run: _read(run) for run in names}
    for run, (evaluations, result) in read.items():
        name, untrained = names[run], result["untrained_average_mAP"]
        if group is not None:
            evaluations, result = [_of_group(line, group, run) for line in evaluations], _of_group(result, group, run)
            # result.json has that of all instances alone; the first evaluation may be before training.
            untrained = evaluations[0]["average_mAP"] if evaluations[0]["step"] == 0 else None
        series[name] = ([line["step"] for line in evaluations], [100 * line["average_mAP"] for line in evaluations])
        table.add_row(
            shown(name), f"{100 * result['average_mAP']:.2f}", "" if untrained is None else f"{100 * untrained:.2f}",
            "" if result["seconds"] is None else f"{result['seconds'] / 60:.1f}",
        )  # fmt: skip
    title = "average mAP on validation, %" if group is None else f"average mAP on validation, {group}, %"
    write_bytes(picture, to_png(curve(title, series, marker="o")))
    return table


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """Return a short name for each run: its last two folders, or the path as given if two names would be equal."""
    absolute = {run: Path(os.path.abspath(run)) for run in runs}
    short = {run: f"{path.parent.name}/{path.name}" for run, path in absolute.items()}
    names = list(short.values())
    return {run: name if names.count(name) == 1 else str(run) for run, name in short.items()}


def _read(run: Path) -> tuple[list[Record], Record]:
    """Read the evaluations by step and the result of a run; report on stderr which lines of metrics are left out."""
    if not run.is_dir():
        raise CompareError(f"{run}: is no run directory; expected runs/<spec name>/id<N>")
    try:
        metrics = read_metrics(run / "metrics.jsonl", ())
        result = read_result(run / "result.json")
    except FileError as error:
        raise CompareError(f"{run}: holds no evaluation that can be read: {error}") from error
    if not metrics.evaluations:
        raise CompareError(f"{run}: holds no evaluation (metrics.jsonl)")
    if line := metrics.note(run / "metrics.jsonl"):
        print(f"{program()}: {shown(line)}", file=sys.stderr)
    return by_step(metrics.evaluations), result


def _of_group(values: dict[str, Any], group: str, run: Path) -> dict[str, Any]:
    """Return an evaluation with one group's figures in the place of those of all instances."""
    groups = values.get("groups")
    groups = groups if isinstance(groups, dict) else {}
    if not isinstance(groups.get(group), dict) or not is_number(groups[group].get("average_mAP")):
        there = ", ".join(map(shown, groups)) or "none: set evaluate.groups_by"
        raise CompareError(f"{run}: has no group {group!r}; it has {there}")
    return {**values, **groups[group]}
