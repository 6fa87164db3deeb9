"""The command-line arguments that every tool with a spec shares."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from adatad.spec.deepspeed_file import DeepSpeedFileError, engine_of
from adatad.spec.load import SpecError, load
from adatad.spec.rows import RowError, row_of_reference
from adatad.spec.schema import EngineKind, Spec

SPEC_HELP = "YAML file of the experiment, or the name of its configuration file in OpenTAD"


def add_spec_arguments(parser: argparse.ArgumentParser, help_text: str = SPEC_HELP, optional: bool = False) -> None:
    """SPEC, --overlay, --set, --cfg-options (OpenTAD's name for the same) and --id. optional: SPEC may be left out."""
    parser.add_argument("spec", metavar="SPEC", help=help_text, nargs="?" if optional else None)
    parser.add_argument(
        "--overlay", dest="overlays", metavar="FILE", action="append", default=[],
        help="a YAML file over the spec, such as slurm/nodes/two.yaml; --set comes after it",
    )  # fmt: skip
    parser.add_argument(
        "--set", "--cfg-options", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="settings over those of the file, such as optimizer.backbone.custom.0.lr=1e-4",
    )  # fmt: skip
    parser.add_argument("--id", type=int, metavar="N", help="number of the run: it lives in runs/<spec name>/id<N>")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """--engine, --deepspeed, and what DeepSpeed's launcher adds to a command."""
    parser.add_argument("--engine", choices=get_args(EngineKind), help="how ranks share the work (parallel.engine)")
    parser.add_argument(
        "--deepspeed", metavar="FILE",
        help="DeepSpeed's JSON file (parallel.deepspeed); without --engine, the engine is that of the file's stage",
    )  # fmt: skip
    # The environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def overrides_from(args: argparse.Namespace) -> Sequence[str]:
    """The overrides that the arguments stand for. Raises DeepSpeedFileError if --deepspeed can't be read."""
    overrides = [*args.overrides]
    engine, file = getattr(args, "engine", None), getattr(args, "deepspeed", None)
    if file is not None:
        overrides.append(f"parallel.deepspeed={file}")
        engine = engine or engine_of(file)
    if engine is not None:
        overrides.append(f"parallel.engine={engine}")
    if args.id is not None:
        overrides.append(f"run.id={args.id}")
    return overrides


def spec_path(text: str) -> str:
    """The spec file that a SPEC argument means: a configuration file of OpenTAD stands for the row here, which is
    said on the terminal. A name that isn't known comes back as it is."""
    if not text.endswith(".py"):
        return text
    try:
        row = row_of_reference(text)
    except RowError:
        return text
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text} is OpenTAD's name of {row.shown}, which is used", file=sys.stderr)
    here = Path(row.shown)
    return str(here if here.is_file() and here.samefile(row.path) else row.path)


def spec_from_arguments(args: argparse.Namespace, check_files: bool = True) -> Spec:
    """The spec that the arguments name. Prints all that is wrong with it and leaves with exit code 2."""
    try:
        return load(spec_path(args.spec), overrides_from(args), check_files, args.overlays)
    except (SpecError, DeepSpeedFileError) as error:
        print(f"{args.spec} can't be used:\n{error}", file=sys.stderr)
        sys.exit(2)
