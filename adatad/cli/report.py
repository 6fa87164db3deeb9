"""Draw the page of a run, or of several side by side, or show it live while they train.

adatad report runs/demo/tia/id0                                     # draws its timelines and report.html again
adatad report runs/demo/tia/id0 --serve                             # a live page on this machine
adatad report runs/demo/tia/id0 runs/demo/tia/id1 --output both.html
adatad report runs --serve                                          # all runs below a folder
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adatad.cli.command import path_arg, whole_number
from adatad.errors import UserError
from adatad.files import shown
from adatad.printing import program

MAX_RUNS = 12
"""Runs on a page; more could neither be told apart nor be read while it is looked at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad report`."""
    parser.add_argument(
        "runs", type=path_arg, nargs="+", metavar="RUN",
        help="run directory; with --serve or --output also a folder of runs",
    )  # fmt: skip
    parser.add_argument("--serve", action="store_true", help="show the runs on http://127.0.0.1, live, until Ctrl-C")
    parser.add_argument("--port", type=whole_number(0, 65535), help="port of --serve (default: a free one)")
    parser.add_argument("--output", type=path_arg, metavar="FILE", help="write one page of all runs to this file")
    parser.set_defaults(action=report)


def report(args: argparse.Namespace) -> int:
    """Run `adatad report`; returns its exit code."""
    if args.serve and args.output:
        raise UserError("--serve shows a page, --output writes one: give one of the two")
    if args.port is not None and not args.serve:
        raise UserError("--port: is the port of --serve; give --serve too")
    one_page = args.serve or args.output is not None
    runs = run_directories(args.runs, folders=one_page)
    if args.output and any(_is_run_file(args.output, run) for run in runs):
        raise UserError(f"--output {args.output}: is a file of the run; name another")

    from adatad.spec import load

    # Weights may be elsewhere by now; what the page lacks is said.
    loaded = [(run, load(run / "spec.yaml", check_files=False)) for run in runs]
    if args.serve:
        from adatad.report.serve import serve

        serve(loaded, args.port or 0)
        return 0

    from adatad.report.page import write_page, write_report

    def say(line: str) -> None:
        """Print what couldn't be drawn; the path alone is the output."""
        print(f"{program()}: {shown(line)}", file=sys.stderr)

    if args.output:
        print(write_page(args.output, loaded, say))
    else:
        for run, spec in loaded:
            print(write_report(run, spec, say))
    return 0


def run_directories(paths: Sequence[Path], folders: bool) -> list[Path]:
    """Return the run directories that are named, each once. folders: a folder stands for the newest runs below it.

    Raises UserError for a path that is no run directory.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        runs = [path] if (path / "spec.yaml").is_file() else _runs_below(path) if folders else []
        if not runs:
            raise UserError(f"{path}: is no run directory (it has no spec.yaml); expected runs/<spec name>/id<N>")
        for run in runs:
            # By the path itself: the same run may be named in two ways.
            found.setdefault(Path(os.path.realpath(run)), run)
    if len(found) > MAX_RUNS:
        raise UserError(f"{len(found)} runs are more than a page takes ({MAX_RUNS}); name fewer")
    return list(found.values())


def _runs_below(folder: Path) -> list[Path]:
    """Return the newest runs below a folder, at most MAX_RUNS, by path."""
    runs = []
    for place, folders, files in os.walk(folder):
        if "spec.yaml" in files and ("metrics.jsonl" in files or "owner.txt" in files):
            runs.append(Path(place))
            # What lies in a run, such as checkpoints, has spec.yaml too.
            folders.clear()
    if len(runs) > MAX_RUNS:
        print(f"{program()}: {shown(folder)}: the newest {MAX_RUNS} of {len(runs)} runs", file=sys.stderr)
    newest = sorted(runs, key=lambda run: (run / "spec.yaml").stat().st_mtime, reverse=True)
    return sorted(newest[:MAX_RUNS])


def _is_run_file(output: Path, run: Path) -> bool:
    """Return whether a file to write is one that a run is made of; its report may be written anew."""
    return output.parent.resolve() == run.resolve() and (run / output.name).exists() and output.name != "report.html"
