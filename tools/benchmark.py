"""Measure memory and time against the bars that this project sets itself.

python tools/benchmark.py --suite memory --check

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
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from adatad.command import run

TITLES = {
    "memory": "training step, one window, peak in GiB",
    "launches": "training step on a pretended GPU, counted",
    "cpu": "training step on one CPU thread, as ratios",
    "gpu": "training step on one GPU, as ratios",
    "roofline": "a step of g on a GPU of an H100's class, predicted, as ratios",
    "rounding": "error of bf16 gradients, as ratios",
    "engines": "memory of a rank under every engine",
    "clip": "ranks that share a window",
    "evaluation": "scoring on one thread",
    "checkpoint": "saving a checkpoint beside training",
    "decoding": "a window of 96 frames, every 4th, from the middle of a video",
}


PAGES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=TITLES, required=True)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar isn't met")
    parser.add_argument("--report", action="store_true", help="suite gpu: write the page of this card")
    parser.add_argument("--minutes", type=float, metavar="M", help="suite gpu: to spend (8)")
    args = parser.parse_args()
    if args.suite != "gpu" and (args.report or args.minutes is not None):
        parser.error("--report and --minutes: only of the suite gpu")

    from adatad.dev.benchmarks.results import show, verdict

    match args.suite:
        case "memory":
            from adatad.dev.benchmarks.memory_suite import run
        case "launches":
            from adatad.dev.benchmarks.launches_suite import run
        case "cpu":
            from adatad.dev.benchmarks.cpu_suite import run
        case "gpu":
            # Read when torch begins to allocate; a user's own settings stay.
            if not os.environ.keys() & {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}:
                os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
            from adatad.dev.benchmarks.gpu_suite import run as run_gpu

            run = partial(run_gpu, seconds=60 * (args.minutes or 8.0), report=PAGES if args.report else None)
        case "roofline":
            from adatad.dev.benchmarks.roofline_suite import run
        case "rounding":
            from adatad.dev.benchmarks.rounding_suite import run
        case "engines":
            from adatad.dev.benchmarks.engines_suite import run
        case "clip":
            from adatad.dev.benchmarks.clip_suite import run
        case "evaluation":
            from adatad.dev.benchmarks.evaluation_suite import run
        case "checkpoint":
            from adatad.dev.benchmarks.checkpoint_suite import run
        case "decoding":
            from adatad.dev.benchmarks.decoding_suite import run
    results = run()
    show(TITLES[args.suite], results)
    failed = verdict(results)
    return failed if args.check else 0


if __name__ == "__main__":
    run(main)
