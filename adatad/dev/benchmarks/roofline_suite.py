"""Predicted time of a step of g on a data centre's GPU, by a roofline; nothing is measured.

The pieces of a step are our own code, run once each on the meta device at their real sizes (`adatad.memory.units`). A
kernel takes the time of its FLOPs or of its bytes at the card's rates, whichever is longer, and at least that of the
shortest kernel; a piece takes the time of its kernels or of their launches, whichever is longer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adatad.dev.benchmarks.gpu_cases import CASES, CLASSES, REFERENCE, TILE, GpuCase, spec_of
from adatad.dev.benchmarks.results import Result, Sheet, show_sheet
from adatad.memory.flops import FlopCount
from adatad.memory.planner import Machine, Planner
from adatad.memory.scale import Scale
from adatad.memory.units import Units
from adatad.models.keyed_dropout import Drops
from adatad.spec import Spec

PICO = 1e-12
"""Seconds of a picosecond, the unit in which time is counted: FLOPs, in whose place it is, are integers."""
VARIANTS = (REFERENCE, "block", TILE)
BAR = 0.90
"""Largest time of `tile` over the reference's recipe, for g on 1,536 frames of 224 pixels."""


class Card(NamedTuple):
    """FLOP/s of 16-bit products, bytes/s of its memory, seconds of the shortest kernel, seconds to launch one."""

    rate: float
    bandwidth: float
    shortest_seconds: float
    launch_seconds: float


H100 = Card(rate=400e12, bandwidth=2.4e12, shortest_seconds=1.5e-6, launch_seconds=5e-6)
"""Rates of an H100's order of magnitude, as blocks of a transformer reach them."""


class RooflineCount(FlopCount):
    """Counter of the picoseconds that kernels take on a card, in the place of FLOPs: code that sums up FLOPs of pieces
    then sums up time."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        total, kernels = self.total, self.kernels
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        # The base class has added this operator's FLOPs: take them back, and add time instead.
        flops, computes = self.total - total, self.kernels > kernels
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if computes and not all(tensor.is_meta for tensor in tensors):
            # A tensor with values: the host computes this.
            self.kernels, computes = kernels, False
        card, moved = self.card, sum(tensor.nbytes for tensor in tensors)
        seconds = max(flops / card.rate, moved / card.bandwidth, card.shortest_seconds)
        self.total = total + (round(seconds / PICO) if computes else 0)
        return result


class Prediction(NamedTuple):
    """A step: seconds of all kernels one after another, their number, and seconds with waits for launches."""

    device_seconds: float
    kernels: int
    seconds: float

    def without(self, device_seconds: float, kernels: int) -> Prediction:
        """Return the prediction without some kernels that the host launches in time."""
        return Prediction(self.device_seconds - device_seconds, self.kernels - kernels, self.seconds - device_seconds)


def predict(spec: Spec, card: Card = H100) -> Prediction:
    """Predict forward, backward and losses of a window, without the optimizer's update, equal under all policies."""
    # A machine without limit: the plan is given, only its costs are wanted.
    planner = Planner(spec, Machine(1e15), torch.bfloat16, CLASSES, scale=Scale(RooflineCount(card)))
    units, memory = planner.units(spec.train.accumulation), planner.resolved(spec.memory)
    outer = planner.outer(units, memory)
    runs = [*planner.step(units, memory, "ddp").work.runs, (outer.flops, outer.kernels, 1)]
    device = sum(PICO * picoseconds * times for picoseconds, _, times in runs)
    seconds = sum(max(PICO * ps, kernels * card.launch_seconds) * times for ps, kernels, times in runs)
    whole = Prediction(device, sum(kernels * times for _, kernels, times in runs), seconds)
    return whole if memory.policy != "tile" else whole.without(*never_computed(units, memory.tile_clips, card))


class UnitsWithoutBranches(Units):
    """Units in which all clips drop all branches."""

    def _drops(self, clips: int) -> Drops | None:
        drops = super()._drops(clips)
        if drops is not None:
            drops.kept = [[False] * clips for _ in drops.kept]
        return drops


def never_computed(units: Units, clips: int, card: Card) -> tuple[float, int]:
    """Return the expected seconds and kernels of branches that all clips of a tile drop; a count of full tiles has
    them."""
    spec, tiles = units.spec, units.windows * -(-units.clips // clips)
    bare = UnitsWithoutBranches(spec, units.windows, units.arithmetic, CLASSES, Scale(RooflineCount(card)))
    # The difference between a tile with all branches and one with none, times the chance of the latter.
    picoseconds, kernels = 0.0, 0.0
    for index, kind in enumerate(units.kinds):
        rate = spec.model.backbone.drop_path * index / max(len(units.kinds) - 1, 1)
        for sign, block in ((1, units.tile(clips, kind, hold=True)), (-1, bare.tile(clips, kind, hold=True))):
            # Forward, recomputation, backward; below the first adapter, and through its block, there is no backward.
            again = {"below": (), "first": (block.run,)}.get(kind, (block.graph, block.low))
            for cost in (block.run, *again):
                picoseconds += sign * rate**clips * tiles * cost.flops
                kernels += sign * rate**clips * tiles * cost.kernels
    return PICO * picoseconds, round(kernels)


def run(cases: tuple[GpuCase, ...] = (CASES[0], CASES[2])) -> list[Result]:
    """Print the table of docs/benchmarks/roofline.md; return the ratios, of which the first case's has a bar."""
    columns = ("", "kernels", "on the GPU, s", "launches, s", "a step, s", "of the reference's")
    results = []
    for case in cases:
        predicted = {v.name: predict(spec_of(case, v)) for v in case.variants if v.name in VARIANTS}
        ratios = {name: p.seconds / predicted[REFERENCE].seconds for name, p in predicted.items()}
        rows = [
            (
                name, f"{p.kernels:,}", f"{p.device_seconds:.2f}", f"{p.kernels * H100.launch_seconds:.2f}",
                f"{p.seconds:.2f}", f"{ratios[name]:.3f}",
            )
            for name, p in predicted.items()
        ]  # fmt: skip
        show_sheet(Sheet(f"{case.name}, one window, predicted", columns, rows))
        for name in VARIANTS[1:]:
            bar = BAR if name == TILE and case is cases[0] else None
            results.append(Result(f"{case.name}: {name} / {REFERENCE}", ratios[name], bar, 1.0))
    return results
