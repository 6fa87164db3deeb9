"""How long a step of g would take on a data centre's GPU, by a roofline: predicted, nothing is measured.

The pieces of a step are our own code, run once each on the meta device at their real sizes (`adatad.memory.costs`). A
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
from adatad.memory.costs import CostProbe, Run
from adatad.memory.flops import FlopCount
from adatad.memory.peak_model import step_of
from adatad.memory.planner import Machine, Planner
from adatad.spec import Spec
from adatad.spec.schema import MemorySpec

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
    memory = Planner(spec, Machine(1e15), torch.bfloat16, CLASSES).resolved(spec.memory)
    costs = probe(spec, card)
    # The counter has picoseconds where others have FLOPs.
    runs = step_of(costs, memory, "ddp", 1, spec.train.accumulation).runs
    device = sum(PICO * run.flops * times for run, times in runs)
    seconds = sum(max(PICO * run.flops, run.kernels * card.launch_seconds) * times for run, times in runs)
    whole = Prediction(device, round(sum(run.kernels * times for run, times in runs)), seconds)
    return whole if memory.policy != "tile" else whole.without(*never_computed(costs, memory))


def probe(spec: Spec, card: Card) -> CostProbe:
    """Costs of a spec's parts in picoseconds of a card."""
    windows = spec.train.global_batch // spec.train.accumulation
    return CostProbe(spec, windows, torch.bfloat16, CLASSES, RooflineCount(card))


def never_computed(costs: CostProbe, memory: MemorySpec) -> tuple[float, int]:
    """Expected seconds and kernels of branches that whole tiles drop, which a count of full tiles has in it. Both
    branches of a block are dropped as often, and without them it does nothing but its adapter's work."""
    clips, spec = memory.tile_clips, costs.spec
    tiled = MemorySpec(policy="tile", tile_clips=clips, segment_blocks=1)
    one, two = (costs.measure(depth, (0,), tiled, 1, clips) for depth in (1, 2))
    forward, whole = two.forward - one.forward, two.forward + two.backward - one.forward - one.backward
    tiles, total = costs.windows * -(-costs.clips // clips), Run()
    for index in range(costs.depth):
        rate = spec.model.backbone.drop_path * index / max(costs.depth - 1, 1)
        # Nothing is differentiated below the first adapter, nor through its block.
        times = {-1: forward, 0: forward * 2, 1: whole}[(index > costs.first_trained) - (index < costs.first_trained)]
        total += times * (rate**clips * tiles)
    return PICO * total.flops, round(total.kernels)


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
