"""The runs of `adatad evaluate --runs`: the spread of their mAP, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from adatad.errors import UserError
from adatad.files import files_to_write, shown, write_json
from adatad.printing import print_table, program


def evaluate_runs(args: argparse.Namespace) -> int:
    """Print mean and spread of several runs' last and best epochs; returns the exit code."""
    from adatad.report.several_runs import run_files, spread_of_runs

    if args.ground_truth is not None:
        raise UserError(f"--runs: takes runs alone, which know what they are scored on; leave {args.ground_truth} out")
    with files_to_write([args.output] if args.output else [], run_files(args.runs)):
        found = spread_of_runs(args.runs)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _show_runs(found["runs"])
        _show_spread(found)
    # Whatever becomes of the file, the figures have been seen.
    sys.stdout.flush()
    for line in found["notes"]:
        print(f"{program()}: note: {shown(line)}", file=sys.stderr)
    if args.output:
        write_json(args.output, found)
    return 0


def _show_runs(runs: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("run", "last epoch, %", "best epoch, %")
    for run in runs:
        table.add_row(shown(run["run"]), *(_average(run[which]) for which in ("last", "best")))
    print_table(table)


def _average(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "-"
    epoch = "" if evaluation["epoch"] is None else f" ({evaluation['epoch']})"
    return f"{100 * evaluation['average_mAP']:.2f}{epoch}"


def _show_spread(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("epoch", "mAP", "mean", "lowest", "highest")
    for which in ("last", "best"):
        half = found[which]
        if half is None:
            continue
        table.add_row(which, "average", *_cells(half["average_mAP"]), style="bold")
        for tiou, spread in half["mAP"].items():
            table.add_row("", f"tIoU {tiou}", *_cells(spread))
        table.add_section()
    print_table(table)
    print(f"mean ± standard deviation (n - 1) over {len(found['runs'])} runs, in %")


def _cells(spread: dict[str, Any]) -> list[str]:
    mean, deviation, low, high = (
        100 * spread[key] for key in ("mean", "standard_deviation", "minimum", "maximum")
    )  # fmt: skip
    return [f"{mean:.2f} ± {deviation:.2f}", f"{low:.2f}", f"{high:.2f}"]
