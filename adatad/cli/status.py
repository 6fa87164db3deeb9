"""Say where a run and its jobs stand: states, step, loss, time left, attempts with their ends, checkpoint, errors.

adatad status runs/thumos/g_1536x224_adapter/id0 --watch
"""

from __future__ import annotations

import argparse
import sys
import time

from adatad.cli.command import path_arg

WATCH_SECONDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad status`."""
    parser.add_argument("run", type=path_arg, metavar="RUN", help="runs/<spec name>/id<N>, or a folder of runs")
    parser.add_argument(
        "--watch", action="store_true", help="again and again, as long as a job of the run is in the queue"
    )
    parser.set_defaults(action=status)


def status(args: argparse.Namespace) -> int:
    """Run `adatad status`; returns its exit code."""
    from adatad.cluster.status import report

    # Without --watch once. Files and the queue are read anew each time, so that nothing is kept between.
    while True:
        lines, going_on = report(args.run)
        if args.watch and sys.stdout.isatty():
            # Clear the screen, and go to its top.
            print("\033[2J\033[H", end="")
        print("\n".join(lines), flush=True)
        if not (args.watch and going_on):
            return 0
        time.sleep(WATCH_SECONDS)
