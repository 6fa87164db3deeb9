"""Measurements of the scale suite, each of one size in a process of its own: python -m ...scale_measures NAME SIZE.

What is timed is repeated, and the least CPU time counts: other work on the machine only adds to it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatad.data.dataset import Batch
from adatad.dev.benchmarks.cpu_suite import peak_resident, resident_floor
from adatad.dev.benchmarks.scale_data import detections, truth
from adatad.dev.comm_counter import CommCounter
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.nms import apply_nms
from adatad.models.actionformer import level_masks, level_points
from adatad.models.detector import build_model
from adatad.models.losses import assign_targets
from adatad.parallel.processes import Processes, start_processes
from adatad.spec import Spec, load
from adatad.spec.schema import NmsSpec
from adatad.training.metered import random_batch
from adatad.training.resolve import resolve_model
from adatad.training.setup import build_train_state
from adatad.training.step import train_step

SPEC = "configs/demo/tia.yaml"
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
DEFAULT_CLASSES = 8
MIN_SECONDS, RUNS, MAX_RUNS = 0.5, 3, 20
"""CPU time that repetitions should come to, and the least and most of them."""

Figures = dict[str, float]
"""Figures by name; seconds are CPU time of the process."""


def least_seconds(action: Callable[[], object]) -> float:
    """Return the least CPU time of `RUNS` to `MAX_RUNS` calls."""
    spent: list[float] = []
    while len(spent) < RUNS or (sum(spent) < MIN_SECONDS and len(spent) < MAX_RUNS):
        started = time.process_time()
        action()
        spent.append(time.process_time() - started)
    return min(spent)


def demo_spec(*overrides: str) -> Spec:
    """Return the demo's spec in float32 with other values."""
    return load(SPEC, ["train.precision=fp32", *overrides], check_files=False)


def step(spec: Spec, num_classes: int, windows: int, processes: Processes) -> Figures:
    """Run training steps on random frames: CPU seconds of one (0 with several ranks), rise of resident memory, and the
    bytes that the rank sends in it."""
    torch.manual_seed(0)
    run = resolve_model(spec, processes, num_classes)
    state = build_train_state(run, processes, build_model(spec.model, num_classes))
    batch = random_batch(spec, windows, num_classes, torch.device("cpu"))
    # The first step makes the optimizer's state.
    train_step(state, [batch], 0)
    floor = resident_floor()
    train_step(state, [batch], 1)
    rise, total = peak_resident() - floor, peak_resident()
    # Ranks would have to repeat a step equally often, and take turns on the cores: their time says nothing.
    seconds = 0.0 if processes.world > 1 else least_seconds(lambda: train_step(state, [batch], 2))
    # Counted apart: counting is slow.
    with CommCounter() as counter:
        train_step(state, [batch], 3)
    sent = counter.sent_bytes(processes.world)
    return {"seconds": seconds, "rise_bytes": rise, "peak_bytes": total, "sent_bytes": sent}


def frames(size: int, policy: str) -> Figures:
    """Run steps of one window of so many frames."""
    # ActionFormer pads shorter windows to max_length, which the strides of its levels must divide.
    lengths = f"data.window.size_grid={size}", f"model.detector.max_length={max(128, size)}"
    tile = ("memory.tile_clips=1",) if policy == "tile" else ()
    spec = demo_spec(*lengths, f"memory.policy={policy}", *tile, "train.global_batch=1")
    return step(spec, DEFAULT_CLASSES, 1, Processes(0, 1, torch.device("cpu")))


def step_classes(size: int) -> Figures:
    """Run steps of the demo's model with so many classes."""
    return step(demo_spec("train.global_batch=1"), size, 1, Processes(0, 1, torch.device("cpu")))


def ranks(world: int) -> Figures:
    """Run steps with one window a rank under a launcher's environment."""
    with start_processes() as processes:
        return step(demo_spec(f"train.global_batch={world}", "parallel.engine=ddp"), DEFAULT_CLASSES, 1, processes)


def map_classes(size: int) -> Figures:
    """Score 200,000 detections of 2,000 videos that have so many classes."""
    return _map(videos=2000, each=100, instances=6, classes=size)


def map_instances(size: int) -> Figures:
    """Score 200 videos with 200 detections and so many instances each."""
    return _map(videos=200, each=200, instances=size, classes=DEFAULT_CLASSES)


def map_crowded(size: int) -> Figures:
    """Score 20 videos of one class with as many detections as instances each."""
    return _map(videos=20, each=size, instances=size, classes=1)


def _map(videos: int, each: int, instances: int, classes: int) -> Figures:
    known, found = truth(videos, instances, classes), detections(videos, each, instances, classes)
    floor = resident_floor()
    seconds = least_seconds(lambda: evaluate(known, found, "validation", TIOUS))
    return {"seconds": seconds, "rise_bytes": peak_resident() - floor}


def nms_classes(size: int) -> Figures:
    """Suppress 20,000 segments of so many classes."""
    draw = np.random.default_rng(0)
    starts = draw.uniform(0, 1000, 20_000)
    segments = np.stack([starts, starts + draw.uniform(1, 60, 20_000)], 1).astype(np.float32)
    scores, labels = draw.uniform(0.01, 1, 20_000).astype(np.float32), draw.integers(0, size, 20_000)
    spec = NmsSpec(kind="soft", sigma=0.5, max_segments=200, multiclass=True, min_score=0.001)
    apply_nms(segments[:10], scores[:10], labels[:10], spec)  # compiles
    return {"seconds": least_seconds(lambda: apply_nms(segments, scores, labels, spec))}


def targets(size: int) -> Figures:
    """Assign the targets of a window of the demo with so many instances."""
    spec, draw = demo_spec(), np.random.default_rng(0)
    window, detector = spec.data.window.size_grid, spec.model.detector
    starts = torch.from_numpy(draw.uniform(0, window - 20, size)).float()
    segments = torch.stack([starts, starts + torch.from_numpy(draw.uniform(1, 20, size)).float()], 1)
    batch: Batch = random_batch(spec, 1, DEFAULT_CLASSES, torch.device("cpu"))
    points, masks = level_points(window, detector), level_masks(batch.mask, detector)
    labels = torch.arange(size) % DEFAULT_CLASSES
    floor = resident_floor()
    action = lambda: assign_targets(points, masks, [segments], [labels], DEFAULT_CLASSES, detector)  # noqa: E731
    return {"seconds": least_seconds(action), "rise_bytes": peak_resident() - floor}


def detections_file(size: int, folder: str) -> Figures:
    """Write the two files that `adatad evaluate` reads, of so many videos with 100 detections each."""
    for name, content in (("truth", truth(size, 6, 20)), ("found", detections(size, 100, 6, 20))):
        (Path(folder) / f"{name}.json").write_text(json.dumps(content))
    return {}


MEASURES: dict[str, Callable[..., Figures]] = {
    f.__name__: f
    for f in (
        frames, step_classes, ranks, map_classes, map_instances, map_crowded, nms_classes, targets, detections_file
    )
}  # fmt: skip


def main(arguments: list[str]) -> Any:
    """Run one measurement and print its figures."""
    torch.set_num_threads(1)
    name, size, *rest = arguments
    figures = MEASURES[name](int(size), *rest)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
