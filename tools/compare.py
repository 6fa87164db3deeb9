"""Draw the mAP curves of several runs into one picture, and print where they ended.

python tools/compare.py runs/demo/tia/id0 runs/demo/tia/id1 --output curves.png
"""

from __future__ import annotations

import argparse

from adatad.command import path_arg, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=path_arg, nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--group", metavar="KEY=VALUE", help="only of this group of instances (evaluate.groups_by)")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="PNG file to write")
    args = parser.parse_args()

    from adatad.report.compare import compare

    compare(args.runs, args.output, args.group)
    print(args.output)
    return 0


if __name__ == "__main__":
    run(main)
