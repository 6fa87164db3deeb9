"""Data parallelism with every rank holding the whole model (torch's DistributedDataParallel), and one process alone."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adatad.memory.arithmetic import autocast
from adatad.parallel.engine import autocast_dtype
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
                self.bare_model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
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

    def clip(self, max_norm: float | None) -> float:
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.names if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.names), max_norm, norm)
        return float(norm)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        optimizer = {self.names[p]: dict(tensors) for p, tensors in self.optimizer.state.items()}
        parameters = {name: parameter.detach() for parameter, name in self.names.items()}
        return {"parameters": parameters, "optimizer": optimizer, "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        for parameter, name in self.names.items():
            with torch.no_grad():
                parameter.copy_(state["parameters"][name])
            if name in state["optimizer"]:
                self.optimizer.state[parameter] = {
                    # AdamW's step counter stays on the CPU, as the optimizer itself keeps it.
                    key: tensor.clone() if key == "step" else tensor.to(parameter, copy=True)
                    for key, tensor in state["optimizer"][name].items()
                }
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def memory_bytes(self) -> int:
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.processes.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
