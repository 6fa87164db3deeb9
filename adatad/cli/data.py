"""Make, convert, check, copy and measure data sets.

adatad data summary configs/demo/tia.yaml
adatad data check configs/demo/tia.yaml --output data/demo/check
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.cli.command import path_arg, whole_number
from adatad.cli.demo import add_video_arguments
from adatad.cli.labels import add_export_arguments, add_from_csv_arguments, add_import_arguments
from adatad.cli.prepare import add_convert_arguments, add_transcode_arguments
from adatad.errors import UserError
from adatad.files import check_output, check_output_folder, shown
from adatad.progress_bar import progress
from adatad.quantities import number

MAX_LISTED = 20
"""Videos whose problems are printed; summary.html has all."""
# Longer than a line of the list of commands, so it is given apart from the command's own line.
CHECK_TEXT = """Look at every video of a spec's data set once, before training on it: what is missing, broken, of
another length or rate than its annotations, there twice, or both trained on and scored.

adatad data check configs/demo/tia.yaml --output data/demo/check

Writes blocked.txt (for data.blocked_videos), summary.html, and checked.jsonl, with which an interrupted check goes on.
Videos that the spec blocks already aren't looked at, and stay on the list. Exit code 1 if a problem was found."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, **options: str) -> argparse.ArgumentParser:
        """Add a command; its text is the description, too, unless options have another."""
        form = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=text, formatter_class=form, **{"description": text, **options})

    summary = add("summary", "what is read of the annotation file, what is dropped, and warnings")
    add_spec_arguments(summary, with_id=False)
    summary.set_defaults(action=print_summary)

    check = add("check", "look at every video once: missing, broken, of another length", description=CHECK_TEXT)
    add_spec_arguments(check, with_id=False)
    check.add_argument("--output", type=path_arg, required=True, metavar="FOLDER", help="folder of the three files")
    check.add_argument("--workers", type=whole_number(1), metavar="N", help="videos at a time (default: one a core)")
    check.add_argument("--whole", action="store_true", help="decode every frame instead of a few of each video")
    check.add_argument(
        "--borders", action="store_true",
        help="also list instances at whose borders pictures don't change, as of shifted labels; decodes all frames",
    )  # fmt: skip
    check.set_defaults(action=check_videos)

    benchmark = add("benchmark", "how fast windows load, and how many processes that needs")
    add_spec_arguments(benchmark, with_id=False)
    benchmark.add_argument(
        "--windows", type=whole_number(1), default=16, metavar="N", help="windows to load (default %(default)s)"
    )
    benchmark.add_argument("--ranks", type=whole_number(1), default=1, metavar="N", help="ranks that the run will have")
    benchmark.add_argument(
        "--step-seconds", type=number(1e-6, 1e6), metavar="S", help="time of a training step on the device"
    )
    benchmark.set_defaults(action=measure_loading)

    add_import_arguments(add("import", "make a data set and a spec of own videos out of labels of any tool"))
    add_from_csv_arguments(add("from-csv", "the same, of tables alone: the former name of import"))
    add_export_arguments(add("export", "write annotations or detections as files of annotation tools"))
    add_convert_arguments(add("convert", "turn official annotation files into those that the specs name"))
    add_transcode_arguments(add("transcode", "copy videos with a short side of 256 pixels, which read faster"))

    stage = add("stage", "copy the videos of a spec to this machine's own disk (data.stage_to), as training does")
    add_spec_arguments(stage, with_id=False)
    add_engine_arguments(stage)
    stage.set_defaults(action=stage_videos)

    made = add("demo", "make the built-in data set: short H.264 videos with exact labels, drawn from a seed")
    made.add_argument("--output", type=path_arg, default=Path("data/demo"), metavar="FOLDER", help="%(default)s")
    # The default is the data set that `adatad demo` makes.
    made.add_argument("--seed", type=whole_number(0), default=0)
    add_video_arguments(made)
    made.set_defaults(action=make_demo)


