"""The demo: make the built-in data set, train on it, evaluate, draw, and detect in a new video. About five minutes on
two cores.

adatad demo
adatad demo --train-videos 8 --validation-videos 4 --set schedule.epochs=1 schedule.warmup_epochs=0

data/ and runs/ are made in the current folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from adatad.cli.arguments import SPEC_HELP, add_device_argument, spec_path
from adatad.cli.command import whole_number
from adatad.files import shown
from adatad.printing import lasting_output
from adatad.spec import load

if TYPE_CHECKING:
    from adatad.data.prepare.demo import Difficulty

# A name, not a path: it works in an installation and from any folder.
DEFAULT = "demo/tia"
MAX_VIDEOS = 100_000
NEW_VIDEO, NEW_SEED = "new_video", 1
"""Folder in the run of a video without labels and what is found in it, and the seed that it is drawn from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad demo`."""
    parser.add_argument("--spec", default=DEFAULT, metavar="SPEC", help=f"{SPEC_HELP} (default %(default)s)")
    add_video_arguments(parser)
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    add_device_argument(parser)
    parser.set_defaults(action=demo)


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the built-in data set is made of."""
    parser.add_argument("--difficulty", choices=("easy", "hard"), default="easy", help="of the data set")
    parser.add_argument("--train-videos", type=whole_number(1, MAX_VIDEOS), default=48, metavar="N")
    parser.add_argument("--validation-videos", type=whole_number(1, MAX_VIDEOS), default=20, metavar="N")


def demo(args: argparse.Namespace) -> int:
    """Run `adatad demo`; returns its exit code."""
    file = spec_path(args.spec, quiet=args.spec == DEFAULT)
    # The data set is made where the spec's data lie; files are checked by the second load, when they are there.
    folder = Path(load(file, args.overrides, check_files=False).data.annotations).parent

    from adatad.data.prepare.demo import make_demo_with_progress
    from adatad.report.scores import print_summary
    from adatad.training.run import train_run
    from adatad.training.run_directory import next_of_command

    make_demo_with_progress(folder, args.train_videos, args.validation_videos, difficulty=args.difficulty)
    spec = load(file, args.overrides)
    # Typed again it replaces what it made itself, and nothing else.
    spec, again = next_of_command(spec, "adatad-demo")
    with lasting_output():
        result, folder = train_run(spec, overwrite=again)
        print_summary(spec, result, folder)
    return detect_in_new_video(folder, args.difficulty)


def detect_in_new_video(run: Path, difficulty: Difficulty) -> int:
    """Draw a video that isn't in the data set, and detect in it as `adatad detect` does, by a run's best checkpoint.
    Returns the exit code."""
    from adatad.cli.detect import run_request
    from adatad.data.prepare.demo import write_unlabelled_video
    from adatad.detect.detect_list import Request

    video = run / NEW_VIDEO / "video.mp4"
    write_unlabelled_video(video, NEW_SEED, difficulty)
    print(f"\nadatad detect {shown(run)} {shown(video)} --output {shown(video.parent)}", flush=True)
    return run_request(Request(model=run, sources=(str(video),), output=video.parent))
