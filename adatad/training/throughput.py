"""How fast a run computes: floating-point operations of its step, in TFLOP/s and as a share of what the GPU can do.

Executed operations are all that a step computes; useful ones leave out what is computed a second time to save memory.
Both are counted once for a run, by the planner, of products, convolutions and attention; stochastic depth is taken to
drop nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch

from adatad.files import reason
from adatad.memory.cards import card_of_driver_name
from adatad.parallel.processes import Processes
from adatad.spec.schema import MemorySpec
from adatad.training.plan import planner_for, this_rank
from adatad.training.resolve import ResolvedRun


class StepFlops(NamedTuple):
    """Floating-point operations of one rank in one optimizer step."""

    executed: int
    useful: int


@dataclass(frozen=True)
class Throughput:
    """Operations of a step, which turn its seconds into rates of one GPU. peak_tflops: the card's own rate in the run's
    arithmetic, None where the card isn't known."""

    flops: StepFlops
    peak_tflops: float | None = None

    def values(self, step_seconds: float) -> dict[str, float]:
        """Return executed TFLOP/s, and MFU (useful operations against the peak) where there is a peak, by the names
        that metrics.jsonl has."""
        values = {"tflops_per_second": self.flops.executed / step_seconds / 1e12}
        if self.peak_tflops is not None:
            values["mfu"] = self.flops.useful / step_seconds / 1e12 / self.peak_tflops
        return values


def step_flops(run: ResolvedRun, processes: Processes) -> StepFlops:
    """Count the operations of one rank in a step of the run, by the planner, within seconds; asks no other rank."""
    planner = planner_for(run.spec, processes, this_rank(processes, empty=False), run.num_classes)
    plan = planner.own()
    once = planner.plan(MemorySpec(policy="none"), plan.engine)
    # Waves may compute a little less than the modules, as in a first block: what isn't executed isn't useful.
    return StepFlops(plan.flops, min(once.flops, plan.flops))


def throughput_of(run: ResolvedRun, processes: Processes) -> Throughput | None:
    """Return what a run's rates are computed with; None, and a warning in the log, if its step can't be counted."""
    try:
        return Throughput(step_flops(run, processes), peak_tflops(processes.device, run.arithmetic))
    except Exception as error:
        # Any: a figure beside the training must not end it.
        logging.getLogger("adatad").warning("no TFLOP/s: the step's operations can't be counted: %s", reason(error))
        return None


def peak_tflops(device: torch.device, arithmetic: torch.dtype) -> float | None:
    """Return the peak rate of a GPU in an arithmetic, by its maker's data sheet; None for a CPU and unknown cards."""
    card = card_of_driver_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card is None:
        return None
    return card.tflops if arithmetic in (torch.bfloat16, torch.float16) else card.fp32_tflops
