"""The engine protocol, and what all engines share. `adatad.parallel.build` chooses one.

An engine executes, differentiates and updates a model on the processes of a run. The trainer knows this protocol alone
and has no branch on the engine.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adatad.errors import UserError

TORCH_WORKS_WITH = ">=2.13"
"""Versions of torch that have the private names that we use, as in setup.cfg."""


class Engine(Protocol):
    """Layout of a model's trained parameters on the ranks, and what happens to them in a step.

    A step is `micro_batch` with a forward and `backward`, as often as the batch is split, then `update`.

    The master parameters, and all that has their layout (moving averages, AdamW's moments), are this rank's part: whole
    tensors, shards or partitions, in fp32 (moments perhaps in bf16), by parameter name. Files hold full tensors, so no
    engine's layout reaches them.
    """

    model: nn.Module
    """The module that forward passes call."""
    groups: list[dict[str, Any]]
    """Optimizer groups; the schedule writes their "lr" before a step."""
    saves_shards: bool
    """True if every rank can save and load its own part of a tensor: then `as_dtensors` gives the form for it."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Surround forward and backward of a micro-batch: autocast, and gradients exchanged after the last one only."""

    def backward(self, loss: Tensor) -> None:
        """Add gradients of `loss`, this rank's part of a sum over the global batch."""

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients as the last micro-batch left them, by name of the parameters that
        got one. DeepSpeed's engine has neither this view nor `clear_gradients`."""

    def clear_gradients(self) -> None:
        """Drop all gradients: the next micro-batch begins a new sum."""

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        """Scale the gradients to at most `max_norm`, update the trained parameters, and clear the gradients.

        losses: float64 [n] on the device, this rank's parts of sums over the global batch. They are read together with
        the norm: the one moment of a step at which the host waits for the device. Returns the joint L2 norm of all
        gradients before scaling, and the losses' sums over all ranks, the same on every rank. If any of these isn't
        finite, nothing but the gradients is changed.
        """

    def master_parameters(self) -> dict[str, Tensor]:
        """Return this rank's part of the trained parameters, valid until the next update."""

    def swapped_parameters(self, values: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Let the model have `values`, of the master parameters' layout, in place of its parameters."""

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return AdamW's exp_avg and exp_avg_sq, of the master parameters' layout, and its step; {} before the first
        update."""

    def gather_full(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the master parameters' layout as full ones, on the first rank; {} on the others. All ranks
        call it."""

    def shard(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's part of full tensors."""

    def as_dtensors(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the master parameters' layout as DTensors over the same memory; only if `saves_shards`."""

    def load(self, masters: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
        """Set parameters and moments to values of the master parameters' layout."""

    def scaler_state(self) -> dict[str, Any]:
        """Return the state of fp16's loss scale; {} without one."""

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Set the loss scale to a state that `scaler_state` returned."""

    def memory_bytes(self) -> int:
        """Return the peak memory of this rank: of the device's allocator, or resident memory on a CPU."""


def read_together(*tensors: Tensor | None) -> list[float]:
    """Return all values of some tensors, in order: the host waits once for those of one device. None has no values."""
    # float64 for all: one tensor goes to the host, and losses lose no digit on the way.
    flat = [tensor.detach().reshape(-1).double() for tensor in tensors if tensor is not None]
    if len({tensor.device for tensor in flat}) > 1:
        # Offloaded gradients have their norm on the host, where reading it waits for nothing.
        return [value for tensor in flat for value in tensor.tolist()]
    return torch.cat(flat).tolist()


def all_finite(*values: float) -> bool:
    """Return whether a step with this norm and these losses may change anything."""
    return all(map(math.isfinite, values))


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of the device's allocator, or of this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def swapped_tensors(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> Iterator[None]:
    """Exchange the contents of tensors of equal names inside the context, also if it ends by an error."""
    # In place: an engine's tensors are views of flat buffers, which a new tensor wouldn't be.
    _swap(tensors, values)
    try:
        yield
    finally:
        _swap(tensors, values)


@torch.no_grad()
def _swap(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    # One tensor after the other: no second copy of the model.
    for name, tensor in tensors.items():
        # A copy of this tensor alone, at most the largest of the model.
        kept = tensor.clone()
        tensor.copy_(values[name])
        values[name].copy_(kept)


def require_names(library: str, works_with: str, part: str, owner: object, names: Iterable[str]) -> None:
    """Raise UserError unless a part of a library has all of these private names, which any release may drop.

    works_with: versions that have them, as pip writes them. part: what `owner` is, for the message.
    """
    # When a run starts, not at the first use of one, perhaps hours later.
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise UserError(
            f"{library} {version(library)} lacks {', '.join(missing)} of {part}, which AdaTAD needs; it works with "
            f"{library}{works_with}: pip install '{library}{works_with}'"
        )
