"""Several runs side by side: mAP over the steps of training, and a table of where they ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adatad.errors import UserError
from adatad.report.page import by_step, curve, read_lines
from adatad.report.timelines import to_png


class CompareError(UserError):
    """A run directory without results; the message names it."""


def compare(runs: Sequence[Path], picture: Path) -> None:
    """Print the results of finished runs and draw their mAP curves into a PNG file."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    table = Table("run", "average mAP, %", "untrained, %", "minutes")
    for run in runs:
        evaluations = by_step(read_lines(run / "metrics.jsonl"), "evaluation")
        if not evaluations or not (run / "result.json").is_file():
            raise CompareError(f"{run}: holds no evaluation (metrics.jsonl, result.json)")
        result = json.loads((run / "result.json").read_text())
        name = f"{run.parent.name}/{run.name}"
        series[name] = ([line["step"] for line in evaluations], [100 * line["average_mAP"] for line in evaluations])
        untrained = result["untrained_average_mAP"]
        table.add_row(
            name, f"{100 * result['average_mAP']:.2f}", "" if untrained is None else f"{100 * untrained:.2f}",
            f"{result['seconds'] / 60:.1f}",
        )  # fmt: skip
    Console().print(table)
    picture.write_bytes(to_png(curve("average mAP on validation, %", series, marker="o")))
