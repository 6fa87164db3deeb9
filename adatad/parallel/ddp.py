"""Data parallelism with every rank holding the whole model (torch's DistributedDataParallel), and one process alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adatad.memory.arithmetic import autocast, forget_casts
from adatad.parallel.adamw_engine import AdamWEngine
from adatad.parallel.base import all_finite, read_together
from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec


class DdpEngine(AdamWEngine):
    """The engine of whole models. Weights are frozen before it wraps them, and frozen ones enter no gradient bucket."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        self.model = model.to(processes.device)
        if processes.world > 1:
            # Gradients are views of the buckets: no second copy of them. Buffers never change.
            device_ids = [processes.device] if processes.device.type == "cuda" else None
            self.model = DistributedDataParallel(
                self.model, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.init_optimizer(named, groups, spec, processes, on_gpu=processes.device.type == "cuda")

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Surround a micro-batch with autocast, and let DDP exchange gradients in the backward of the last alone."""
        quiet = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if quiet else nullcontext(), autocast(self.processes.device, self.dtype):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients."""
        forget_casts(self.processes.device)
        # DDP averages over ranks; a sum over the global batch is wanted.
        self.scaler.scale(loss * self.processes.world).backward()

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        """Clip, step and clear the gradients."""
        # DDP has made gradients the same on every rank, so the norm needs no exchange.
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.named.values() if p.grad is not None])
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.named.values()), max_norm, norm)
        joint_norm, *own = read_together(norm, losses)
        sums = self.processes.sum_floats(own)
        # The norm is the same on all ranks, the losses' sums too: all step, or none.
        if all_finite(joint_norm, *sums):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return joint_norm, sums

    def gather_full(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors, which are full on every rank, on the first one."""
        return parts if self.processes.is_main else {}

    def shard(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the full tensors themselves."""
        return full
