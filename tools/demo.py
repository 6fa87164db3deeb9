"""The demo: make the built-in data set, train on it, evaluate, and draw. About five minutes on two cores.

Works in the checkout, wherever it is started from: data/ and runs/ lie there.

python tools/demo.py
python tools/demo.py --train-videos 8 --validation-videos 4 --set schedule.epochs=1 schedule.warmup_epochs=0
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from adatad.command import path_arg, run, whole_number
from adatad.printing import lasting_output
from adatad.spec import add_device_argument, load

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = Path("configs/demo/tia.yaml")
MAX_VIDEOS = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=path_arg, default=ROOT / DEFAULT, metavar="SPEC", help=f"default: {DEFAULT}")
    parser.add_argument("--difficulty", choices=("easy", "hard"), default="easy", help="of the data set")
    parser.add_argument("--train-videos", type=whole_number(1, MAX_VIDEOS), default=48, metavar="N")
    parser.add_argument("--validation-videos", type=whole_number(1, MAX_VIDEOS), default=20, metavar="N")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    add_device_argument(parser)
    args = parser.parse_args()
    args.spec = args.spec.resolve()
    # The paths in the demo's specs are relative to the checkout.
    os.chdir(ROOT)

    from adatad.data.prepare.demo import make_demo_with_progress
    from adatad.report.summary import print_summary
    from adatad.training.run import train_run
    from adatad.training.run_directory import next_of_command

    # Where the spec's data lie; its files can be checked only when they are there.
    folder = Path(load(args.spec, args.overrides, check_files=False).data.annotations).parent
    make_demo_with_progress(folder, args.train_videos, args.validation_videos, difficulty=args.difficulty)
    spec = load(args.spec, args.overrides)
    # Typed again it replaces what it made itself, and nothing else.
    spec, again = next_of_command(spec, Path(__file__).name)
    with lasting_output():
        result, folder = train_run(spec, overwrite=again)
        print_summary(spec, result, folder)
    return 0


if __name__ == "__main__":
    run(main)
