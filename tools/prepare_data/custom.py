"""Make a data set and a spec of own videos out of a table of instances (docs/own-data.md).

python tools/prepare_data/custom.py labels.csv --videos my_videos --output data/mine

The table is a text file (CSV) with a first line like `video,start,end,label`, and maybe a column subset (training or
validation). Delimiters, names of columns and forms of times are told by the first line; what is guessed is said.
Everything is checked before anything is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adatad.command import path_arg, run
from adatad.quantities import number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=path_arg, metavar="CSV", help="table of instances")
    parser.add_argument("--videos", type=path_arg, required=True, metavar="FOLDER", help="folder of the video files")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write into")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="ROLE=NAME",
        help="which column is the video, start, end, label, duration or subset, if its name doesn't tell: label=verb",
    )  # fmt: skip
    parser.add_argument(
        "--validation-share", type=number(0, 1), default=0.2, metavar="S",
        help="share of the videos that is for validation if the table has no column subset (default %(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    if not args.output:
        parser.error("--output: expected the name of a folder")
    if not 0 < args.validation_share < 1:
        parser.error("--validation-share: lies between 0 and 1")
    pairs = [pair.partition("=") for pair in args.columns]
    if not all(role and name for role, _, name in pairs):
        parser.error("--columns: expected ROLE=NAME, such as label=verb")
    columns = {role.strip(): name.strip() for role, _, name in pairs}
    if len(columns) < len(pairs):
        parser.error("--columns: names a role twice")

    from adatad.data.prepare.own_data import make_annotations

    spec = make_annotations(args.table, args.videos, Path(args.output), args.validation_share, columns)
    print(f"{spec}: look at it, then python tools/data.py summary {spec}")
    return 0


if __name__ == "__main__":
    run(main)
