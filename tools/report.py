"""Draw the timelines and report.html of a run directory again.

python tools/report.py runs/demo/tia/id0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adatad.spec import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    args = parser.parse_args()

    from adatad.errors import UserError
    from adatad.report.page import write_report

    try:
        print(write_report(args.run, load(args.run / "spec.yaml")))
    except UserError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
