"""Draw the timelines and report.html of a run directory again.

adatad report runs/demo/tia/id0
"""

from __future__ import annotations

import argparse
import sys

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.files import shown
from adatad.printing import program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad report`."""
    parser.add_argument("run", type=path_arg, metavar="RUN", help="run directory")
    parser.set_defaults(action=report)


def report(args: argparse.Namespace) -> int:
    """Run `adatad report`; returns its exit code."""
    if not (args.run / "spec.yaml").is_file():
        raise UserError(f"{args.run}: is no run directory (it has no spec.yaml); expected runs/<spec name>/id<N>")

    from adatad.report.page import write_report
    from adatad.spec import load

    # Weights may be elsewhere by now; what the page lacks is said.
    spec = load(args.run / "spec.yaml", check_files=False)
    print(write_report(args.run, spec, lambda line: print(f"{program()}: {shown(line)}", file=sys.stderr)))
    return 0
