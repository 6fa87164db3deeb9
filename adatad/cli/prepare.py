"""`adatad data from-csv`, `convert` and `transcode`: what makes a data set out of files as they are published."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from adatad.cli.command import path_arg, whole_number
from adatad.errors import UserError
from adatad.files import check_output_folder, files_to_write, shown
from adatad.progress_bar import progress
from adatad.quantities import number

DATA_SETS = ("activitynet", "charades", "ego4d", "epic-noun", "epic-verb", "hacs", "multithumos", "thumos")
FROM_CSV_TEXT = """Make a data set and a spec of own videos out of a table of instances (docs/own-data.md).

adatad data from-csv labels.csv --videos my_videos --output data/mine

The table is a text file (CSV) with a first line like `video,start,end,label`, and maybe a column subset (training or
validation). Delimiters, names of columns and forms of times are told by the first line; what is guessed is said.
Everything is checked before anything is written."""
CONVERT_TEXT = """Turn a data set's official annotation files into the annotation file and class list that its specs
name.

adatad data convert charades Charades --output data/charades/annotations/charades.json

The README of each data set's folder in tools/prepare_data has its command, and says where the files are published."""
TRANSCODE_TEXT = """Copy a folder of videos with a short side of 256 pixels and close key frames, which makes reading
windows faster.

adatad data transcode raw_videos --output short256
adatad data transcode raw_videos --output short256 --measure
adatad data transcode raw_videos --output fps30 --short-side 288 --fps 30

Videos in folders of the folder are found too; copies lie side by side, one where the same file lies in several folders.
They have the same frames at the same times, whatever their rate, so that the same annotations hold (with --fps those in
seconds); set data.videos to their folder and data.pattern to {name}.mp4. Started again, it makes those that aren't
there, and refuses copies of another rate or size. --measure also reads windows of originals and copies."""


def add_from_csv_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data from-csv`."""
    parser.description = FROM_CSV_TEXT
    parser.add_argument("table", type=path_arg, metavar="CSV", help="table of instances")
    parser.add_argument("--videos", type=path_arg, required=True, metavar="FOLDER", help="folder of the video files")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FOLDER", help="folder to write into")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="ROLE=NAME",
        help="which column is the video, start, end, label, duration or subset, if its name doesn't tell: label=verb",
    )  # fmt: skip
    parser.add_argument(
        "--validation-share", type=number(0, 1), default=0.2, metavar="S",
        help="share of the videos that is for validation if the table has no column subset (default %(default)s)",
    )  # fmt: skip
    parser.set_defaults(action=from_csv)


def from_csv(args: argparse.Namespace) -> int:
    """Run `adatad data from-csv`; returns its exit code."""
    if not 0 < args.validation_share < 1:
        raise UserError("--validation-share: lies between 0 and 1")
    pairs = [pair.partition("=") for pair in args.columns]
    if not all(role and name for role, _, name in pairs):
        raise UserError("--columns: expected ROLE=NAME, such as label=verb")
    columns = {role.strip(): name.strip() for role, _, name in pairs}
    if len(columns) < len(pairs):
        raise UserError("--columns: names a role twice")

    from adatad.data.prepare.own_data import make_annotations

    with progress("videos looked at"):
        spec = make_annotations(args.table, args.videos, args.output, args.validation_share, columns)
    print(f"{spec}: look at it, then adatad data summary {spec}")
    return 0


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data convert`."""
    parser.description = CONVERT_TEXT
    parser.add_argument("name", choices=DATA_SETS, help="the data set")
    parser.add_argument(
        "source", type=path_arg, metavar="SOURCE", help="folder of the official files, or their one file"
    )
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--classes", default="category_idx.txt", metavar="NAME", help="class list, written beside it")
    parser.add_argument("--videos", type=path_arg, metavar="FOLDER", help="thumos, multithumos: folder of the videos")
    parser.add_argument(
        "--scored", type=path_arg, metavar="CSV", help="activitynet: BSN's list, to write blocked.json too"
    )
    parser.set_defaults(action=convert)


def convert(args: argparse.Namespace) -> int:
    """Run `adatad data convert`; returns its exit code."""
    if args.scored is not None and args.name != "activitynet":
        raise UserError("--scored: belongs to activitynet")
    if (args.videos is None) == args.name.endswith("thumos"):
        raise UserError("--videos: thumos and multithumos need it, the others don't")
    if Path(args.classes).name != args.classes or args.classes in (args.output.name, "blocked.json"):
        raise UserError(f"--classes: expected a file name of its own beside --output, got {args.classes!r}")
    if not args.output.name:
        raise UserError("--output: expected the name of a JSON file to write")

    from adatad.data.annotation_file import names_text
    from adatad.data.prepare.official import not_scored, write

    classes_file, blocked_file = args.output.with_name(args.classes), args.output.with_name("blocked.json")
    outputs = [args.output, classes_file, *([blocked_file] if args.scored else [])]
    with files_to_write(outputs, [args.source, *([args.scored] if args.scored else [])]):
        try:
            database, classes = read_official(args.name, args.source, args.videos)
            blocked = not_scored(database, args.scored) if args.scored else []
        except (UserError, OSError) as error:
            page = f"tools/prepare_data/{args.name.split('-')[0]}/README.md"
            raise UserError(f"{error}\n{page} says which files are expected where") from error
        texts = json.dumps({"database": database}), names_text(classes), json.dumps(blocked)
        # Without a list of what is scored there is no third.
        write(dict(zip(outputs, texts, strict=False)))
    instances = sum(len(entry["annotations"]) for entry in database.values())
    print(f"{args.output}: {len(database)} videos, {instances} instances, {len(classes)} classes")
    if args.scored:
        print(f"{blocked_file}: {len(blocked)} validation videos that aren't scored")
    return 0


def read_official(name: str, source: Path, videos: Path | None) -> tuple[dict, list[str]]:
    """Return the database in the official files of a data set, and the lines of its class list."""
    from adatad.data.prepare import official

    match name:
        case "activitynet" | "hacs":
            return official.activitynet(source)
        case "charades":
            return official.charades(source)
        case "ego4d":
            return official.ego4d(source)
        case "epic-noun" | "epic-verb":
            return official.epic(source, name.removeprefix("epic-"))
        case "multithumos":
            return official.thumos(source, videos)
        case "thumos":
            return official.thumos(source, videos, official.THUMOS_LEFT_OUT)


def add_transcode_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data transcode`."""
    parser.description = TRANSCODE_TEXT
    pixels = whole_number(2)
    parser.add_argument("source", type=path_arg, metavar="VIDEOS", help="folder of videos")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FOLDER", help="folder of the copies")
    parser.add_argument("--short-side", type=pixels, default=256, metavar="PIXELS", help="default %(default)s")
    parser.add_argument(
        "--key-frames", type=whole_number(1), default=16, metavar="N", help="a key frame every N (%(default)s)"
    )
    parser.add_argument("--fps", type=number(0.001, 1000), metavar="F", help="frames a second of copies (each its own)")
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="videos at a time (default: one a core)")
    parser.add_argument("--measure", action="store_true", help="print how much faster windows are read")
    parser.set_defaults(action=transcode)


