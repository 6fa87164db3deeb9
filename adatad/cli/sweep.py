"""Train a spec once for each line of a list of settings, several runs at a time on this machine, and print a table.

adatad sweep rates.txt configs/demo/tia.yaml --jobs 2

A line of the list: optimizer.backbone.custom.0.lr=2e-4 train.seed=1 (comments begin with #). Each line becomes a run
with an id of its own. With several GPUs each run has one. Started again, it goes on with what is unfinished; Ctrl-C
stops all runs, which save. Exit code 1 if a run failed; the others go on.
"""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from adatad.cli.arguments import (
    add_device_argument,
    add_engine_arguments,
    add_spec_arguments,
    overrides_from,
    spec_path,
)
from adatad.cli.command import INTERRUPTED, path_arg, whole_number
from adatad.printing import print_table as show_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad sweep`."""
    parser.add_argument("list", type=path_arg, metavar="LIST", help="file with the settings of a run a line")
    add_spec_arguments(parser, with_id=False)
    add_engine_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--jobs", type=whole_number(1, 1_000), default=1, metavar="N", help="runs at a time (1)")
    parser.set_defaults(action=sweep)


def sweep(args: argparse.Namespace) -> int:
    """Run `adatad sweep`; returns its exit code."""
    from adatad.progress_bar import progress
    from adatad.training.local_sweep import plan_sweep, run_sweep

    file, overrides = spec_path(args.spec), overrides_from(args)
    runs = plan_sweep(args.list, file, overrides, args.overlays)
    # The same options again, for `adatad train` of each run; --engine and --deepspeed are among the overrides.
    arguments = [file, *(f"--overlay={overlay}" for overlay in args.overlays)]
    arguments += ["--set", *overrides] if overrides else []
    # A job system's SIGTERM ends the sweep as Ctrl-C does: the runs it started get one too, and save.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with progress("runs ended", len(runs)) as bar:
            failed = run_sweep(runs, arguments, args.jobs, bar.update)
    except KeyboardInterrupt:
        print("stopped: each run has saved its last step; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    print_table(runs, failed)
    for run in failed:
        print(f"id{run.spec.run.id} failed ({run.line}): {run.log}", file=sys.stderr)
    return 1 if failed else 0


def print_table(runs: list, failed: list) -> None:
    """Print each run's settings, as its own spec has them, and the best average mAP."""
    from rich.table import Table

    from adatad.training.local_sweep import settings_of

    # One column for each key that any line sets, in the order of their first use.
    keys = list(dict.fromkeys(word.partition("=")[0] for run in runs for word in run.overrides))
    table = Table("id", *keys, "best average mAP, %")
    for run in runs:
        # A dash where a run has ended without an evaluation.
        best = "failed" if run in failed else "-" if run.best is None else f"{100 * run.best:.2f}"
        table.add_row(str(run.spec.run.id), *settings_of(run, keys), best)
    show_table(table)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
