"""Say what happens when in videos, with a trained model.

adatad detect tia.safetensors video.mp4
adatad detect runs/demo/tia/id0 videos/ --output found --formats csv,srt
adatad detect epoch_59.pth list.txt --spec thumos-s-768 --output found --threshold 0.4
find . -name '*.mp4' -print0 | adatad detect tia.safetensors - --json > found.json

A SOURCE is a video, a folder (with its subfolders), a glob in quotes, a text file with a path on each line, or - for
such a list on the standard input. Typed again, a command goes on where it was; several processes share a list
(docs/detect.md). Exit code 1 if a video couldn't be read; the others are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from adatad.cli.arguments import add_device_argument
from adatad.cli.command import path_arg, whole_number
from adatad.errors import UserError
from adatad.printing import lasting_output
from adatad.quantities import number

if TYPE_CHECKING:
    from adatad.detect.detect_list import Request
    from adatad.detect.outcome import Truth

BEST = "best"
MAX_TOP_K = 1_000_000
WAIT_SECONDS = 30 * 24 * 3600.0
"""How long ranks wait for one another at the end: a part of the list may take days longer than the others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad detect`."""
    parser.add_argument(
        "model", type=path_arg, metavar="MODEL",
        help="file of adatad export, a run (its best checkpoint, or last: train.select), a checkpoint, or "
        "OpenTAD's (.pth, with --spec)",
    )  # fmt: skip
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="videos: files, folders, globs, lists")
    parser.add_argument(
        "--output", type=path_arg, metavar="FOLDER", help="write <video>.json for each video, and a page"
    )
    parser.add_argument(
        "--formats", default=[], type=comma_list, metavar="A,B",
        help="with --output: further files for each video: csv, srt, vtt, eaf, labelstudio, via, boris and others",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=threshold, metavar="T",
        help="least score, from 0 (all that is found) to 1; best: by class, the one with the best F1 on the validation "
        "videos (default, for a model that has it)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=whole_number(1, MAX_TOP_K), metavar="K", help="at most the K best of a video")
    parser.add_argument("--classes", action="append", metavar="A,B", help="these classes alone")
    parser.add_argument(
        "--windows", action="store_true",
        help="run overlapping windows each by itself, as adatad test does, instead of every frame once",
    )  # fmt: skip
    parser.add_argument("--spec", metavar="SPEC", help="experiment of a model that doesn't hold its own, as OpenTAD's")
    parser.add_argument(
        "--json", action="store_true", help="print the detections as one JSON document, in ActivityNet's form"
    )
    parser.add_argument("--force", action="store_true", help="do videos anew that are done already")
    parser.add_argument("--no-page", action="store_true", help="with --output: write no detections.html")
    parser.add_argument(
        "--ground-truth",
        type=path_arg,
        metavar="FILE",
        help="annotations of any form that adatad reads, which the page shows above the detections",
    )
    add_device_argument(parser)
    parser.set_defaults(action=detect)


def comma_list(text: str) -> list[str]:
    """Read an argparse value: words with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def threshold(text: str) -> float | str:
    """Read an argparse value: a score, or the word best."""
    if text == BEST:
        return text
    try:
        return number(0, 1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("to 1,", "to 1, or best,")) from None


def detect(args: argparse.Namespace) -> int:
    """Run `adatad detect`; returns its exit code."""
    check_options(args)

    from adatad.detect.detect_list import Request
    from adatad.detect.outcome import read_truth

    request = Request(
        model=args.model, sources=tuple(args.sources), spec=args.spec, output=args.output, formats=tuple(args.formats),
        threshold=args.threshold, classes=None if args.classes is None else tuple(args.classes), top_k=args.top_k,
        windows=args.windows, force=args.force, many=bool(args.output or args.json), page=not args.no_page,
    )  # fmt: skip
    truth, notes = (None, []) if args.ground_truth is None else read_truth(args.ground_truth)
    return run_request(request, args.json, truth, notes)


def run_request(request: Request, as_json: bool = False, truth: Truth | None = None, notes: Sequence[str] = ()) -> int:
    """Do what is asked for, on all ranks, and print what came of it; returns the exit code. notes: lines to say
    first."""
    from adatad.detect.detect_list import carry_out, prepare
    from adatad.detect.outcome import show
    from adatad.detect.shares import take_own_gpu
    from adatad.parallel.processes import start_processes

    take_own_gpu()
    with start_processes(WAIT_SECONDS) as processes:
        # One process looks, so that all see the same files.
        prepared = processes.on_main(lambda: prepare(request))
        if processes.is_main:
            for line in (*notes, *prepared.notes):
                print(f"note: {line}", file=sys.stderr)
        # Nothing but the document may come out of a pipe.
        with lasting_output(), redirect_stdout(sys.stderr):
            done = carry_out(prepared, request, processes)
        if processes.is_main:
            show(prepared, request, done, as_json, truth)
        # A rank that left with exit code 1 before would have torchrun end the first one at its page.
        processes.gather(None)
    return 1 if done.failures else 0


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that don't go together, and formats that nobody knows."""
    from adatad.detect.output_folder import FURTHER_FORMS
    from adatad.spec.text import nearest

    for name in args.formats:
        if name not in FURTHER_FORMS:
            near = nearest(name, FURTHER_FORMS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(FURTHER_FORMS)}"
            raise UserError(f"--formats: there is no format {name!r}; {hint}")
    if args.output is None:
        for option, given in (("--formats", args.formats), ("--force", args.force), ("--no-page", args.no_page),
                              ("--ground-truth", args.ground_truth)):  # fmt: skip
            if given:
                raise UserError(f"{option}: only with --output FOLDER")
    if args.ground_truth is not None and args.no_page:
        raise UserError("--ground-truth: is for the page; leave --no-page out")
