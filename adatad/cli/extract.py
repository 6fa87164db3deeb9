"""Write features of videos: of a trained model's backbone with its adapters, or of a bare one.

adatad extract thumos-s-768 videos/ --output features
adatad extract base --weights vit_b.pth videos/ --stride 4 --window 16 --fps 30 --output features
adatad extract runs/demo/tia/id0 'videos/*.mp4' --output features --format safetensors

A SOURCE is what adatad detect takes. Without --window every frame goes through the backbone once and each tubelet
gives a feature; with it each feature is the mean over a window of its own (docs/features.md). Typed again, a command
goes on where it was; the ranks of torchrun and the tasks of a Slurm array share a list. Exit code 1 if a video couldn't
be read; the others are done.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from adatad.cli.arguments import add_device_argument
from adatad.cli.command import path_arg, whole_number
from adatad.cli.detect import WAIT_SECONDS
from adatad.files import shown
from adatad.printing import lasting_output
from adatad.quantities import number

MAX_FRAMES = 1_000_000
"""Largest stride and window; more is a slip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad extract`."""
    parser.add_argument(
        "model", type=path_arg, metavar="MODEL_OR_BACKBONE",
        help="a trained model, as adatad detect takes it; a spec, for its bare backbone; or a preset, with --weights",
    )  # fmt: skip
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="videos: files, folders, globs, lists")
    parser.add_argument(
        "--output", type=path_arg, metavar="FOLDER", required=True, help="write an array and a JSON file a video there"
    )
    parser.add_argument(
        "--stride", type=whole_number(1, MAX_FRAMES), metavar="N",
        help="frames from one feature to the next (default: those of a tubelet)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=whole_number(1, MAX_FRAMES), metavar="N",
        help="decoded frames that each feature is a mean over, whole clips (default: a stream of tubelets)",
    )  # fmt: skip
    parser.add_argument(
        "--fps", type=number(1e-6, 1e6), metavar="F", help="frames a second to decode (default: the model's rule)"
    )
    parser.add_argument("--format", choices=("npy", "safetensors"), default="npy", help="of the arrays")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the numbers; training computes in float32",
    )
    parser.add_argument("--weights", type=path_arg, metavar="FILE", help="pretrained weights of a spec or a preset")
    parser.add_argument("--spec", metavar="SPEC", help="experiment of a model that doesn't hold its own, as OpenTAD's")
    parser.add_argument("--force", action="store_true", help="do videos anew that are done already")
    add_device_argument(parser)
    parser.set_defaults(action=extract)


def extract(args: argparse.Namespace) -> int:
    """Run `adatad extract`; returns its exit code."""
    from adatad.detect.extract_list import ExtractRequest, carry_out, prepare, summary
    from adatad.detect.shares import take_own_gpu
    from adatad.parallel.processes import start_processes

    request = ExtractRequest(
        args.model, tuple(args.sources), args.output, args.spec, args.weights, args.stride, args.window, args.fps,
        args.format, args.force, args.dtype,
    )  # fmt: skip
    take_own_gpu()
    with start_processes(WAIT_SECONDS) as processes:
        # One process looks, so that all see the same files.
        plan = processes.on_main(lambda: prepare(request))
        if processes.is_main:
            for line in plan.notes:
                print(f"note: {line}", file=sys.stderr)
        with lasting_output(), redirect_stdout(sys.stderr):
            failures = carry_out(plan, request, processes)
        if processes.is_main:
            print(summary(plan, failures))
            print(f"{'features':12} {shown(args.output)}")
        # A rank that left with exit code 1 before would have torchrun end the first one.
        processes.gather(None)
    return 1 if failures else 0