def transcode(args: argparse.Namespace) -> int:
    """Run `adatad data transcode`; returns its exit code."""
    if not args.source.is_dir() or args.output.resolve().is_relative_to(args.source.resolve()):
        raise UserError(f"VIDEOS: expected a folder of videos, and --output outside of it, got {args.source}")
    if args.fps is not None and args.measure:
        raise UserError("--fps: only without --measure, which reads the same frames of both")

    from rich.console import Console

    from adatad.data.prepare.check import usable_cores
    from adatad.data.prepare.transcode import check_copies, copy_path, find_videos, speed_up, transcode_all
    from adatad.files import listed

    sources, repeated, disputed, others = find_videos(args.source)
    if not sources or disputed:
        reason = f"different videos are called {listed(disputed, 10)}; rename them" if disputed else "holds no videos"
        raise UserError(f"VIDEOS: {args.source}: {reason}")
    check_output_folder(args.output)
    check_copies(sources, args.output, args.short_side, args.fps)
    for paths, what in (
        (repeated, "equal to others of their name, byte by byte"),
        (others, "no videos, by their ending"),
    ):
        if paths:
            names = listed([str(path.relative_to(args.source)) for path in paths])
            print(f"{len(paths)} {'file' if len(paths) == 1 else 'files'} left out, {what}: {names}")
    console = Console(highlight=False, soft_wrap=True)
    with progress("videos copied", len(sources)) as bar:
        failed = transcode_all(
            sources, args.output, args.short_side, args.key_frames, args.workers or usable_cores(), bar.update, args.fps
        )
    for source, reason in failed:
        print(shown(f"{source}: not copied: {reason}"), file=sys.stderr)
    console.print(f"{args.output}: {len(sources) - len(failed)} of {len(sources)} videos", markup=False)
    pairs = [(path, copy_path(path, args.output)) for path in sources if copy_path(path, args.output).is_file()]
    if args.measure and pairs:
        console.print(f"windows are read {speed_up(pairs):.2f} times as fast from the copies", markup=False)
    return 1 if failed else 0
