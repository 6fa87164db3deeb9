"""The engine protocol: how a model is executed, differentiated and updated on the processes of a run.

The trainer knows this protocol alone and has no branch on the engine.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adatad.errors import UserError
from adatad.parallel.devices import has_bf16
from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec


class Engine(Protocol):
    """How the trained parameters of a model lie on the ranks, and what happens to them in a step.

    `masters` and what has their layout (moving averages, AdamW's moments) are this rank's parts: whole tensors, shards
    or partitions, in fp32 (moments perhaps in bf16) and by parameter name. Files hold whole tensors, so no engine's
    layout reaches them.
    """

    model: nn.Module
    """What forward passes call."""
    groups: list[dict[str, Any]]
    """Optimizer groups; the schedule writes their "lr" before a step."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: autocast, and gradients exchanged after the last one only."""

    def backward(self, loss: Tensor) -> None:
        """Add gradients of `loss`, this rank's part of a sum over the global batch."""

    def gradients(self) -> dict[str, Tensor]:
        """This rank's parts of the gradients as the last micro-batch left them, by parameter name; those of parameters
        that got one. ZeRO's engines have no such view of theirs, nor `clear_gradients`."""

    def clear_gradients(self) -> None:
        """Forget them: the next micro-batch begins a sum anew."""

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        """Scale the gradients to at most `max_norm`, update the trained parameters, and clear the gradients.

        losses: float64 [n] on the device, this rank's parts of sums over the global batch. They are read together with
        the norm: the one moment of a step at which the host waits for the device. Returns the joint L2 norm of all
        gradients before scaling, and the losses' sums over all ranks, the same on every rank. If any of these isn't
        finite, nothing but the gradients is changed.
        """

    def masters(self) -> dict[str, Tensor]:
        """This rank's parts of the trained parameters, valid until the next update."""

    def holding(self, values: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, the model has `values`, of the layout of `masters`, in place of its parameters."""

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """AdamW's exp_avg and exp_avg_sq, in the layout of `masters`, and its step; {} before the first update."""

    def whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the layout of `masters` as whole ones, on the first rank; {} on the others. All ranks call it."""

    def parts(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's parts of whole tensors."""

    def shards(self, parts: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors of the layout of `masters` as DTensors over the same memory, which every rank can save and load its
        own part of; None where the layout has no such form."""

    def load(self, masters: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
        """Put in parameters and moments of the layout of `masters`."""

    def scaler_state(self) -> dict[str, Any]:
        """The state of fp16's loss scale; {} without one."""

    def load_scaler(self, state: dict[str, Any]) -> None: ...

    def memory_bytes(self) -> int:
        """Peak memory of this rank: of the device's allocator, or resident memory on a CPU."""


def read_together(*tensors: Tensor | None) -> list[float]:
    """All values of some tensors, in order: the host waits once for those of one device. None has no values."""
    flat = [tensor.detach().reshape(-1).double() for tensor in tensors if tensor is not None]
    if len({tensor.device for tensor in flat}) > 1:
        # Offloaded gradients have their norm on the host, where reading it waits for nothing.
        return [value for tensor in flat for value in tensor.tolist()]
    return torch.cat(flat).tolist()


def all_finite(*values: float) -> bool:
    """Whether a step with this norm and these losses may change anything."""
    return all(map(math.isfinite, values))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for `train.precision`; float32 means none."""
    match precision:
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if has_bf16() else torch.float16
        case "auto" if device.type == "meta":
            return torch.bfloat16
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case _:
            return torch.float32


def prepare(model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes) -> Engine:
    """The engine of the spec around a model whose trained parameters are fixed and in `groups`."""
    match spec.parallel.engine:
        case "auto" | "ddp":
            from adatad.parallel.ddp import DdpEngine

            return DdpEngine(model, groups, spec, processes)
        case "fsdp":
            from adatad.parallel.fsdp import FsdpEngine

            return FsdpEngine(model, groups, spec, processes)
        case "zero1" | "zero2" | "zero3":
            from adatad.parallel.zero import ZeroEngine

            return ZeroEngine(model, groups, spec, processes)
        case "fairscale":
            if find_spec("fairscale") is None:
                raise UserError(
                    "engine fairscale needs the library fairscale: bash launch/setup.sh fairscale installs it"
                )
            from adatad.parallel.fairscale import FairscaleEngine

            return FairscaleEngine(model, groups, spec, processes)


def peak_memory_bytes(device: torch.device) -> int:
    """Of the device's allocator, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def swapped(masters: dict[str, Tensor], values: dict[str, Tensor]) -> Iterator[None]:
    """The values in the masters' place; afterwards both have their own back."""
    _swap(masters, values)
    try:
        yield
    finally:
        _swap(masters, values)


@torch.no_grad()
def _swap(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    for name, one in ones.items():
        kept = one.clone()
        one.copy_(others[name])
        others[name].copy_(kept)