def print_summary(args: argparse.Namespace) -> int:
    """Run `adatad data summary`; returns its exit code."""
    # Videos and weights needn't be there yet; what is read of the annotations is checked as it is read.
    spec = spec_from_arguments(args, check_files=False)

    from rich.console import Console

    from adatad.data.prepare.summary import print_summary as print_table

    # Names of classes and videos may hold what would be markup.
    print_table(spec, Console(markup=False, emoji=False, highlight=False))
    return 0


def check_videos(args: argparse.Namespace) -> int:
    """Run `adatad data check`; returns its exit code."""
    spec = spec_from_arguments(args, check_files=False)
    # Looking at all videos takes hours: whether the three files can be written is known before.
    check_output_folder(args.output)
    for name in ("blocked.txt", "summary.html", "checked.jsonl"):
        check_output(args.output / name)

    from rich.console import Console

    from adatad.data.annotation_file import read_names
    from adatad.data.prepare.check import check_data_set, usable_cores, write_block_list
    from adatad.report.data_check import write_data_check

    # Before the list is written, which may be the same file.
    kept = sorted(read_names(spec.data.blocked_videos))
    console = Console(highlight=False, soft_wrap=True)
    with progress("videos checked") as bar:
        workers = args.workers or usable_cores()
        checked = check_data_set(spec, args.output, workers, args.whole, bar.update, args.borders)
    # The two files last, of all videos at once; checked.jsonl has grown with each of them.
    blocked = write_block_list(checked, args.output / "blocked.txt", kept)
    write_data_check(checked, spec.name, args.output / "summary.html")
    wrong = [found for found in checked if found.problems]
    for found in wrong[:MAX_LISTED]:
        for kind, detail in found.problems:
            console.print(shown(f"{found.video}: {kind}: {detail}"), markup=False)
    if len(wrong) > MAX_LISTED:
        console.print(f"and {len(wrong) - MAX_LISTED} more videos with problems")
    if kept:
        console.print(
            f"{len(kept)} blocked {'video' if len(kept) == 1 else 'videos'} not checked, kept on the list; to check "
            "them too, set data.blocked_videos to null"
        )
    console.print(
        f"{len(checked)} videos, {len(wrong)} with problems, {blocked} blocked: {args.output / 'summary.html'}"
    )
    # Not an error of the command: scripts that go on with a part of the videos look for exactly this.
    return 1 if wrong else 0


def measure_loading(args: argparse.Namespace) -> int:
    """Run `adatad data benchmark`; returns its exit code."""
    spec = spec_from_arguments(args)
    # The figures are for each rank's share of the batch.
    if spec.train.global_batch % args.ranks:
        raise UserError(f"train.global_batch {spec.train.global_batch} can't be divided by --ranks {args.ranks}")

    from adatad.data.prepare.reading_speed import measure, show

    with progress("windows loaded"):
        speed = measure(spec, args.windows)
    show(spec, speed, args.ranks, args.step_seconds)
    return 0


def stage_videos(args: argparse.Namespace) -> int:
    """Run `adatad data stage`; returns its exit code."""
    spec = spec_from_arguments(args)

    from adatad.data.annotations import read_annotations
    from adatad.data.staging import stage
    from adatad.spec.quirks import Quirks

    try:
        annotations = read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic)
        names = [video.name for video in annotations.train + annotations.validation]
        stage(spec.data, names, lambda line: print(f"{socket.gethostname()}: {line}"))
    except UserError as error:
        # Of many nodes' outputs in one log, this line says which.
        raise UserError(f"{socket.gethostname()}: {error}") from error
    return 0


def make_demo(args: argparse.Namespace) -> int:
    """Run `adatad data demo`; returns its exit code."""
    from adatad.data.prepare.demo import make_demo_with_progress

    annotations = make_demo_with_progress(
        args.output, args.train_videos, args.validation_videos, seed=args.seed, difficulty=args.difficulty
    )
    print(annotations)
    return 0
