"""Train the experiment of a spec, alone or under a launcher.

adatad train configs/demo/tia.yaml
torchrun --nproc-per-node 2 -m adatad train configs/demo/tia.yaml --engine fsdp --id 1
deepspeed --num_gpus 2 tools/train.py configs/demo/tia.yaml --deepspeed ds_configs/zero3.json --id 2
"""

from __future__ import annotations

import argparse

from adatad.training.signals import StopRequest

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

    add_spec_arguments(parser)
    add_engine_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", help="go on from the newest or a named checkpoint")
    parser.add_argument("--force", action="store_true", help="delete what the run directory holds")
    # The name of earlier versions.
    parser.add_argument("--overwrite", dest="force", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(action=train)


def train(args: argparse.Namespace) -> int:
    """Run `adatad train`; returns its exit code."""
    from adatad.cli.arguments import spec_from_arguments
    from adatad.printing import lasting_output

    # Before torch is imported, so that a mistake in the spec is said at once.
    spec = spec_from_arguments(args)

    from adatad.parallel.processes import is_first_rank
    from adatad.report.scores import print_summary
    from adatad.training.run import train_run

    # A library that is being imported may swallow SystemExit: until here signals end the process past Python.
    _stop.importing = False
    with lasting_output():
        result, folder = train_run(spec, args.resume, args.force, _stop)
        if is_first_rank():
            print_summary(spec, result, folder)
    return 0
