"""Make the built-in data set: short H.264 videos with exact labels, drawn from a seed.

python tools/make_demo.py --output data/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adatad.command import path_arg, run, whole_number

MAX_VIDEOS = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path_arg, default=Path("data/demo"), metavar="FOLDER")
    parser.add_argument("--train-videos", type=whole_number(1, MAX_VIDEOS), default=48, metavar="N")
    parser.add_argument("--validation-videos", type=whole_number(1, MAX_VIDEOS), default=20, metavar="N")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--difficulty", choices=("easy", "hard"), default="easy")
    args = parser.parse_args()

    from adatad.data.prepare.demo import make_demo_with_progress

    annotations = make_demo_with_progress(
        args.output, args.train_videos, args.validation_videos, seed=args.seed, difficulty=args.difficulty
    )
    print(annotations)
    return 0


if __name__ == "__main__":
    run(main)
