"""Look at every video of a spec's data set once, before training on it: what is missing, broken or of
another length or rate than its annotations.

python tools/prepare_data/check.py configs/demo/tia.yaml --output data/demo/check

Writes blocked.txt (for data.blocked_videos), summary.html, and checked.jsonl, with which an interrupted check goes on.
Videos that the spec blocks already aren't looked at, and stay on the list. Exit code 1 if a problem was found.
"""

from __future__ import annotations

import argparse

from adatad.command import path_arg, run, whole_number
from adatad.files import check_output, check_output_folder, shown
from adatad.spec import add_spec_arguments, spec_from_arguments

NAMED = 20
"""Videos whose problems are printed; summary.html has all."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    parser.add_argument("--output", type=path_arg, required=True, metavar="FOLDER", help="folder of the three files")
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="videos at a time (default: one a core)")
    parser.add_argument("--whole", action="store_true", help="decode every frame instead of a few of each video")
    args = parser.parse_args()
    spec = spec_from_arguments(args, check_files=False)
    check_output_folder(args.output)
    for name in ("blocked.txt", "summary.html", "checked.jsonl"):
        check_output(args.output / name)

    from rich.console import Console
    from rich.progress import Progress

    from adatad.data.annotation_file import read_names
    from adatad.data.prepare.check import check_data_set, usable_cores, write_block_list
    from adatad.report.data_check import write_data_check

    # Before the list is written, which may be the same file.
    kept = sorted(read_names(spec.data.blocked_videos))
    console = Console(highlight=False, soft_wrap=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("videos", total=None)
        checked = check_data_set(
            spec, args.output, args.workers or usable_cores(), args.whole,
            lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
    blocked = write_block_list(checked, args.output / "blocked.txt", kept)
    write_data_check(checked, spec.name, args.output / "summary.html")
    wrong = [found for found in checked if found.problems]
    for found in wrong[:NAMED]:
        for kind, detail in found.problems:
            console.print(shown(f"{found.video}: {kind}: {detail}"), markup=False)
    if len(wrong) > NAMED:
        console.print(f"and {len(wrong) - NAMED} more videos with problems")
    if kept:
        console.print(
            f"{len(kept)} blocked {'video' if len(kept) == 1 else 'videos'} not checked, kept on the list; to check "
            "them too, set data.blocked_videos to null"
        )
    console.print(
        f"{len(checked)} videos, {len(wrong)} with problems, {blocked} blocked: {args.output / 'summary.html'}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    run(main)
