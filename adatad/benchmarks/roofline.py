"""How long a step of g would take on a data centre's GPU, by a roofline: predicted, nothing is measured.

The pieces of a step are our own code, run once each on the meta device at their real sizes (`adatad.memory.units`). A
kernel takes what its FLOPs or its bytes take at the card's rates, whichever is more, and never less than the shortest
kernel there is; a piece takes as long as its kernels, or as launching them takes the host, whichever is more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from adatad.benchmarks.gpu_cases import CASES, CLASSES, REFERENCE, TILE, Case, spec_of
from adatad.benchmarks.table import Result
from adatad.memory.flops import FlopCount
from adatad.memory.planner import Machine, Planner
from adatad.memory.scale import Scale
from adatad.spec import Spec

PICO = 1e-12
VARIANTS = (REFERENCE, "block", TILE)
BAR = 0.90
"""Of the reference's recipe, for g on 1,536 frames of 224 pixels."""


class Card(NamedTuple):
    """FLOP/s of 16-bit products, bytes/s of its memory, seconds of the shortest kernel, seconds to launch one."""

    rate: float
    bandwidth: float
    shortest_seconds: float
    launch_seconds: float


H100 = Card(rate=400e12, bandwidth=2.4e12, shortest_seconds=1.5e-6, launch_seconds=5e-6)
"""Of an H100's order of magnitude, as blocks of a transformer reach it."""


class RooflineCount(FlopCount):
    """Counts the picoseconds that kernels take on a card in the place of their FLOPs, so that whatever sums up FLOPs
    of pieces sums up time."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = self.total, self.kernels
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        flops, computes = self.total - before[0], self.kernels > before[1]
        moved = sum(x.nbytes for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor))
        seconds = max(flops / self.card.rate, moved / self.card.bandwidth, self.card.shortest_seconds)
        self.total = before[0] + (round(seconds / PICO) if computes else 0)
        return result


class Prediction(NamedTuple):
    """Of a step: seconds of all kernels one after another, how many there are, seconds with launches that wait."""

    device_seconds: float
    kernels: int
    seconds: float


def predict(spec: Spec, card: Card = H100) -> Prediction:
    """Forward, backward and losses of a micro-batch; without the optimizer, which takes all policies alike."""
    planner = Planner(spec, Machine(1e15), torch.bfloat16, CLASSES, scale=Scale(RooflineCount(card)))
    units, memory = planner.units(spec.train.accumulation), planner.resolved(spec.memory)
    outer = planner.outer(units, memory)
    runs = [*planner.step(units, memory, "ddp").work.runs, (outer.flops, outer.kernels, 1)]
    device = sum(PICO * picoseconds * times for picoseconds, _, times in runs)
    seconds = sum(max(PICO * ps, kernels * card.launch_seconds) * times for ps, kernels, times in runs)
    return Prediction(device, sum(kernels * times for _, kernels, times in runs), seconds)


def flops_of(spec: Spec) -> int:
    planner = Planner(spec, Machine(1e15), torch.bfloat16, CLASSES)
    return planner.own().flops


def run(cases: tuple[Case, ...] = (CASES[0], CASES[2])) -> list[Result]:
    """Prints the table of docs/benchmarks/roofline.md; returns the ratio that has a bar, for the first case."""
    columns = ("", "kernels", "on the GPU, s", "launches, s", "a step, s", "of the reference's", "TFLOP")
    results = []
    for case in cases:
        table = Table(*columns, title=f"{case.name}, one window, predicted", title_justify="left")
        predicted: dict[str, Prediction] = {}
        for variant in case.variants:
            if variant.name in VARIANTS:
                spec = spec_of(case, variant)
                predicted[variant.name] = p = predict(spec)
                ratio = p.seconds / predicted[REFERENCE].seconds
                table.add_row(
                    variant.name, f"{p.kernels:,}", f"{p.device_seconds:.2f}", f"{p.kernels * H100.launch_seconds:.2f}",
                    f"{p.seconds:.2f}", f"{ratio:.2f}", f"{flops_of(spec) / 1e12:,.0f}",
                )  # fmt: skip
        Console(width=140).print(table)
        for name in VARIANTS[1:]:
            ratio = predicted[name].seconds / predicted[REFERENCE].seconds
            bar = BAR if name == TILE and case is cases[0] else None
            results.append(Result(f"{case.name}: {name} / {REFERENCE}", ratio, bar, 1.0))
    return results
