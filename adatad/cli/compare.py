"""Draw the mAP curves of several runs into one picture, and print where they ended.

adatad compare runs/demo/tia/id0 runs/demo/tia/id1 --output curves.png
"""

from __future__ import annotations

import argparse

from adatad.cli.command import path_arg
from adatad.printing import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad compare`."""
    parser.add_argument("runs", type=path_arg, nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--group", metavar="KEY=VALUE", help="only of this group of instances (evaluate.groups_by)")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="PNG file to write")
    parser.set_defaults(action=compare)


def compare(args: argparse.Namespace) -> int:
    """Run `adatad compare`; returns its exit code."""
    from adatad.progress_bar import progress

    with progress("runs compared"):
        from adatad.report.compare import compare as compare_runs

        table = compare_runs(args.runs, args.output, args.group)
    print_table(table)
    print(args.output)
    return 0
