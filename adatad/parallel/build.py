"""Choose an engine and import it: a run loads the libraries of its own engine only."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

from adatad.errors import UserError
from adatad.parallel.base import Engine
from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec


def build_engine(model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes) -> Engine:
    """Return the engine of a resolved run's spec around a model whose trained parameters are fixed and in `groups`.

    Raises UserError if a library that the engine needs is missing, or is a version that it doesn't work with.
    """
    match spec.parallel.engine:
        case "ddp":
            # Each engine is imported where it is chosen: DeepSpeed takes seconds, and may not be installed.
            from adatad.parallel.ddp import DdpEngine

            return DdpEngine(model, groups, spec, processes)
        case "fsdp":
            from adatad.parallel.fsdp import FsdpEngine

            return FsdpEngine(model, groups, spec, processes)
        case "zero1" | "zero2" | "zero3":
            from adatad.parallel.deepspeed.engine import ZeroEngine

            return ZeroEngine(model, groups, spec, processes)
        case "fairscale":
            # Asked before the import, whose own errors mean something else.
            if find_spec("fairscale") is None:
                raise UserError(
                    "engine fairscale needs the library fairscale: bash launch/setup.sh fairscale installs it"
                )
            from adatad.parallel.fairscale import FairscaleEngine

            return FairscaleEngine(model, groups, spec, processes)
        case other:
            raise ValueError(f"engine {other}: the spec of a resolved run names one (adatad.training.resolve)")
