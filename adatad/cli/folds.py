"""The folds of `adatad train SPEC --folds K`: train what is unfinished, score all of it together, and print a table."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType
from typing import Any

from adatad.cli.arguments import overrides_from, spec_path
from adatad.cli.command import INTERRUPTED
from adatad.errors import UserError
from adatad.files import shown
from adatad.printing import print_table


def train_folds(args: argparse.Namespace) -> int:
    """Train K runs, each scored on its own share of the videos; returns the exit code, 1 if a run failed."""
    of_one_run = {"--resume": args.resume is not None, "--force": args.force, "--id": args.id is not None}
    for option, given in of_one_run.items():
        if given:
            raise UserError(
                f"--folds: {option} belongs to one run; folds have ids of their own, and go on with what is unfinished"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--folds: each fold is trained by one process, one after another; start it without a launcher")

    from adatad.progress_bar import progress
    from adatad.training.folds import RESULT, plan_folds, score_folds
    from adatad.training.local_sweep import run_sweep

    file, overrides = spec_path(args.spec), overrides_from(args)
    folds = plan_folds(file, overrides, args.overlays, args.folds)
    if folds.left_out:
        print(f"note: {folds.left_out} videos without an instance are in no fold", file=sys.stderr)
    # The same options again, for `adatad train` of each run; --engine and --deepspeed are among the overrides.
    arguments = [file, *(f"--overlay={overlay}" for overlay in args.overlays)]
    arguments += ["--set", *overrides] if overrides else []
    # A job system's SIGTERM ends the folds as Ctrl-C does: the run that they started gets one too, and saves.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with progress("folds trained", len(folds.runs)) as bar:
            failed = run_sweep(folds.runs, arguments, 1, bar.update)
    except KeyboardInterrupt:
        print("stopped: the fold has saved its last step; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    for run in failed:
        print(f"{run.line} failed, {run.folder}: {run.log}", file=sys.stderr)
    if failed:
        return 1
    _print_table(score_folds(folds))
    print(f"{'result':12} {shown(folds.folder / RESULT)}")
    return 0


def _print_table(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("fold", "run", "videos", "instances", "epochs", "last epoch, %", "best epoch, %")
    for number, fold in enumerate(result["folds"]):
        counts = (str(fold[key]) for key in ("videos", "instances", "epochs"))
        best, epoch = fold["best_average_mAP"], fold["best_epoch"]
        cells = "" if best is None else f"{100 * best:.2f}" + ("" if epoch is None else f" ({epoch})")
        table.add_row(str(number), shown(fold["run"]), *counts, f"{100 * fold['average_mAP']:.2f}", cells)
    mean, spread = 100 * result["mean_average_mAP"], 100 * result["standard_deviation"]
    table.add_row("mean", "", "", "", "", f"{mean:.2f} ± {spread:.2f}")
    table.add_row("pooled", "", "", "", "", f"{100 * result['pooled']['average_mAP']:.2f}", style="bold")
    print_table(table)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
