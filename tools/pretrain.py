"""Pretrain the demo's tiny backbone on generated clips of known motion; a quarter of an hour on two cores.

python tools/pretrain.py --output configs/demo/tiny_backbone.safetensors
"""

from __future__ import annotations

import argparse

from adatad.command import path_arg, run, whole_number
from adatad.files import check_output

MAX_CLIPS = 1_000_000
"""200 GB of frames, which are drawn before the first step."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument(
        "--clips", type=whole_number(64, MAX_CLIPS), default=20_000, help="generated clips (default %(default)s)"
    )
    parser.add_argument("--steps", type=whole_number(1), default=2_400, help="optimizer steps (default %(default)s)")
    parser.add_argument(
        "--seed", type=whole_number(0), default=1_000, help="of clips and weights (default %(default)s)"
    )
    args = parser.parse_args()
    check_output(args.output)

    from rich.console import Console
    from rich.progress import Progress

    from adatad.dev.pretrain import pretrain

    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pretraining", total=args.steps)

        def show(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"pretraining, loss {loss:.3f}")
            if not console.is_terminal and step % 100 == 0:
                console.print(f"step {step}/{steps}  loss {loss:.3f}")

        explained = pretrain(args.output, args.clips, args.steps, args.seed, progress=show)
    console.print(f"{args.output}: explained variance on unseen clips")
    for name, value in explained.items():
        console.print(f"  {name:12} {value:.2f}")
    return 0


if __name__ == "__main__":
    run(main)
