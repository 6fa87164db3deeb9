"""Benchmarks, goldens and other tools of a checkout.

adatad dev benchmark memory --check
adatad dev verify-golden tests/golden
"""

from __future__ import annotations

import argparse
import importlib
import os
from functools import partial
from pathlib import Path

from adatad.cli.command import path_arg, whole_number
from adatad.errors import UserError
from adatad.files import check_output, write_text
from adatad.printing import print_table
from adatad.quantities import number
from adatad.resources import PACKAGE

# By name, so that one suite's imports (decoders, DeepSpeed, a GPU's libraries) don't burden the others.
SUITES = {
    "memory": ("adatad.dev.benchmarks.memory_suite", "training step, one window, peak in GiB"),
    "launches": ("adatad.dev.benchmarks.launches_suite", "training step on a pretended GPU, counted"),
    "cpu": ("adatad.dev.benchmarks.cpu_suite", "training step on one CPU thread, as ratios"),
    "gpu": ("adatad.dev.benchmarks.gpu_suite", "training step on one GPU, as ratios"),
    "roofline": (
        "adatad.dev.benchmarks.roofline_suite",
        "a step of g on an H100's class of GPU, as ratios",
    ),
    "rounding": ("adatad.dev.benchmarks.rounding_suite", "error of bf16 gradients, as ratios"),
    "engines": ("adatad.dev.benchmarks.engines_suite", "memory of a rank under every engine"),
    "clip": ("adatad.dev.benchmarks.clip_suite", "ranks that share a window"),
    "evaluation": ("adatad.dev.benchmarks.evaluation_suite", "scoring on one thread"),
    "checkpoint": ("adatad.dev.benchmarks.checkpoint_suite", "saving a checkpoint beside training"),
    "decoding": (
        "adatad.dev.benchmarks.decoding_suite",
        "96 frames, every 4th, from the middle of a video",
    ),
    "detect": ("adatad.dev.benchmarks.detect_suite", "detection in a video of five minutes, on the CPU"),
    "scale": ("adatad.dev.benchmarks.scale_suite", "how cost grows with work, as slopes"),
}
"""Suites by name: the module, and the title of what it prints."""
BENCHMARK_TEXT = """Measure memory and time against the bars that this project sets itself.

adatad dev benchmark memory --check

memory: peak of a training step for every model, counted on the meta device (a quarter of an hour, no GPU).
launches: host waits, launches and races of every mode and policy on a pretended GPU (two minutes, no GPU).
cpu: resident memory and CPU time of real steps beside the recorded reference (eight minutes).
gpu: time and memory of real steps on one GPU, beside the reference's recipe (eight minutes, or --minutes); --report
writes docs/benchmarks/gpu-NAME.md.
roofline: how long a step of g would take on a data centre's GPU, by counts (half a minute, no GPU needed).
rounding: how far bf16 gradients are from float64 ones under tile and under autocast, by depth (half a minute).
engines: memory of a rank under every engine, for 1 to 64 ranks, by count (two minutes, no GPU needed).
clip: bytes, memory, waiting and scaling where ranks share a window (ten minutes, no GPU needed).
evaluation: NMS and mAP on one thread beside the reference's, with their results checked (half a minute).
checkpoint: how long a step stands still while a checkpoint is saved (half a minute).
decoding: what a frame costs through each library, and memory over 2,000 openings (five minutes).
detect: time of detection in a new video, as a stream and by windows (half a minute).
scale: slopes of time and memory against videos, frames, classes, instances and ranks; writes docs/images/scale.png (a
quarter of an hour)."""
GOLDEN_TEXT = """Run every golden case under a folder and compare each quantity with what the reference computed.

adatad dev verify-golden tests/golden
adatad dev verify-golden tests/golden --policy tile --tile-clips 1 --segment-blocks 2

A row a case and quantity, with the largest error and its tolerance. Exit code 1 if any is over, 2 if there is no case
or one can't be read."""
# Beside the package only in a checkout, which is where this verb is.
PAGES = PACKAGE.parent / "docs" / "benchmarks"
MAX_CLIPS = 1_000_000
"""200 GB of frames, which are drawn before the first step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad dev`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, description: str | None = None) -> argparse.ArgumentParser:
        """Add a command; its text is the description, too, unless there is another."""
        form = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=text, description=description or text, formatter_class=form)

    bench = add("benchmark", "measure memory and time against this project's bars", BENCHMARK_TEXT)
    bench.add_argument("suite", choices=SUITES)
    bench.add_argument("--check", action="store_true", help="exit with 1 if a bar isn't met")
    bench.add_argument("--report", action="store_true", help="suite gpu: write the page of this card")
    # No default here: that one was given is an error with any other suite.
    bench.add_argument("--minutes", type=float, metavar="M", help="suite gpu: to spend (8)")
    bench.set_defaults(action=benchmark)

    golden = add("verify-golden", "compare golden cases with what the reference computed", GOLDEN_TEXT)
    golden.add_argument("folder", type=path_arg, metavar="FOLDER", help="folder that holds cases, at any depth")
    golden.add_argument("--failures", action="store_true", help="print only rows that are over their tolerance")
    golden.add_argument(
        "--policy", choices=("none", "selective", "block", "tile"), default="none", help="memory policy"
    )
    # As arguments instead of --set: a golden case has no spec of its own.
    golden.add_argument("--tile-clips", type=whole_number(1), metavar="M", help="policy tile: clips of a tile")
    golden.add_argument("--segment-blocks", type=whole_number(1), metavar="K", help="policy tile: blocks of a segment")
    golden.add_argument("--recompute", choices=("once", "twice"), default="once", help="policy tile")
    golden.set_defaults(action=verify_golden)

    same = add("same", "compare two runs bit for bit: weights, averages, losses, detections")
    same.add_argument("run_a", type=path_arg, metavar="RUN_A", help="run directory")
    same.add_argument("run_b", type=path_arg, metavar="RUN_B", help="run directory")
    # 0 asks for equal bits; the tolerance is for changes of the order of a sum.
    same.add_argument("--within", type=number(0, 1e6), default=0.0, metavar="X", help="relative difference accepted")
    same.set_defaults(action=compare_runs)

    zoo = add("model-zoo", "write docs/model-zoo.md from the specs of the published experiments")
    zoo.add_argument("--output", type=path_arg, default=Path("docs/model-zoo.md"), metavar="FILE", help="%(default)s")
    zoo.set_defaults(action=model_zoo)

    docs = add("docs", "write the pages of docs/ that are made from the code: keys, commands, support matrix")
    docs.add_argument("--output", type=path_arg, default=Path("docs"), metavar="FOLDER", help="%(default)s")
    docs.set_defaults(action=reference_pages)

    site = add("site", "build the documentation's site; broken links and anchors are errors")
    site.add_argument(
        "--output", type=path_arg, default=Path("build/site"), metavar="FOLDER", help="replaced; %(default)s"
    )
    site.set_defaults(action=build_the_site)

    text = "pretrain the demo's tiny backbone on generated clips of known motion; a quarter of an hour on two cores"
    tiny = add("pretrain", text)
    tiny.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="safetensors file to write")
    tiny.add_argument(
        "--clips", type=whole_number(64, MAX_CLIPS), default=20_000, help="generated clips (default %(default)s)"
    )
    tiny.add_argument("--steps", type=whole_number(1), default=2_400, help="optimizer steps (default %(default)s)")
    tiny.add_argument("--seed", type=whole_number(0), default=1_000, help="of clips and weights (default %(default)s)")
    tiny.set_defaults(action=pretrain)


def benchmark(args: argparse.Namespace) -> int:
    """Run `adatad dev benchmark`; returns its exit code."""
    if args.suite != "gpu" and (args.report or args.minutes is not None):
        raise UserError("--report and --minutes: only of the suite gpu")
    # Before torch is imported, which reads this when it begins to allocate; a user's own settings stay.
    if args.suite == "gpu" and not os.environ.keys() & {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"

    from adatad.dev.benchmarks.tables import show, verdict

    module, title = SUITES[args.suite]
    run = importlib.import_module(module).run
    # Only this suite has a budget of time: the others count, and always do the same.
    if args.suite == "gpu":
        run = partial(run, seconds=60 * (args.minutes or 8.0), report=PAGES if args.report else None)
    results = run()
    show(title, results)
    # Always said; it is the exit code only for those who ask for the check.
    failed = verdict(results)
    return failed if args.check else 0


def verify_golden(args: argparse.Namespace) -> int:
    """Run `adatad dev verify-golden`; returns its exit code."""
    if args.policy != "tile" and (args.tile_clips or args.segment_blocks or args.recompute != "once"):
        raise UserError("--tile-clips, --segment-blocks and --recompute belong to --policy tile")

    from adatad.dev.parity.verify_golden import verify
    from adatad.spec.schema import MemorySpec

    memory = MemorySpec(
        policy=args.policy, tile_clips=args.tile_clips, segment_blocks=args.segment_blocks, recompute=args.recompute
    )
    return verify(args.folder, args.failures, memory)


def compare_runs(args: argparse.Namespace) -> int:
    """Run `adatad dev same`; returns its exit code."""
    from adatad.dev.same import same

    # The table says which parts differ, the lines where in them the first difference is.
    comparison = same(args.run_a, args.run_b, args.within)
    print_table(comparison.table())
    print("\n".join(comparison.lines()))
    return 0 if comparison.is_equal else 1


def model_zoo(args: argparse.Namespace) -> int:
    """Run `adatad dev model-zoo`; returns its exit code."""
    # Before the page, which takes minutes to make.
    check_output(args.output)

    from adatad.dev.model_zoo import model_zoo as page

    write_text(args.output, page())
    print(args.output)
    return 0


def reference_pages(args: argparse.Namespace) -> int:
    """Run `adatad dev docs`; returns its exit code."""
    from adatad.cli.main import VERBS, parser_of
    from adatad.dev.docs.pages import made_pages

    for name, text in made_pages({verb: (what, parser_of(verb)) for verb, what in VERBS.items()}).items():
        write_text(args.output / name, text())
        print(args.output / name)
    return 0


def build_the_site(args: argparse.Namespace) -> int:
    """Run `adatad dev site`; returns its exit code."""
    from adatad.dev.docs.site import build_site

    build_site(PACKAGE.parent, args.output.absolute())
    print(f"{args.output}: the site; to read it: python3 -m http.server --directory {args.output}")
    return 0


def pretrain(args: argparse.Namespace) -> int:
    """Run `adatad dev pretrain`; returns its exit code."""
    check_output(args.output)

    from adatad.dev.pretrain import pretrain as train_backbone
    from adatad.progress_bar import progress

    with progress("steps of pretraining", args.steps) as bar:
        explained = train_backbone(
            args.output, args.clips, args.steps, args.seed,
            progress=lambda step, steps, loss: bar.update(step, steps, f"loss {loss:.3f}"),
        )  # fmt: skip
    print(f"{args.output}: explained variance on unseen clips")
    for name, value in explained.items():
        print(f"  {name:12} {value:.2f}")
    return 0
