"""Say which of several runs is better, by how much and how sure that is, and in what they differ.

adatad compare runs/demo/tia/id0 runs/demo/frozen/id0
adatad compare runs/demo/tia/id* --output compare.html
adatad compare first.json second.json --ground-truth annotations.json --json > compared.json

The first one is the baseline. Differences come with intervals of a paired bootstrap over videos: docs/compare.md says
how to read them. --output draws a page (.html), or the curves alone (.png).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.files import shown
from adatad.printing import print_rows
from adatad.quantities import number

RUN_COLUMNS = ("run", "average mAP, %", "best, %", "untrained, %", "minutes", "memory, GiB")
OUTPUTS = (".html", ".htm", ".png")
MAX_KEYS, MAX_VALUE_CHARACTERS = 14, 28
"""Changed keys of the spec that are shown, and of their values; --json and the page have all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad compare`."""
    parser.add_argument("runs", type=path_arg, nargs="+", metavar="RUN", help="run directories, or detections files")
    parser.add_argument("--group", metavar="KEY=VALUE", help="only of this group of instances (evaluate.groups_by)")
    parser.add_argument(
        "--ground-truth", type=path_arg, metavar="GT", help="score detections anew, against this annotation file"
    )
    parser.add_argument("--subset", help="with --ground-truth: subset that is scored (default validation)")
    parser.add_argument(
        "--tiou", type=number(0, 1), nargs="+", metavar="T", help="with --ground-truth: thresholds (default 0.3 to 0.7)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--output", type=path_arg, metavar="FILE", help="page (.html) or curves (.png) to write")
    parser.set_defaults(action=compare)


def compare(args: argparse.Namespace) -> int:
    """Run `adatad compare`; returns its exit code."""
    _check(args)

    from adatad.files import files_to_write
    from adatad.progress_bar import progress

    inputs = [args.ground_truth] if args.ground_truth else []
    for run in args.runs:
        files = ("metrics.jsonl", "result.json", "spec.yaml", "detections.json") if run.is_dir() else ("",)
        inputs += [run / file for file in files]
    # Before reading, so that a page that can't be written is known at once; and never over an input.
    with files_to_write([args.output] if args.output else [], inputs):
        # After the place is checked: what can't be written at all is said first.
        if args.output and args.output.suffix.lower() not in OUTPUTS:
            raise UserError(f"{args.output}: expected a page (.html) or a picture of curves (.png); name a file so")
        with progress("runs compared"):
            found = _compared(args)
        if args.output:
            _draw(found, args.output)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found)
        if args.output:
            print(args.output)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that don't go together."""
    if args.ground_truth is None:
        given = [name for name in ("subset", "tiou") if getattr(args, name) is not None]
        if given:
            raise UserError(f"--{given[0]}: runs are scored as their spec says; with --ground-truth they are anew")
    elif args.group is not None:
        raise UserError("--group: groups are those of the runs' specs; leave --ground-truth out")
    if args.tiou and (not all(args.tiou) or len(set(args.tiou)) < len(args.tiou)):
        raise UserError("--tiou: thresholds lie above 0 and up to 1, each once")
    if args.output and args.ground_truth and args.output.suffix.lower() == ".png":
        raise UserError(f"{args.output}: detections files have no curves to draw; name a page, such as compare.html")


def _compared(args: argparse.Namespace) -> dict[str, Any]:
    # Inside the bar: matplotlib takes seconds to import, longer than the runs take to read.
    from adatad.report.compare import compare_files, compare_runs

    if args.ground_truth is None:
        return compare_runs(args.runs, args.group)
    subset = "validation" if args.subset is None else args.subset
    return compare_files(args.runs, args.ground_truth, subset, args.tiou or [0.3, 0.4, 0.5, 0.6, 0.7])


def _draw(found: dict[str, Any], path: Path) -> None:
    """Write the curves as a PNG, or the page under any other name."""
    from adatad.report.compare import write_picture
    from adatad.report.compare_page import write_compare_page

    if path.suffix.lower() == ".png":
        write_picture(found, path)
    else:
        write_compare_page(found, path)


def show(found: dict[str, Any]) -> None:
    """Print a comparison on one screen."""
    for line in found["sentences"]:
        print(shown(line))
    for line in found["notes"]:
        print(f"note: {shown(line)}")
    _show_runs(found)
    if found["paired"]:
        _show_differences(found)
    _show_changes(found)


def _show_runs(found: dict[str, Any]) -> None:
    """Print the figures of each run."""
    scores = found["paired"]["scores"] if found["paired"] else [None] * len(found["runs"])
    rows = [
        [
            shown(run["name"]),
            _percent(run["average_mAP"]) + (_interval(own["average_mAP"]) if own else ""),
            _percent(run.get("best_average_mAP")),
            _percent(run.get("untrained_average_mAP")),
            _scaled(run.get("seconds"), 60),
            _scaled(run.get("memory_bytes"), 1 << 30, 2),
        ]
        for run, own in zip(found["runs"], scores, strict=True)
    ]
    # Columns that no run has a figure for only take room.
    columns = [(heading, *cells) for heading, *cells in zip(RUN_COLUMNS, *rows, strict=True) if any(cells)]
    headings, *rows = zip(*columns, strict=True)
    print_rows(headings, rows)


def _show_differences(found: dict[str, Any]) -> None:
    """Print the differences from the baseline by tIoU, in points."""
    paired = found["paired"]
    first = paired["scores"][0]
    columns = [
        ["mAP", "average", *(f"tIoU {tiou}" for tiou in first["mAP"]), "ahead in"],
        [
            f"{shown(found['baseline'])}, %",
            *(_percent(own["value"]) for own in (first["average_mAP"], *first["mAP"].values())),
            "",
        ],
    ]
    for run, difference in zip(found["runs"][1:], paired["differences"], strict=True):
        figures = difference["average_mAP"], *difference["mAP"].values()
        points = [f"{100 * one['value']:+.1f}{_interval(one)}" for one in figures]
        ahead = f"{100 * figures[0]['better']:.0f} % of draws"
        columns.append([f"{shown(run['name'])}, points", *points, ahead])
    headings, *rows = zip(*columns, strict=True)
    print_rows(headings, rows)
    print(f"in brackets: 95 % of {paired['draws']:,} paired draws of {paired['videos']} videos")


def _show_changes(found: dict[str, Any]) -> None:
    """Print the keys of the spec that differ."""
    if not found["changed"]:
        return
    rows = [
        [change["key"], *(shown(value, MAX_VALUE_CHARACTERS) for value in change["values"])]
        for change in found["changed"][:MAX_KEYS]
    ]
    print_rows(["changed key", *(shown(run["name"]) for run in found["runs"])], rows)
    if len(found["changed"]) > MAX_KEYS:
        print(f"and {len(found['changed']) - MAX_KEYS} more keys: --json and the page have all")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _scaled(value: float | None, unit: float, digits: int = 1) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _interval(figure: dict[str, float]) -> str:
    """Return the interval of a figure in percent or points."""
    return f" ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"
