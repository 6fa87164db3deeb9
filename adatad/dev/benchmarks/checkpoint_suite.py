"""Stall of a training step while a checkpoint is saved: handed to the background writer, against written at once."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adatad.dev.benchmarks.tables import Result
from adatad.training.checkpoint import Checkpoint, CheckpointWriter, write_checkpoint

ROUNDS = 5


def run(numbers: int = 12_000_000) -> list[Result]:
    """Measure the stall; half a minute. numbers: trained parameters, by default about those of L's adapters."""
    checkpoint = some_checkpoint(numbers)
    at_once, handed_over = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=1)
        for step in range(ROUNDS + 1):
            at_once.append(seconds(lambda: write_checkpoint(Path(folder) / "at-once", checkpoint)))
            handed_over.append(seconds(lambda step=step: writer.submit(step, checkpoint)))
            writer.wait()  # a step of training would last about as long
        writer.close()
    # The first round allocates pinned memory and starts the writer.
    stall, direct = statistics.median(handed_over[1:]), statistics.median(at_once[1:])
    # Four fp32 tensors for each parameter.
    note = f"{stall:.3f} of {direct:.2f} s, {16 * numbers / 1e6:.0f} MB"
    return [Result("stall of a step / saving at once", stall / direct, 0.10, None, note)]


def some_checkpoint(numbers: int) -> Checkpoint:
    """Return a checkpoint of random parameters, averages and AdamW's two moments."""
    tensors = [{f"{i}": torch.randn(numbers // 8) for i in range(8)} for _ in range(4)]
    optimizer = {name: {"exp_avg": tensors[2][name], "exp_avg_sq": tensors[3][name]} for name in tensors[2]}
    return Checkpoint(tensors[0], tensors[1], optimizer, {"progress": {"step": 0}}, "name: x\n")


def seconds(do: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started
