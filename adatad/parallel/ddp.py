"""Data parallelism with every rank holding the whole model (torch's DistributedDataParallel), and one process alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adatad.memory.arithmetic import autocast
from adatad.parallel.adamw import load_adamw
from adatad.parallel.engine import autocast_dtype, peak_memory_bytes, swapped
from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec


class DdpEngine:
    """Frozen parameters never enter gradient buckets: they are frozen before this wraps the model."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        self.processes = processes
        self.bare_model = model.to(processes.device)
        self.model: nn.Module = self.bare_model
        if processes.world > 1:
            device_ids = [processes.device] if processes.device.type == "cuda" else None
            self.model = DistributedDataParallel(
                self.bare_model, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        # On a GPU one fused kernel, which needs no temporary copies of the moments.
        fused = processes.device.type == "cuda" or None
        self.optimizer = torch.optim.AdamW(groups, betas=spec.optimizer.betas, eps=spec.optimizer.eps, fused=fused)
        self.groups = self.optimizer.param_groups
        self.dtype = autocast_dtype(spec.train.precision, processes.device)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        quiet = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if quiet else nullcontext(), autocast(self.processes.device, self.dtype):
            yield

    def backward(self, loss: Tensor) -> None:
        # DDP averages over ranks; a sum over the global batch is wanted.
        self.scaler.scale(loss * self.processes.world).backward()

    def update(self, max_norm: float | None, skip: bool = False) -> float:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.names if p.grad is not None])
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.names), max_norm, norm)
        if not skip and (self.scaler.is_enabled() or math.isfinite(norm)):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def masters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for parameter, name in self.names.items()}

    def holding(self, values: dict[str, Tensor]) -> AbstractContextManager[None]:
        return swapped(self.masters(), values)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {self.names[p]: dict(tensors) for p, tensors in self.optimizer.state.items()}

    def whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        return parts if self.processes.is_main else {}

    def parts(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        return whole

    def shards(self, parts: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    def load(self, masters: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
        load_adamw(self.optimizer, self.names, masters, moments)

    def scaler_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(state)

    def memory_bytes(self) -> int:
        return peak_memory_bytes(self.processes.device)
