"""Look at the data of an experiment before training on it.

python tools/data.py summary configs/demo/tia.yaml
python tools/data.py benchmark configs/demo/tia.yaml --step-seconds 0.5
"""

from __future__ import annotations

import argparse

from adatad.command import run, whole_number
from adatad.errors import UserError
from adatad.quantities import number
from adatad.spec import add_spec_arguments, spec_from_arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    summary = commands.add_parser("summary", help="what is read of the annotation file, what is dropped, and warnings")
    add_spec_arguments(summary)
    benchmark = commands.add_parser("benchmark", help="how fast windows load, and how many processes that needs")
    add_spec_arguments(benchmark)
    benchmark.add_argument(
        "--windows", type=whole_number(1), default=16, metavar="N", help="windows to load (default 16)"
    )
    benchmark.add_argument("--ranks", type=whole_number(1), default=1, metavar="N", help="ranks that the run will have")
    benchmark.add_argument(
        "--step-seconds", type=number(1e-6, 1e6), metavar="S", help="time of a training step on the device"
    )
    args = parser.parse_args()
    match args.command:
        case "summary":
            return show_summary(args)
        case "benchmark":
            return run_benchmark(args)


def show_summary(args: argparse.Namespace) -> int:
    from rich.console import Console

    from adatad.data.prepare.summary import print_summary

    # Videos and weights needn't be there yet; what is read of the annotations is checked as it is read.
    spec = spec_from_arguments(args, check_files=False)
    # Names of classes and videos may hold what would be markup.
    print_summary(spec, Console(markup=False, emoji=False, highlight=False))
    return 0


def run_benchmark(args: argparse.Namespace) -> int:
    from adatad.dev.benchmarks.data_suite import measure, show

    spec = spec_from_arguments(args)
    if spec.train.global_batch % args.ranks:
        raise UserError(f"train.global_batch {spec.train.global_batch} can't be divided by --ranks {args.ranks}")
    show(spec, measure(spec, args.windows), args.ranks, args.step_seconds)
    return 0


if __name__ == "__main__":
    run(main)
