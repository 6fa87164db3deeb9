"""The command-line arguments that every tool with a spec shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from adatad.spec.load import SpecError, load
from adatad.spec.schema import Spec


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """SPEC, --set, --cfg-options (OpenTAD's name for the same) and --id."""
    parser.add_argument("spec", metavar="SPEC", help="YAML file of the experiment")
    parser.add_argument(
        "--set", "--cfg-options", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="settings over those of the file, such as optimizer.backbone.custom.0.lr=1e-4",
    )  # fmt: skip
    parser.add_argument("--id", type=int, metavar="N", help="number of the run: it lives in runs/<spec name>/id<N>")


def overrides_from(args: argparse.Namespace) -> Sequence[str]:
    """The overrides that the arguments stand for."""
    return args.overrides if args.id is None else [*args.overrides, f"run.id={args.id}"]


def spec_from_arguments(args: argparse.Namespace, check_files: bool = True) -> Spec:
    """The spec that the arguments name. Prints all that is wrong with it and leaves with exit code 2."""
    try:
        return load(args.spec, overrides_from(args), check_files)
    except SpecError as error:
        print(f"{args.spec} can't be used:\n{error}", file=sys.stderr)
        sys.exit(2)
