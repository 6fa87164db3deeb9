"""Draw the timelines and report.html of a run directory again.

python tools/report.py runs/demo/tia/id0
"""

from __future__ import annotations

import argparse
import sys

from adatad.command import path_arg, run
from adatad.errors import UserError
from adatad.files import shown
from adatad.spec import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_arg, metavar="RUN", help="run directory")
    args = parser.parse_args()

    if not (args.run / "spec.yaml").is_file():
        raise UserError(f"{args.run}: is no run directory (it has no spec.yaml); expected runs/<spec name>/id<N>")

    from adatad.report.page import write_report

    # Weights may be elsewhere by now; what the page lacks is said.
    spec = load(args.run / "spec.yaml", check_files=False)
    print(write_report(args.run, spec, lambda line: print(f"{sys.argv[0]}: {shown(line)}", file=sys.stderr)))
    return 0


if __name__ == "__main__":
    run(main)
