"""Fuse several detections files into one: overlapping detections are drawn together, the rest goes through NMS again.

adatad fuse runs/demo/tia/id0 runs/demo/tia/id1 --output fused.json
adatad fuse first.json second.json.gz --weights 0.6 0.4 --spec thumos-s-768 --output fused.json

A run directory stands for its detections.json. NMS has the settings of --spec, else those of the first run's spec, else
the defaults. docs/compare.md has the formula, and says what to expect.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adatad.cli.command import path_arg
from adatad.printing import program
from adatad.quantities import number

if TYPE_CHECKING:
    from adatad.spec.schema import NmsSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad fuse`."""
    parser.add_argument(
        "sources",
        type=path_arg,
        nargs="+",
        metavar="RUN|DETECTIONS",
        help='run directory, or JSON file {"results": ...}',
    )
    parser.add_argument(
        "--weights", type=number(1e-6, 1e6), nargs="+", metavar="W",
        help="what the scores of each file are multiplied by, relative to the largest (default: all alike)",
    )  # fmt: skip
    parser.add_argument(
        "--tiou", type=number(0.01, 1), metavar="T",
        help="overlap from which detections of different files are drawn together (default 0.7)",
    )  # fmt: skip
    parser.add_argument("--spec", metavar="SPEC", help="experiment whose postprocess.nms is used")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="JSON file to write")
    parser.set_defaults(action=fuse)


def fuse(args: argparse.Namespace) -> int:
    """Run `adatad fuse`; returns its exit code."""
    from adatad.evaluation.fusion import GROUP_TIOU, fuse_files
    from adatad.files import files_to_write, listed, write_json
    from adatad.progress_bar import progress
    from adatad.report.last_and_best import selected_detections

    # What stands for a run (`train.select`), as in export.
    files, notes = [], []
    for source in args.sources:
        file, lines = selected_detections(source) if source.is_dir() else (source, [])
        files.append(file)
        notes += [f"{source}: {line}" for line in lines]
    with files_to_write([args.output], files):
        nms = _nms(args.sources, args.spec)
        with progress("detections fused"):
            fused = fuse_files(files, args.weights, nms, GROUP_TIOU if args.tiou is None else args.tiou)
        write_json(args.output, {"results": fused.results})
    for line in notes:
        print(f"{program()}: note: {line}", file=sys.stderr)
    if fused.videos_of_some:
        print(
            f"{program()}: note: {len(fused.videos_of_some)} of {len(fused.results)} videos are in some of the files "
            f"only, and fused from those: {listed(fused.videos_of_some, 3)}",
            file=sys.stderr,
        )
    count = sum(map(len, fused.results.values()))
    print(f"{args.output}: {count:,} detections in {len(fused.results):,} videos, from {len(files)} files")
    return 0


def _nms(sources: Sequence[Path], spec: str | None) -> NmsSpec | None:
    """Return the settings of NMS: those of `spec`, else of the first run directory, else the defaults."""
    from adatad.cli.arguments import spec_path
    from adatad.evaluation.fusion import DEFAULT_NMS
    from adatad.spec import load

    if spec is not None:
        return load(spec_path(spec), check_files=False).postprocess.nms
    runs = [source for source in sources if (source / "spec.yaml").is_file()]
    found = [load(run / "spec.yaml", check_files=False).postprocess.nms for run in runs]
    for run, nms in zip(runs, found, strict=True):
        if nms != found[0]:
            print(f"{program()}: note: {run}: has other settings of NMS; those of {runs[0]} are used", file=sys.stderr)
    return found[0] if found else DEFAULT_NMS
