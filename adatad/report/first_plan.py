"""How the first spec of own videos fits a GPU, by the planner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.offload import GIB
from adatad.memory.planner import Planner
from adatad.report.plans import META, Target, life_signs, target_of
from adatad.spec.schema import Spec


def target_here(gpu_memory_gib: float | None) -> Target | None:
    """Return the GPU of a size, or this machine's; None where neither is there."""
    if gpu_memory_gib is None and not torch.cuda.is_available():
        return None
    return target_of(gpu_memory_gib=gpu_memory_gib)


def fit_on(target: Target, num_classes: int = 20) -> Callable[[dict[str, Any]], str | None]:
    """Return a function that says how a spec, as plain settings, fits a GPU; None if it doesn't."""

    def fit(settings: dict[str, Any]) -> str | None:
        """Plan a spec with `memory.policy: auto`."""
        spec = Spec.model_validate({**settings, "memory": {"policy": "auto"}})
        planner = Planner(spec, target.machine, autocast_dtype(spec.train.precision, META), num_classes)
        with life_signs("planning"):
            best = planner.best(planner.plans(coarse=True))
        if best is None:
            return None
        return f"such as {best.describe()}: {best.bytes / GIB:.1f} of {target.sizes}, by the planner's estimate"

    return fit
