"""Where a run and its jobs stand: states, step, loss, time left, how attempts ended, checkpoint, errors by rank.

python tools/status.py runs/thumos/g_1536x224_adapter/id0 --watch
"""

from __future__ import annotations

import argparse
import sys
import time

from adatad.cluster.status import report
from adatad.command import path_arg, run

WATCH_SECONDS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_arg, metavar="RUN_DIR", help="runs/<spec name>/id<N>")
    parser.add_argument(
        "--watch", action="store_true", help="again and again, as long as a job of the run is in the queue"
    )
    args = parser.parse_args()
    while True:
        lines, going_on = report(args.run)
        if args.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print("\n".join(lines), flush=True)
        if not (args.watch and going_on):
            return 0
        time.sleep(WATCH_SECONDS)


if __name__ == "__main__":
    run(main)
