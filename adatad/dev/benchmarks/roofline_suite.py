"""Predicted time of a step of g on a data centre's GPU, by a roofline; nothing is measured.

The pieces of a step are our own code, run once each on the meta device at their real sizes (`adatad.memory.costs`). A
kernel takes the time of its FLOPs or of its bytes at the card's rates, whichever is longer, and at least that of the
shortest kernel; a piece takes the time of its kernels or of their launches, whichever is longer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adatad.dev.benchmarks.gpu_cases import CASES, CLASSES, REFERENCE, TILE, GpuCase, spec_of
from adatad.dev.benchmarks.tables import Result, Sheet, show_sheet
from adatad.memory.costs import CostProbe, Run
from adatad.memory.flops import FlopCount
from adatad.memory.peak_model import Step
from adatad.memory.planner import Machine, Planner
from adatad.spec import Spec
from adatad.spec.schema import MemorySpec

PICO = 1e-12
"""Seconds of a picosecond, the unit in which time is counted: FLOPs, in whose place it is, are integers."""
VARIANTS = (REFERENCE, "block", TILE)
BAR = 0.90
"""Largest time of `tile` over the reference's recipe, for g on 1,536 frames of 224 pixels."""


class CardRates(NamedTuple):
    """FLOP/s of 16-bit products, bytes/s of its memory, seconds of the shortest kernel, seconds to launch one."""

    rate: float
    bandwidth: float
    shortest_seconds: float
    launch_seconds: float


H100 = CardRates(rate=400e12, bandwidth=2.4e12, shortest_seconds=1.5e-6, launch_seconds=5e-6)
"""Rates of an H100's order of magnitude, as blocks of a transformer reach them."""


class RooflineCount(FlopCount):
    """Counter of the picoseconds that kernels take on a card, in the place of FLOPs: code that sums up FLOPs of pieces
    then sums up time."""

    def __init__(self, card: CardRates):
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


def predict(spec: Spec, card: CardRates = H100) -> Prediction:
    """Predict forward, backward and losses of a window, without the optimizer's update, equal under all policies."""
    # A machine without limit: the plan is given, only its costs are wanted.
    memory = Planner(spec, Machine(1e15), torch.bfloat16, CLASSES).resolved(spec.memory)
    costs = probe(spec, card)
    # The counter has picoseconds where others have FLOPs.
    runs = Step(costs, memory, accumulates=spec.train.accumulation > 1).runs
    device = sum(PICO * run.flops * times for run, times in runs)
    seconds = sum(max(PICO * run.flops, run.kernels * card.launch_seconds) * times for run, times in runs)
    whole = Prediction(device, round(sum(run.kernels * times for run, times in runs)), seconds)
    return whole if memory.policy != "tile" else whole.without(*never_computed(costs, memory))


def probe(spec: Spec, card: CardRates) -> CostProbe:
    """Return the costs of a spec's parts in picoseconds of a card."""
    windows = spec.train.global_batch // spec.train.accumulation
    return CostProbe(spec, windows, torch.bfloat16, CLASSES, RooflineCount(card))


def never_computed(costs: CostProbe, memory: MemorySpec) -> tuple[float, int]:
    """Return the expected seconds and kernels of branches that all clips of a tile drop; a count of full tiles has
    them. Both branches of a block have one rate, and without them only its adapter computes."""
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
