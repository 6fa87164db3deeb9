"""A real epoch: videos from the disk through loader and augmentation, by `adatad train`, on one GPU and on two."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from adatad.data.prepare.demo import make_demo
from adatad.dev.benchmarks.gpu_report import ROOT, Sheet
from adatad.memory.offload import GIB

SPEC = "configs/demo/tia.yaml"
VIDEOS = 40, 2
"""Of training and validation."""
MODEL = (
    "model.backbone.preset=base", "model.backbone.weights=random", "data.size_pixels=160", "memory.policy=tile",
    "data.augment={crop_short_side_pixels: 182, flip: 0.5, rand_augment: true, "
    "color_jitter: {brightness: 0.5, contrast: 0.5, saturation: 0.5, hue: 0.1}}",
    "data.workers=4",
)  # fmt: skip
"""VideoMAE-B on 128 frames of 160 pixels, with all that THUMOS-14 is augmented by."""
SCHEDULE = ("schedule.epochs=1", "schedule.warmup_epochs=0", "train.evaluate_untrained=false")
COLUMNS = ("", "s a step", "waiting for data", "peak GiB", "steps")
WARM_UP_STEPS = 3


def epochs(
    device: torch.device, seconds: float, model: tuple[str, ...] = MODEL, videos: tuple[int, int] = VIDEOS
) -> Sheet:
    """An epoch on one process, and on two where there are two GPUs, of the same global batch. seconds: to spend at
    most."""
    counts = [1, 2] if device.type == "cuda" and torch.cuda.device_count() > 1 else [1]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder, "demo"), *videos)
        for count in counts:
            name = "one process" if count == 1 else f"{count} ranks of ddp"
            rows.append((name, *epoch(Path(folder), count, seconds / len(counts), model)))
    return Sheet("A real epoch: loader, augmentation and training, global batch 2, the built-in data", COLUMNS, rows)


def epoch(folder: Path, processes: int, seconds: float, model: tuple[str, ...]) -> tuple[str, str, str, str]:
    """Cells of a row; what went wrong stands in the first one."""
    run = folder / f"runs{processes}"
    settings = (
        f"data.annotations={folder}/demo/annotations.json", f"data.videos={folder}/demo/videos", f"run.root={run}",
        *SCHEDULE, *model,
    )  # fmt: skip
    command = [sys.executable, "tools/train.py", SPEC, "--set", *settings]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *start, *command[1:], "parallel.engine=ddp"]
    code, output = run_for(command, seconds)
    if code is None:
        return f"not done in {seconds:.0f} s", "", "", ""
    found = list(run.rglob("metrics.jsonl"))
    if code or not found:
        said = [line for line in output.splitlines() if line.strip()]
        return f"failed: {said[-1][:100] if said else code}", "", "", ""
    return figures([json.loads(line) for line in found[0].read_text().splitlines()])


def run_for(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit code and output; no code if it took longer and was ended, with the ranks that it had started."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output = process.communicate(timeout=seconds)[0]
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]


def figures(lines: list[dict]) -> tuple[str, str, str, str]:
    """Cells of a row from the lines of metrics.jsonl: the first steps start workers and find kernels."""
    steps = [line for line in lines if line["kind"] == "train"]
    settled = steps[WARM_UP_STEPS:] or steps
    seconds = statistics.median(line["step_seconds"] for line in settled)
    waiting = sum(line["data_wait_seconds"] for line in settled) / sum(line["step_seconds"] for line in settled)
    peak = max(line["memory_bytes"] or 0 for line in steps) / GIB
    return f"{seconds:.3f}", f"{waiting:.0%}", f"{peak:.2f}", str(len(steps))
