"""Figures of a run while it trains: metrics.jsonl, and the trackers that show the same."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatad.training.monitor import BestEffort
from adatad.training.resolve import ResolvedRun
from adatad.training.tensor_board import TensorBoard
from adatad.training.trackers import (
    BEST,
    Setting,
    Tracker,
    class_scalars,
    final_figures,
    flat_scalars,
    gamma_scalars,
)
from adatad.training.weights_and_biases import WeightsAndBiases

MAX_PENDING_LINES = 100_000
"""Lines of metrics.jsonl that are kept while they can't be written: about 100 MB."""


class MetricsWriter:
    """Writer of a run's figures, into metrics.jsonl and to its trackers; made on the first rank alone."""

    def __init__(self, run_directory: Path, best_effort: BestEffort, trackers: Sequence[Tracker] = ()):
        self._path, self._best_effort, self._trackers = run_directory / "metrics.jsonl", best_effort, trackers
        self._pending: list[bytes] = []

    def start(self, hyperparameters: dict[str, Setting], figures: Sequence[str], spec_yaml: str) -> None:
        """Tell the trackers what is trained. figures: names of the scalars that runs are compared by."""
        for tracker in self._trackers:
            tracker.start(hyperparameters, figures, spec_yaml)

    def write(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Write the values of one moment: scalars, or dictionaries of them to any depth; lists go to JSON alone."""
        line = json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n"
        # Lines that couldn't be written go first the next time, so that their order stays.
        self._pending = [*self._pending, line.encode()][-MAX_PENDING_LINES:]
        with self._best_effort.writing("metrics.jsonl"):
            self._append()
        self.track(dict(flat_scalars(kind, values)), step)

    def track(self, scalars: dict[str, float], step: int) -> None:
        """Show numbers to the trackers alone."""
        for tracker in self._trackers:
            tracker.scalars(scalars, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Show an image, uint8 [height, width, 3], to the trackers."""
        for tracker in self._trackers:
            tracker.image(name, image, step)

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Show how numbers are distributed to the trackers."""
        for tracker in self._trackers:
            tracker.histogram(name, values, step)

    def final(self, figures: dict[str, float]) -> None:
        """Tell the trackers the figures that the run has ended with."""
        for tracker in self._trackers:
            tracker.final(figures)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def _append(self) -> None:
        """Append all pending lines, or none and raise OSError."""
        with self._path.open("ab", buffering=0) as file:
            size, content = os.fstat(file.fileno()).st_size, b"".join(self._pending)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                # Half a line would join with the next one.
                os.ftruncate(file.fileno(), size)
                raise
        self._pending = []


def memory_values(allocated: int, device: torch.device) -> dict[str, int]:
    """Return peak bytes as metrics name them: of tensors, and on a GPU also what the allocator held for them."""
    reserved = {"reserved_bytes": torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}
    return {"memory_bytes": allocated, **reserved}


def trackers_of(
    run: ResolvedRun, folder: Path, first_step: int, best_effort: BestEffort, logger: logging.Logger
) -> list[Tracker]:
    """Return the trackers of a run in that folder, which has done `first_step` steps before."""
    trackers: list[Tracker] = [TensorBoard(folder, first_step, best_effort)]
    if run.spec.logging.wandb is not None:
        name = f"{run.spec.name}/id{run.spec.run.id}"
        trackers.append(WeightsAndBiases(run.spec.logging.wandb, folder, name, logger.warning, logger.info))
    return trackers


def track_evaluation(metrics: MetricsWriter, result: dict[str, Any], gammas: dict[int, float], step: int) -> None:
    """Show of an evaluation what metrics.jsonl has no line for. result: content of result.json; gammas: of the
    adapters, by block."""
    best = {name: value for name, value in final_figures(result).items() if name == BEST}
    metrics.track({**best, **class_scalars(result["ap_per_class"]), **gamma_scalars(gammas)}, step)
    finite = [gamma for gamma in gammas.values() if math.isfinite(gamma)]
    if finite:
        metrics.histogram("adapter_gamma", finite, step)
