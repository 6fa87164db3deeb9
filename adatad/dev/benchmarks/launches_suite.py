"""Host waits, launches, races and pinned memory of a training step, counted without a GPU.

Small models run on the pretended GPU (docs/pretended-gpu.md), in every mode, policy and placement. Launches of the
models that people train are composed from the operators of their pieces on meta tensors, at their real sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from adatad.dev.benchmarks.tables import Result
from adatad.dev.pretended.cases import CASES, PretendedCase, run_case
from adatad.dev.pretended.operators import DeviceMismatchError
from adatad.dev.pretended.streams import Counts
from adatad.memory.offload import GIB
from adatad.memory.planner import EFFICIENCY, Machine, Planner
from adatad.spec import Spec, load

PRODUCTS_TFLOPS = 400.0
"""Assumed speed of large 16-bit products on an H100-class card."""
SHORT, LONG = "tile", "tile, long window"
"""Cases that differ only in the clips of a window."""
FAULTS = {
    "unpinned": "unpinned copies", "pinnings": "memory pinned in a step", "races": "races",
    "freed": "memory freed under another stream",
}  # fmt: skip
MAX_DETECTOR_LAUNCHES = 1200
MAX_TILE_TIME = 1.15
"""Largest predicted time of policy tile, over that of block."""
STEPS = {"g_1536x224_adapter": 250_000, "g_768x160_adapter": 112_000}
"""Most launches of a step of one window under policy tile, by spec."""
COMPARED = ("s_768x160_adapter", "b_768x160_adapter", "l_768x160_adapter", "h_768x160_adapter")


class StepCounts(NamedTuple):
    """A step of one window: all launches, those outside of the backbone, and predicted seconds."""

    launches: int
    detector: int
    seconds: float


def run() -> list[Result]:
    """Run all cases, and count the models that people train; two minutes."""
    return [*pretended_results(), *model_results()]


def pretended_results(cases: tuple[PretendedCase, ...] = CASES) -> Iterator[Result]:
    """Yield each case's host waits with its launches, then its faults, of which there must be none."""
    counted: dict[str, Counts] = {}
    for case in cases:
        try:
            counts = counted[case.name] = run_case(case)
        except DeviceMismatchError as error:
            yield Result(f"{case.name}: device mismatches", 1, 0, note=str(error))
            continue
        note = f"{counts.launches.total()} launches, {counts.pinnings.total()} pinnings"
        waits = counts.waits.total()
        if case.max_waits is not None and waits > case.max_waits:
            note += f"; most waits: {counts.waits.most_common(1)[0][0]}"
        yield Result(f"{case.name}: host waits", waits, case.max_waits, note=note)
        for name, faults in case.faults(counts).items():
            if faults:
                yield Result(f"{case.name}: {FAULTS[name]}", faults.total(), 0, note=faults.most_common(1)[0][0])
    # A wait inside of a loop over tiles or clips shows as a difference between two lengths of window.
    if SHORT in counted and LONG in counted:
        more = counted[LONG].waits.total() - counted[SHORT].waits.total()
        yield Result("host waits that twice the clips add", more, 0, note="none in a loop over tiles")
    for name, what in FAULTS.items():
        found = [
            faults[name].total()
            for faults in (c.faults(counted[c.name]) for c in cases if c.name in counted)
            if name in faults
        ]
        yield Result(f"{what}, in all", sum(found), 0, note=f"{len(found)} cases")


def model_results() -> Iterator[Result]:
    """Yield launches of steps of one window, and the predicted time of `tile` over `block`."""
    for config, bar in STEPS.items():
        step = step_of(config, "tile")
        yield Result(f"{config}, tile: launches", step.launches, bar, note=f"{step.seconds:.2f} s predicted")
        yield Result(f"{config}: launches of the detector", step.detector, MAX_DETECTOR_LAUNCHES)
    for config in COMPARED:
        tile, block = (step_of(config, policy) for policy in ("tile", "block"))
        note = (
            f"{1e3 * tile.seconds:.0f} and {1e3 * block.seconds:.0f} ms, {tile.launches} and {block.launches} launches"
        )
        yield Result(
            f"{config}: predicted time of tile over block", tile.seconds / block.seconds, MAX_TILE_TIME, note=note
        )


def step_of(config: str, policy: str) -> StepCounts:
    """Count a step of one window of a spec in configs/thumos."""
    overrides = ["train.global_batch=1", f"memory.policy={policy}"]
    return counted_step(load(f"configs/thumos/{config}.yaml", overrides, check_files=False))


def counted_step(spec: Spec) -> StepCounts:
    """Compose a step from its pieces, without what happens once in a step (augmentation, the optimizer)."""
    planner = Planner(spec, Machine(80 * GIB, tflops=PRODUCTS_TFLOPS / EFFICIENCY), torch.bfloat16)
    plan = planner.own()
    return StepCounts(plan.launches, planner.costs.outer.run.kernels, plan.seconds)
