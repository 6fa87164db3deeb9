"""Draw the timelines and report.html of a run directory again.

python tools/report.py runs/demo/tia/id0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adatad.command import run
from adatad.spec import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    args = parser.parse_args()

    from adatad.report.page import write_report

    print(write_report(args.run, load(args.run / "spec.yaml")))
    return 0


if __name__ == "__main__":
    run(main)
