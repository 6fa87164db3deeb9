"""Write a trained model to one safetensors file: all weights, classes, thresholds, and the spec.

adatad export runs/demo/tia/id0 --output tia.safetensors
adatad export epoch_59.pth --spec thumos-s-768 --output tia.safetensors
adatad export runs/demo/tia/id0 --output half.safetensors --dtype bfloat16
adatad export runs/demo/tia/id0/checkpoints/best --output epoch_59.pth --opentad

adatad test --checkpoint reads all of them, and adatad model says what is in them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.files import FileError, check_output

if TYPE_CHECKING:
    from adatad.spec import Spec
    from adatad.training.model_scores import Measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad export`."""
    parser.add_argument(
        "checkpoint", type=path_arg, metavar="CHECKPOINT",
        help="run (train.select: its best or last checkpoint), checkpoint directory, or a checkpoint of OpenTAD (.pth)",
    )  # fmt: skip
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--spec", metavar="SPEC", help="experiment that a checkpoint of OpenTAD was trained by")
    parser.add_argument(
        "--backbone", type=path_arg, metavar="FILE",
        help="pretrained weights of the training, if they lie elsewhere now",
    )  # fmt: skip
    parser.add_argument(
        "--detections", type=path_arg, metavar="FILE",
        help="detections of this checkpoint on the validation videos (adatad test --detections), from which thresholds "
        "are chosen; without it the run's own, if they are of this checkpoint",
    )  # fmt: skip
    parser.add_argument("--last", action="store_true", help="the last step's parameters instead of their averages")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of the matrices; norms, biases and tables stay float32 (default %(default)s)",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--trained-only", action="store_true", help="the trained tensors alone, which need the backbone's file beside"
    )
    form.add_argument(
        "--opentad", action="store_true", help="a checkpoint for OpenTAD's tools, with all frozen weights"
    )
    # Of before whole models were the default.
    form.add_argument("--merged", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(action=export)


def export(args: argparse.Namespace) -> int:
    """Run `adatad export`; returns its exit code."""
    if args.opentad and args.last:
        raise UserError("--opentad: holds averages and last parameters; leave --last out")
    if (args.opentad or args.trained_only) and (args.dtype != "float32" or args.detections):
        raise UserError("--dtype, --detections: only for a model file; leave out --opentad or --trained-only")
    if args.trained_only and args.backbone:
        raise UserError("--backbone: isn't needed with --trained-only, which leaves the backbone out")
    if args.opentad == (args.output.suffix == ".safetensors"):
        raise UserError("--output: ends in .pth with --opentad, and in .safetensors without")
    check_output(args.output)

    from adatad.training.export import find_checkpoint

    path, notes = find_checkpoint(args.checkpoint)
    if args.merged:
        notes.append("--merged: is the default now, and may be left out")
    spec = _spec_of(path, args.spec)
    if args.backbone is not None:
        spec = _with_backbone(spec, args.backbone)
    _refuse_inputs(args.output, path, args.detections, spec.model.backbone.weights)
    if args.opentad or args.trained_only:
        tensors = _write_other_form(path, spec, args, notes)
    else:
        from adatad.training.model_export import export_model

        done = export_model(spec, path, args.output, not args.last, args.dtype, args.detections)
        tensors = done.tensors
        notes += done.notes
        if done.measured.thresholds is None:
            notes.append(_without_thresholds(args, done.measured))
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    print(f"{args.output}: {tensors} tensors, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _with_backbone(spec: Spec, weights: Path) -> Spec:
    """Return the spec with another file of backbone weights."""
    backbone = spec.model.backbone.model_copy(update={"weights": str(weights)})
    return spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": backbone})})


def _refuse_inputs(output: Path, checkpoint: Path, *others: Path | str | None) -> None:
    """Raise FileError for an output that would take the place of what is read."""
    place = output.resolve()
    if checkpoint.is_dir() and checkpoint.resolve() in place.parents:
        raise FileError(f"{output}: lies in the checkpoint itself, which must stay as it is; name another place")
    if place in [Path(path).resolve() for path in (checkpoint, *others) if path is not None]:
        raise FileError(f"{output}: is read here, and would be written over; name another file")


def _spec_of(path: Path, named: str | None) -> Spec:
    """Return the spec of a checkpoint: its own, or the one that is named for a file that holds none."""
    from adatad.cli.arguments import spec_path
    from adatad.spec import load
    from adatad.training.export import own_spec, read_trained_file

    if path.suffix == ".safetensors":
        raise FileError(
            f"{path}: is a file of weights, exported already; expected a run, a checkpoint directory or OpenTAD's .pth "
            "(adatad test --checkpoint reads the file as it is)"
        )
    if named is None:
        return own_spec(path, check_files=False)
    if read_trained_file(path).spec_yaml is not None:
        raise UserError(f"--spec: {path} holds the spec that it was trained by; leave --spec out")
    return load(spec_path(named), check_files=False)


def _write_other_form(path: Path, spec: Spec, args: argparse.Namespace, notes: list[str]) -> int:
    """Write OpenTAD's form or the trained tensors alone; return the number of tensors."""
    from adatad.training.checkpoint import read_checkpoint
    from adatad.training.export import export_opentad, export_trained

    if path.is_file():
        raise FileError(f"{path}: is a file; --opentad and --trained-only take a run or a checkpoint directory")
    checkpoint = read_checkpoint(path)
    if checkpoint.facts is None:
        notes.append(f"{path}: doesn't say which classes its outputs are (an older file); nor will {args.output}")
    if args.opentad:
        return export_opentad(spec, checkpoint, args.output)
    return export_trained(checkpoint, args.output, averages=not args.last)


def _without_thresholds(args: argparse.Namespace, measured: Measured) -> str:
    """Return a line on thresholds that nobody could choose, and the commands that get them, if any would."""
    line = f"{args.output} has no thresholds of its own ({measured.thresholds_from}): a plain one is used"
    if measured.nothing_right:
        return line
    words = ["adatad", "test", *([args.spec] if args.spec else []), "--checkpoint", str(args.checkpoint)]
    command = shlex.join([*words, *["--last"] * args.last])
    return f"{line}; {command} --detections FILE, then the same export with --detections FILE, chooses them"
