"""Commands that the supervisor of a job runs where the packages are. Not a verb, as no person types these.

The supervisor itself has the standard library alone, perhaps outside of the packages' container.

    python -m adatad.cli.job snapshot SPEC [arguments of adatad train]          copies code and spec, prints a JobRun
    python -m adatad.cli.job table LIST FIRST_ID SPEC [arguments of adatad train]   writes and prints a sweep's table
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.cli.command import exit_code, whole_number
from adatad.cluster.code_snapshot import snapshot_of_job
from adatad.cluster.sweep import write_table
from adatad.spec.numbers import MAX_COUNT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    snapshot, table = what.add_parser("snapshot"), what.add_parser("table")
    table.add_argument("list", type=Path)
    table.add_argument("first_id", type=whole_number(0, MAX_COUNT))
    # It has been taken out of a job's arguments, but not of those for the table.
    table.add_argument("--launcher", help=argparse.SUPPRESS)
    for each in (snapshot, table):
        add_spec_arguments(each)
        add_engine_arguments(each)
    args = parser.parse_args(arguments)
    # As the verbs end: the supervisor passes the one line of an error on to the job's log.
    return exit_code(lambda: _snapshot(args) if args.what == "snapshot" else _table(args))


def _snapshot(args: argparse.Namespace) -> int:
    print(json.dumps(snapshot_of_job(args.spec, spec_from_arguments(args))))
    return 0


def _table(args: argparse.Namespace) -> int:
    spec = spec_from_arguments(args)
    print(write_table(args.list, Path(spec.run.root) / spec.name, args.first_id), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
