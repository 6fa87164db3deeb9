"""The engine protocol: how a model is executed, differentiated and updated on the processes of a run.

The trainer knows this protocol alone and has no branch on the engine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec


class Engine(Protocol):
    """`model` is what forward passes call; states are by parameter name, whole and in fp32."""

    model: nn.Module
    groups: list[dict[str, Any]]
    """Optimizer groups; the schedule writes their "lr" before a step."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: autocast, and gradients exchanged after the last one only."""

    def backward(self, loss: Tensor) -> None:
        """Add gradients of `loss`, this rank's part of a sum over the global batch."""

    def clip(self, max_norm: float | None) -> float:
        """Joint L2 norm of all gradients, which are then scaled to at most `max_norm`."""

    def step(self) -> None:
        """Update the trained parameters and clear their gradients."""

    def state(self) -> dict[str, Any]:
        """{"parameters": {name: tensor}, "optimizer": {name: {key: tensor}}, "scaler": {...}}."""

    def load_state(self, state: dict[str, Any]) -> None: ...

    def memory_bytes(self) -> int:
        """Peak memory of this rank: of the device's allocator, or resident memory on a CPU."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for `train.precision`; float32 means none."""
    match precision:
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
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
