"""What a run shows to trackers, TensorBoard and Weights & Biases: the names of its figures, and its hyperparameters.

A tracker takes what it is given and never ends a training: what it can't take is lost to it, and said once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from operator import attrgetter
from statistics import fmean
from typing import Any, Protocol, get_args

import numpy as np

from adatad.files import shown
from adatad.spec import Spec
from adatad.spec.schema import PATHS, STAGE_TO
from adatad.spec.section import Section
from adatad.spec.sizes import end_epoch
from adatad.training.setup import TrainState

MAX_HYPERPARAMETERS = 40
"""Hyperparameters of a run: a table with all of a spec's keys couldn't be read."""
MAX_CLASSES = 500
"""Classes whose AP is shown, in the order of result.json."""
AVERAGE, BEST = "evaluation/average_mAP", "evaluation/best_average_mAP"

OF_EVERY_RUN = (
    "optimizer.lr", "schedule.epochs", "model.backbone.preset", "model.backbone.mode", "memory.policy",
    "parallel.engine", "train.precision", "train.seed", "train.global_batch",
)  # fmt: skip
"""Hyperparameters that every run has, also where they are the default."""

Setting = str | int | float | bool


class Tracker(Protocol):
    """One place that shows a run while it trains; on the first rank alone."""

    def start(self, hyperparameters: dict[str, Setting], figures: Sequence[str], spec_yaml: str) -> None:
        """Show what is trained. figures: names of the scalars that runs are compared by."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Show numbers by name, after `step` optimizer steps."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Show an image, uint8 [height, width, 3]."""

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Show how numbers are distributed."""

    def final(self, figures: dict[str, float]) -> None:
        """Show the figures that the run has ended with."""

    def close(self) -> None:
        """Write what is still waiting, for a bounded time."""


def flat_scalars(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers inside a value, each with the names that lead to it; lists are left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat_scalars(f"{tag}/{shown(name)}", inner)
    elif isinstance(value, (int, float)):
        yield tag, value


def final_figures(result: dict[str, Any]) -> dict[str, float]:
    """Return what a run is compared by, with the names of the scalars: average mAP, last and best, and mAP by tIoU."""
    figures = {AVERAGE: result.get("average_mAP"), BEST: result.get("best_average_mAP")}
    figures |= {f"evaluation/mAP/{tiou}": value for tiou, value in result.get("mAP", {}).items()}
    return {name: value for name, value in figures.items() if value is not None}


def figure_names(spec: Spec) -> list[str]:
    """Return the names of a run's final figures, most important first, before there are any."""
    return [AVERAGE, BEST, *(f"evaluation/mAP/{tiou:g}" for tiou in spec.evaluate.tious)]


def class_scalars(ap_per_class: dict[str, list[float]]) -> dict[str, float]:
    """Return the AP of each class, averaged over tIoUs, by the name of its scalar."""
    some = list(ap_per_class.items())[:MAX_CLASSES]
    return {f"AP/{shown(name)}": fmean(values) for name, values in some if values}


def adapter_gammas(state: TrainState) -> dict[int, float]:
    """Return the averaged gamma of each block's adapter, by the block's number, on the first rank; {} on the others and
    where none is trained. All ranks call it."""
    numbers = {}
    for name in state.trained:
        if found := re.search(r"(blocks|side_adapters)\.(\d+)\.(?:adapter\.)?gamma$", name):
            # In mode side adapters are numbered by themselves, not by the block that they read.
            side = found[1] == "side_adapters"
            numbers[name] = state.model.backbone.adapter_blocks[int(found[2])] if side else int(found[2])
    averages = state.ema.averages
    full = state.engine.gather_full({name: averages[name] for name in numbers})
    return {numbers[name]: tensor.item() for name, tensor in full.items()}


def gamma_scalars(gammas: dict[int, float]) -> dict[str, float]:
    """Return each block's gamma and the mean magnitude, by the names of their scalars."""
    if not gammas:
        return {}
    blocks = {f"adapter_gamma/block_{block:02}": gamma for block, gamma in sorted(gammas.items())}
    return {"adapter_gamma/mean_magnitude": fmean(map(abs, gammas.values())), **blocks}


def hyperparameters(spec: Spec, given: Spec) -> dict[str, Setting]:
    """Return the settings by which runs are compared: some of every run, then those of `given` that differ from the
    defaults, at most MAX_HYPERPARAMETERS. spec: without `auto`; given: as the user wrote it."""
    policy = spec.memory.policy
    if not isinstance(policy, str):
        policy = ", ".join(f"{blocks.first}-{blocks.last} {blocks.policy}" for blocks in policy)
    always: dict[str, Setting] = {key: attrgetter(key)(spec) for key in OF_EVERY_RUN}
    always |= {"schedule.epochs": end_epoch(spec), "memory.policy": policy}
    others = [(key, value) for key, value in changed_keys(given) if key not in always]
    return {**always, **dict(others[: MAX_HYPERPARAMETERS - len(always)])}


# Keys that say where things are and what they are called; nobody sorts runs by them.
_PLACES = {".".join(key) for key in (*PATHS, STAGE_TO)} | {"name", "run", "logging", "reference"}
# Filled in by the spec itself, from `compat`.
_DERIVED = {"data.time"}


def changed_keys(section: Section, before: str = "") -> Iterator[tuple[str, Setting]]:
    """Yield the numbers, flags and choices of a section that differ from its defaults, with their keys."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{before}{name}"
        if key in _PLACES | _DERIVED:
            continue
        if isinstance(value, Section):
            yield from changed_keys(value, f"{key}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, Section):
                    yield from changed_keys(item, f"{key}.{number}.")
        elif isinstance(value, (bool, int, float, str)) and value != field.get_default(call_default_factory=True):
            # Free text is a name or a file. A choice among words isn't `str` but Literal.
            is_text = isinstance(value, str) and str in (field.annotation, *get_args(field.annotation))
            if not is_text:
                yield key, value
