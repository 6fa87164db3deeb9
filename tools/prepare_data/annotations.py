"""Turn a data set's official annotation files into the annotation file and class list that its specs name.

python tools/prepare_data/annotations.py charades Charades data/charades/annotations/charades.json
python tools/prepare_data/annotations.py epic-noun epic-kitchens-100-annotations \\
    data/epic_kitchens-100/annotations/epic_kitchens_noun.json --classes category_idx_noun.txt
python tools/prepare_data/annotations.py ego4d v2/annotations data/ego4d/annotations/ego4d_v2_220429.json
python tools/prepare_data/annotations.py thumos TH14_Temporal_annotations \\
    data/thumos-14/annotations/thumos_14_anno.json --videos data/thumos-14/raw_data/video

ActivityNet-1.3 and HACS need no conversion. docs/data-sets.md says where each is published.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("charades", "epic-noun", "epic-verb", "ego4d", "thumos", "multithumos")
    parser.add_argument("name", choices=names, help="the data set")
    parser.add_argument("source", type=Path, metavar="FOLDER", help="folder of the official files")
    parser.add_argument("output", type=Path, metavar="OUT", help="JSON file to write")
    parser.add_argument("--classes", default="category_idx.txt", metavar="NAME", help="class list, written beside OUT")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="thumos, multithumos: folder of the videos")
    args = parser.parse_args()
    if (args.videos is None) == args.name.endswith("thumos"):
        parser.error("--videos: thumos and multithumos need it, the others don't")

    from adatad.data.official import charades, ego4d, epic, thumos, write
    from adatad.errors import UserError

    try:
        match args.name:
            case "charades":
                database, classes = charades(args.source)
            case "epic-noun" | "epic-verb":
                database, classes = epic(args.source, args.name.removeprefix("epic-"))
            case "ego4d":
                database, classes = ego4d(args.source)
            case "thumos" | "multithumos":
                database, classes = thumos(args.source, args.videos)
        write(database, classes, args.output, args.output.with_name(args.classes))
    except (UserError, OSError) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    instances = sum(len(entry["annotations"]) for entry in database.values())
    print(f"{args.output}: {len(database)} videos, {instances} instances, {len(classes)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
