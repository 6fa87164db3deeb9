"""Several runs side by side: mAP over the steps of training, and a table of where they ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adatad.errors import UserError
from adatad.report.page import by_step, curve, read_lines
from adatad.report.timelines import to_png


class CompareError(UserError):
    """A run directory without results, or without those asked for; the message names it."""


def compare(runs: Sequence[Path], picture: Path, group: str | None = None) -> None:
    """Print the results of finished runs and draw their mAP curves into a PNG file.

    group: a name from their "groups", whose mAP is meant then; None for that of all instances.
    """
    series: dict[str, tuple[list[int], list[float]]] = {}
    table = Table("run", "average mAP, %", "untrained, %", "minutes")
    for run in runs:
        evaluations = by_step(read_lines(run / "metrics.jsonl"), "evaluation")
        if not evaluations or not (run / "result.json").is_file():
            raise CompareError(f"{run}: holds no evaluation (metrics.jsonl, result.json)")
        result = json.loads((run / "result.json").read_text())
        untrained = result["untrained_average_mAP"]
        if group is not None:
            evaluations, result = [_of_group(line, group, run) for line in evaluations], _of_group(result, group, run)
            untrained = evaluations[0]["average_mAP"] if evaluations[0]["step"] == 0 else None
        name = f"{run.parent.name}/{run.name}"
        series[name] = ([line["step"] for line in evaluations], [100 * line["average_mAP"] for line in evaluations])
        table.add_row(
            name, f"{100 * result['average_mAP']:.2f}", "" if untrained is None else f"{100 * untrained:.2f}",
            f"{result['seconds'] / 60:.1f}",
        )  # fmt: skip
    Console().print(table)
    title = "average mAP on validation, %" if group is None else f"average mAP on validation, {group}, %"
    picture.write_bytes(to_png(curve(title, series, marker="o")))


def _of_group(values: dict[str, Any], group: str, run: Path) -> dict[str, Any]:
    """An evaluation with the figures of one group in the place of those of all instances."""
    groups = values.get("groups", {})
    if group not in groups:
        there = ", ".join(groups) or "none: set evaluate.groups_by"
        raise CompareError(f"{run}: has no group {group!r}; it has {there}")
    return {**values, **groups[group]}
