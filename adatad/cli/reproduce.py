"""Repeat a published experiment: say what is missing, train it or test a checkpoint, and compare with the figures.

adatad reproduce thumos-s-768 --check
adatad reproduce thumos-s-768
adatad reproduce thumos-s-768 --checkpoint epoch_59.pth

Start it again after an interruption: it goes on. Leaves with 0 if the average mAP is at most 0.5 below the published
one, 1 if it is further below, 2 if something is missing, 75 if it was asked to stop. A published figure of the best
epoch is compared with the best epoch, any other with the last.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adatad.cli.arguments import add_device_argument, add_engine_arguments, add_spec_arguments, overrides_from
from adatad.cli.command import path_arg
from adatad.spec import load
from adatad.spec.experiments import find_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad reproduce`."""
    add_spec_arguments(parser, "experiment (docs/model-zoo.md), words of its name, its name in OpenTAD, or a spec file")
    add_engine_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--checkpoint", type=path_arg, metavar="CHECKPOINT", help="test this one instead of training")
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    parser.set_defaults(action=reproduce)


def reproduce(args: argparse.Namespace) -> int:
    """Run `adatad reproduce`; returns its exit code."""
    without_weights = []
    if args.checkpoint is not None and args.checkpoint.exists():
        from adatad.report.last_and_best import select_in
        from adatad.training.export import find_checkpoint, holds_frozen_weights

        args.checkpoint, lines = find_checkpoint(args.checkpoint, select_in(overrides_from(args)))
        for line in lines:
            print(f"note: {line}", file=sys.stderr)
        # Nothing of a pretrained file would be left; it needn't be there.
        without_weights = ["model.backbone.weights=random"] if holds_frozen_weights(args.checkpoint) else []
    path = Path(args.spec)
    # A file of the user's own first: words that mean an experiment never end in .yaml.
    path = path if path.suffix == ".yaml" and path.is_file() else find_experiment(args.spec).path
    spec = load(path, [*overrides_from(args), *without_weights], check_files=False)

    from adatad.report.scores import print_scores, verdict_line
    from adatad.training.reproduce import missing
    from adatad.training.reproduce import reproduce as train_or_test

    if args.check:
        lines = missing(spec, args.checkpoint)
        print("\n".join(lines) if lines else f"{spec.name}: everything is there")
        # As bad input leaves, so that scripts stop before they train.
        return 2 if lines else 0
    result, reproduction = train_or_test(spec, args.checkpoint)
    # Not the first rank, which alone writes and prints the verdict.
    if reproduction is None:
        return 0
    print_scores(spec, result)
    print(verdict_line(spec, reproduction))
    return 0 if reproduction.accepted else 1
