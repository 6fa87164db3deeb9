"""Train the experiment of a spec, alone or under a launcher.

adatad train configs/demo/tia.yaml
adatad train configs/demo/tia.yaml --folds 5
adatad train configs/demo/tia.yaml --overfit 2
adatad train configs/demo/tia.yaml --profile 5
torchrun --nproc-per-node 2 -m adatad train configs/demo/tia.yaml --engine fsdp --id 1
deepspeed --num_gpus 2 tools/train.py configs/demo/tia.yaml --deepspeed ds_configs/zero3.json --id 2
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from adatad.errors import UserError
from adatad.training.signals import StopRequest

if TYPE_CHECKING:
    from adatad.spec import Spec

MAX_FOLDS = 1_000
MAX_PROFILED = 100
"""Steps: a large model records about 100,000 events in each."""
_stop = StopRequest()
"""The request that signals set. A module's, since signals may come before there is anything to hand it to."""


def before_imports() -> None:
    """Take signals from here on: the warning of a time limit may come while libraries are imported."""
    global _stop
    # A fresh one: tests run several commands in one process.
    _stop = StopRequest()
    _stop.importing = True
    _stop.install()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad train`."""
    from adatad.cli.arguments import add_device_argument, add_engine_arguments, add_spec_arguments
    from adatad.cli.command import whole_number

    add_spec_arguments(parser)
    add_engine_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", help="go on from the newest or a named checkpoint")
    parser.add_argument(
        "--folds", type=whole_number(2, MAX_FOLDS), metavar="K",
        help="train K runs, each scored on its own share of all labelled videos, and score all of them together",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="delete what the run directory holds")
    parser.add_argument(
        "--overfit", type=whole_number(1), nargs="?", const=2, metavar="N",
        help="instead, train on N fixed windows (2) until the loss is zero, or say what is wrong; writes nothing",
    )  # fmt: skip
    parser.add_argument(
        "--profile", type=whole_number(1, MAX_PROFILED), nargs="?", const=5, metavar="N",
        help="instead, train a few steps and N more (5), say where the time of a step goes, and end without a result",
    )  # fmt: skip
    # The name of earlier versions.
    parser.add_argument("--overwrite", dest="force", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(action=train)


def train(args: argparse.Namespace) -> int:
    """Run `adatad train`; returns its exit code."""
    from adatad.cli.arguments import spec_from_arguments
    from adatad.printing import lasting_output
    from adatad.spec.schema import INIT_FROM

    if args.profile is not None and (args.folds is not None or args.overfit is not None):
        raise UserError("--profile looks at a few steps of one run: leave out --folds and --overfit")
    if args.folds is not None and args.overfit is not None:
        raise UserError("--overfit looks at a few windows, --folds trains for real: leave one of them out")
    if args.folds is not None:
        from adatad.cli.folds import train_folds

        # Its runs are processes of their own, which take signals; this one only waits for them.
        _stop.restore()
        return train_folds(args)
    if args.profile is not None:
        # Its profiler writes lines of its own to stderr, unless it is told not to before torch is imported.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Before torch is imported, so that a mistake in the spec is said at once.
    # A run that goes on has read what it started from; whether this one goes on is seen later.
    unread = () if args.resume is None else (INIT_FROM,)
    spec = spec_from_arguments(args, unread=unread)

    if args.overfit is not None:
        return overfit_windows(args, spec)

    from adatad.parallel.processes import is_first_rank
    from adatad.report.scores import print_summary
    from adatad.report.step_parts import print_profile
    from adatad.training.run import train_run

    # A library that is being imported may swallow SystemExit: until here signals end the process past Python.
    _stop.importing = False
    with lasting_output():
        result, folder = train_run(spec, args.resume, args.force, _stop, args.profile)
        if is_first_rank():
            print_profile(result, folder) if args.profile is not None else print_summary(spec, result, folder)
    return 0


def overfit_windows(args: argparse.Namespace, spec: Spec) -> int:
    """Run `adatad train --overfit`; returns 0 if the loss came down to zero, else 1."""
    if args.resume is not None or args.force:
        raise UserError("--overfit writes no run: it goes with neither --resume nor --force")

    from adatad.training.overfit import overfit

    _stop.importing = False
    outcome = overfit(spec, args.overfit, _stop)
    print(f"--overfit {args.overfit}: {outcome.line}")
    return 0 if outcome.reached else 1
