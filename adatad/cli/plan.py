"""Say how a spec fits a GPU: the best plan, its memory, how long the run takes, and the flags to paste.

adatad plan configs/thumos/g_1536x224_adapter.yaml --gpu rtx4090
adatad plan configs/thumos/g_1536x224_adapter.yaml --gpu-memory 24GB --gpus 2 --all

Times are estimates (docs/out-of-memory.md). Leaves with 0 if something fits and with 1 if nothing does; then it says by
how much, and what would make it fit.
"""

from __future__ import annotations

import argparse
import gc

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.cli.command import whole_number
from adatad.memory.cards import CARDS
from adatad.quantities import gib, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad plan`."""
    add_spec_arguments(parser, with_id=False)
    add_engine_arguments(parser)
    parser.add_argument(
        "--gpu", choices=CARDS, metavar="NAME", help=f"one of {', '.join(CARDS)}; without it this machine's"
    )
    parser.add_argument("--gpu-memory", type=gib, metavar="GIB", help="of one GPU: 24, or 24GB")
    parser.add_argument(
        "--gpus", type=whole_number(1, 100_000), default=1, metavar="N", help="ranks that share the global batch"
    )
    parser.add_argument("--host-memory", type=gib, metavar="GIB", help="of the machine, for all its ranks")
    parser.add_argument("--tflops", type=number(1e-3, 1e6), help="16-bit TFLOP/s of the GPU in large products")
    parser.add_argument("--pcie", type=number(1e-3, 1e6), metavar="GB/s", help="of copies from or to the host")
    # A number and not the data set's list: planning needs no data on this machine, and classes take little memory.
    parser.add_argument("--classes", type=whole_number(1, 1_000_000), default=20, help="of the data set")
    parser.add_argument("--all", action="store_true", help="the table of all plans")
    parser.add_argument("--count", action="store_true", help="count the plan's memory, also if that takes minutes")
    parser.set_defaults(action=plan)


def plan(args: argparse.Namespace) -> int:
    """Run `adatad plan`; returns its exit code."""
    spec = spec_from_arguments(args, check_files=False)

    # Modules that are imported stay: looking for garbage in them again and again would take a fifth of the time.
    gc.disable()
    from adatad.report.plans import target_of, write_plans

    gc.freeze()
    gc.enable()
    target = target_of(args.gpu, args.gpu_memory, args.host_memory, args.gpus, args.tflops, args.pcie)
    return 0 if write_plans(spec, target, args.classes, args.all, args.count) else 1
