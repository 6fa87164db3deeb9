"""Say how a spec fits a GPU: memory, time and settings of every policy, and the fastest that fits.

adatad plan configs/thumos/g_1536x224_adapter.yaml --gpu-memory 24 --gpus 2

By formulas (docs/memory.md), in seconds; times are estimates, nothing was measured on a GPU. Leaves with 0 if something
fits and with 2 if nothing does; then it says by how much, and what would make it fit.
"""

from __future__ import annotations

import argparse
import gc

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.cli.command import whole_number
from adatad.quantities import gib, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad plan`."""
    add_spec_arguments(parser, with_id=False)
    add_engine_arguments(parser)
    parser.add_argument("--gpu-memory", type=gib, required=True, metavar="GIB", help="of one GPU: 24, or 24GB")
    parser.add_argument(
        "--gpus", type=whole_number(1, 100_000), default=1, metavar="N", help="ranks that share the global batch"
    )
    parser.add_argument("--host-memory", type=gib, metavar="GIB", help="of the machine, for all its ranks")
    parser.add_argument(
        "--tflops", type=number(1e-3, 1e6), default=60.0, help="16-bit TFLOP/s of the GPU in large products"
    )
    parser.add_argument(
        "--pcie", type=number(1e-3, 1e6), default=12.0, metavar="GB/s", help="of copies from or to the host"
    )
    parser.add_argument("--classes", type=whole_number(1, 1_000_000), default=20, help="of the data set")
    parser.add_argument("--count", action="store_true", help="also count the fastest that fits and the spec's own plan")
    parser.set_defaults(action=plan)


def plan(args: argparse.Namespace) -> int:
    """Run `adatad plan`; returns its exit code."""
    spec = spec_from_arguments(args, check_files=False)

    # Modules that are imported stay: looking for garbage in them again and again would take a fifth of the time.
    gc.disable()
    from adatad.report.plans import print_plans

    gc.freeze()
    gc.enable()
    return print_plans(spec, args)
