"""Copy a folder of videos with a short side of 256 pixels and close key frames, which makes reading windows faster.

python tools/prepare_data/transcode.py raw_videos short256
python tools/prepare_data/transcode.py raw_videos short256 --measure
python tools/prepare_data/transcode.py raw_videos fps30 --short-side 288 --fps 30

Videos in folders of the folder are found too; copies lie side by side, one where the same file lies in several folders.
They have the same frames at the same times, whatever their rate, so that the same annotations hold (with --fps those in
seconds); set data.videos to their
folder and data.pattern to {name}.mp4. Started again, it makes those that aren't there, and refuses copies of
another rate or size. --measure also reads windows of
originals and copies.
"""

from __future__ import annotations

import argparse
import sys

from adatad.command import path_arg, run, whole_number
from adatad.files import check_output_folder, shown
from adatad.quantities import number


def main() -> int:
    pixels = whole_number(2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=path_arg, metavar="FOLDER", help="folder of videos")
    parser.add_argument("output", type=path_arg, metavar="OUT", help="folder of the copies")
    parser.add_argument("--short-side", type=pixels, default=256, metavar="PIXELS", help="default %(default)s")
    parser.add_argument(
        "--key-frames", type=whole_number(1), default=16, metavar="N", help="a key frame every N (%(default)s)"
    )
    parser.add_argument("--fps", type=number(0.001, 1000), metavar="F", help="frames a second of copies (each its own)")
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="videos at a time (default: one a core)")
    parser.add_argument("--measure", action="store_true", help="print how much faster windows are read")
    args = parser.parse_args()
    if not args.source.is_dir() or args.output.resolve().is_relative_to(args.source.resolve()):
        parser.error(f"FOLDER: expected a folder of videos, and OUT outside of it, got {args.source}")
    if args.fps is not None and args.measure:
        parser.error("--fps: only without --measure, which reads the same frames of both")

    from rich.console import Console
    from rich.progress import Progress

    from adatad.data.prepare.check import usable_cores
    from adatad.data.prepare.transcode import check_copies, copy_path, find_videos, speed_up, transcode_all
    from adatad.files import listed

    sources, repeated, disputed, others = find_videos(args.source)
    if not sources or disputed:
        reason = f"different videos are called {listed(disputed, 10)}; rename them" if disputed else "holds no videos"
        parser.error(f"FOLDER: {args.source}: {reason}")
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
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("videos", total=len(sources))
        failed = transcode_all(
            sources, args.output, args.short_side, args.key_frames, args.workers or usable_cores(),
            lambda done, of: bar.update(task, completed=done), args.fps,
        )  # fmt: skip
    for source, reason in failed:
        print(shown(f"{source}: not copied: {reason}"), file=sys.stderr)
    console.print(f"{args.output}: {len(sources) - len(failed)} of {len(sources)} videos", markup=False)
    pairs = [(path, copy_path(path, args.output)) for path in sources if copy_path(path, args.output).is_file()]
    if args.measure and pairs:
        console.print(f"windows are read {speed_up(pairs):.2f} times as fast from the copies", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
