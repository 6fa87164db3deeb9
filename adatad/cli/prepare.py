"""`adatad data convert` and `transcode`: what makes a data set out of files as they are published."""

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

# EPIC-Kitchens makes two data sets: models are trained on verbs or nouns alone.
DATA_SETS = ("activitynet", "charades", "ego4d", "epic-noun", "epic-verb", "hacs", "multithumos", "thumos")
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
    # Options that another data set needs are refused: ignored ones would look as if they had worked.
    if args.scored is not None and args.name != "activitynet":
        raise UserError("--scored: belongs to activitynet")
    # THUMOS' files have no durations; they are read off the videos.
    if (args.videos is None) == args.name.endswith("thumos"):
        raise UserError("--videos: thumos and multithumos need it, the others don't")
    # The list lies beside the annotations: under the name of another output it would replace that.
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
        # All texts are made before the first is written: a failure leaves the old files as they are.
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
            # The same videos as THUMOS-14's with other labels, and none left out.
            return official.thumos(source, videos)
        case "thumos":
            return official.thumos(source, videos, official.THUMOS_LEFT_OUT)


def add_transcode_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data transcode`."""
    parser.description = TRANSCODE_TEXT
    # H.264 in 4:2:0 has one color for two pixels of a row and column.
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
    # Inside of VIDEOS copies would be found as videos when the command is started again.
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
    # Copies of another rate or size from an earlier call would mix with new ones unseen.
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
    # Also those of earlier calls, and none of videos that failed.
    pairs = [(path, copy_path(path, args.output)) for path in sources if copy_path(path, args.output).is_file()]
    if args.measure and pairs:
        console.print(f"windows are read {speed_up(pairs):.2f} times as fast from the copies", markup=False)
    return 1 if failed else 0
