"""Write the trained weights of a checkpoint to one safetensors file, or as a checkpoint that OpenTAD's tools load.

adatad export runs/demo/tia/id0 --output tia.safetensors
adatad export runs/demo/tia/id0/checkpoints/best --output whole.safetensors --merged
adatad export runs/demo/tia/id0/checkpoints/best --output epoch_59.pth --opentad

adatad test --checkpoint reads all three.
"""

from __future__ import annotations

import argparse
import sys

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.files import FileError, check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad export`."""
    parser.add_argument(
        "checkpoint", type=path_arg, metavar="CHECKPOINT", help="checkpoint directory, or a run (its best checkpoint)"
    )
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--merged", action="store_true", help="with the frozen weights of the backbone")
    parser.add_argument("--last", action="store_true", help="the last step's parameters instead of their averages")
    parser.add_argument(
        "--opentad", action="store_true", help="a checkpoint for OpenTAD's tools, with all frozen weights"
    )
    parser.set_defaults(action=export)


def export(args: argparse.Namespace) -> int:
    """Run `adatad export`; returns its exit code."""
    if args.opentad and (args.merged or args.last):
        raise UserError("--opentad: holds averages, last parameters and frozen weights; leave --merged and --last out")
    if args.opentad == (args.output.suffix == ".safetensors"):
        raise UserError("--output: ends in .pth with --opentad, and in .safetensors without")
    check_output(args.output)

    from adatad.training.checkpoint import read_checkpoint
    from adatad.training.export import export as export_weights
    from adatad.training.export import export_opentad, find_checkpoint, own_spec

    path, lines = find_checkpoint(args.checkpoint)
    if path.is_dir() and path.resolve() in args.output.resolve().parents:
        raise FileError(f"{args.output}: lies in the checkpoint itself, which must stay as it is; name another place")
    if path.is_file():
        raise FileError(
            f"{path}: is a file of weights, exported already; expected a checkpoint directory or a run "
            "(adatad test --checkpoint reads the file as it is)"
        )
    checkpoint = read_checkpoint(path)
    spec = own_spec(path, check_files=False)
    if checkpoint.facts is None:
        lines.append(f"{path}: doesn't say which classes its outputs are (an older file); nor will {args.output}")
    for line in lines:
        print(f"note: {line}", file=sys.stderr)
    if args.opentad:
        tensors = export_opentad(spec, checkpoint, args.output)
    else:
        tensors = export_weights(spec, checkpoint, args.output, averages=not args.last, merged=args.merged)
    print(f"{args.output}: {tensors} tensors, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0
