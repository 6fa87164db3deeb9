"""Turn a data set's official annotation files into the annotation file and class list that its specs name.

python tools/prepare_data/annotations.py charades Charades data/charades/annotations/charades.json

The README of each data set's folder beside this file has its command, and says where the files are published.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adatad.command import path_arg, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("activitynet", "charades", "ego4d", "epic-noun", "epic-verb", "hacs", "multithumos", "thumos")
    parser.add_argument("name", choices=names, help="the data set")
    parser.add_argument(
        "source", type=path_arg, metavar="SOURCE", help="folder of the official files, or their one file"
    )
    parser.add_argument("output", type=path_arg, metavar="OUT", help="JSON file to write")
    parser.add_argument("--classes", default="category_idx.txt", metavar="NAME", help="class list, written beside OUT")
    parser.add_argument("--videos", type=path_arg, metavar="FOLDER", help="thumos, multithumos: folder of the videos")
    parser.add_argument(
        "--scored", type=path_arg, metavar="CSV", help="activitynet: BSN's list, to write blocked.json too"
    )
    args = parser.parse_args()
    if args.scored is not None and args.name != "activitynet":
        parser.error("--scored: belongs to activitynet")
    if (args.videos is None) == args.name.endswith("thumos"):
        parser.error("--videos: thumos and multithumos need it, the others don't")
    if Path(args.classes).name != args.classes or args.classes in (args.output.name, "blocked.json"):
        parser.error(f"--classes: expected a file name of its own beside OUT, got {args.classes!r}")
    if not args.output.name:
        parser.error("OUT: expected the name of a JSON file to write")

    from adatad.data.annotation_file import names_text
    from adatad.data.prepare.official import not_scored, write
    from adatad.errors import UserError
    from adatad.files import files_to_write

    classes_file, blocked_file = args.output.with_name(args.classes), args.output.with_name("blocked.json")
    outputs = [args.output, classes_file, *([blocked_file] if args.scored else [])]
    with files_to_write(outputs, [args.source, *([args.scored] if args.scored else [])]):
        try:
            database, classes = read(args)
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


def read(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """The database that the command asks for, and lines of its class list."""
    from adatad.data.prepare import official

    match args.name:
        case "activitynet" | "hacs":
            return official.activitynet(args.source)
        case "charades":
            return official.charades(args.source)
        case "ego4d":
            return official.ego4d(args.source)
        case "epic-noun" | "epic-verb":
            return official.epic(args.source, args.name.removeprefix("epic-"))
        case "multithumos":
            return official.thumos(args.source, args.videos)
        case "thumos":
            return official.thumos(args.source, args.videos, official.THUMOS_LEFT_OUT)


if __name__ == "__main__":
    run(main)
