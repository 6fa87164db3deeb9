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

from adatad.dev.benchmarks.gpu_cases import CASES, CLASSES, REFERENCE, TILE, GpuCase, spec_of
from adatad.dev.benchmarks.results import Result
from adatad.memory.flops import FlopCount
from adatad.memory.planner import Machine, Planner
from adatad.memory.scale import Scale
from adatad.memory.units import Units
from adatad.models.keyed_dropout import Drops
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
        total, kernels = self.total, self.kernels
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        flops, computes = self.total - total, self.kernels > kernels
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if computes and not all(tensor.is_meta for tensor in tensors):
            # The host computes this.
            self.kernels, computes = kernels, False
        card, moved = self.card, sum(tensor.nbytes for tensor in tensors)
        seconds = max(flops / card.rate, moved / card.bandwidth, card.shortest_seconds)
        self.total = total + (round(seconds / PICO) if computes else 0)
        return result


class Prediction(NamedTuple):
    """Of a step: seconds of all kernels one after another, how many there are, seconds with launches that wait."""

    device_seconds: float
    kernels: int
    seconds: float

    def without(self, device_seconds: float, kernels: int) -> Prediction:
        """The same without so much that the host had launched in time."""
        return Prediction(self.device_seconds - device_seconds, self.kernels - kernels, self.seconds - device_seconds)


def predict(spec: Spec, card: Card = H100) -> Prediction:
    """Forward, backward and losses of a window; without the optimizer's update, which takes all policies alike."""
    planner = Planner(spec, Machine(1e15), torch.bfloat16, CLASSES, scale=Scale(RooflineCount(card)))
    units, memory = planner.units(spec.train.accumulation), planner.resolved(spec.memory)
    outer = planner.outer(units, memory)
    runs = [*planner.step(units, memory, "ddp").work.runs, (outer.flops, outer.kernels, 1)]
    device = sum(PICO * picoseconds * times for picoseconds, _, times in runs)
    seconds = sum(max(PICO * ps, kernels * card.launch_seconds) * times for ps, kernels, times in runs)
    whole = Prediction(device, sum(kernels * times for _, kernels, times in runs), seconds)
    return whole if memory.policy != "tile" else whole.without(*never_computed(units, memory.tile_clips, card))


class UnitsWithoutBranches(Units):
    """All clips drop all branches."""

    def _drops(self, clips: int) -> Drops | None:
        drops = super()._drops(clips)
        if drops is not None:
            drops.kept = [[False] * clips for _ in drops.kept]
        return drops


def never_computed(units: Units, clips: int, card: Card) -> tuple[float, int]:
    """Expected seconds and kernels of branches that whole tiles drop, which a count of full tiles has in it."""
    spec, tiles = units.spec, units.windows * -(-units.clips // clips)
    bare = UnitsWithoutBranches(spec, units.windows, units.arithmetic, CLASSES, Scale(RooflineCount(card)))
    picoseconds, kernels = 0.0, 0.0
    for index, kind in enumerate(units.kinds):
        rate = spec.model.backbone.drop_path * index / max(len(units.kinds) - 1, 1)
        for sign, block in ((1, units.tile(clips, kind, hold=True)), (-1, bare.tile(clips, kind, hold=True))):
            # Forward; again, and back. Nothing is differentiated below the first adapter, nor through its block.
            again = {"below": (), "first": (block.run,)}.get(kind, (block.graph, block.low))
            for cost in (block.run, *again):
                picoseconds += sign * rate**clips * tiles * cost.flops
                kernels += sign * rate**clips * tiles * cost.kernels
    return PICO * picoseconds, round(kernels)


def run(cases: tuple[GpuCase, ...] = (CASES[0], CASES[2])) -> list[Result]:
    """Prints the table of docs/benchmarks/roofline.md; returns the ratios, of which the first case's has a bar."""
    columns = ("", "kernels", "on the GPU, s", "launches, s", "a step, s", "of the reference's")
    results = []
    for case in cases:
        table = Table(*columns, title=f"{case.name}, one window, predicted", title_justify="left")
        predicted = {v.name: predict(spec_of(case, v)) for v in case.variants if v.name in VARIANTS}
        ratios = {name: p.seconds / predicted[REFERENCE].seconds for name, p in predicted.items()}
        for name, p in predicted.items():
            table.add_row(
                name, f"{p.kernels:,}", f"{p.device_seconds:.2f}", f"{p.kernels * H100.launch_seconds:.2f}",
                f"{p.seconds:.2f}", f"{ratios[name]:.3f}",
            )  # fmt: skip
        Console(width=140).print(table)
        for name in VARIANTS[1:]:
            bar = BAR if name == TILE and case is cases[0] else None
            results.append(Result(f"{case.name}: {name} / {REFERENCE}", ratios[name], bar, 1.0))
    return results
