"""What engines have in common that step torch's AdamW over this rank's parts of the parameters, as plain tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from adatad.parallel.engine import autocast_dtype, peak_memory_bytes, swapped
from adatad.parallel.host_adamw import HostStateAdamW
from adatad.parallel.piecewise_adamw import PiecewiseAdamW
from adatad.parallel.processes import Processes
from adatad.parallel.rounded_adamw import RoundedAdamW
from adatad.spec.schema import Spec

Moments = dict[str, dict[str, Tensor]]


def make_adamw(groups: list[dict[str, Any]], spec: Spec, on_gpu: bool) -> torch.optim.AdamW:
    """on_gpu: the parameters lie on one, where one fused kernel needs no temporary copies of the moments."""
    on_host = spec.memory.optimizer_state == "host"
    options = {"betas": spec.optimizer.betas, "eps": spec.optimizer.eps, "fused": on_gpu or None}
    if spec.memory.moment_dtype == "bf16":
        return RoundedAdamW(groups, seed=spec.train.seed, on_host=on_host, **options)
    return (HostStateAdamW if on_host else torch.optim.AdamW)(groups, **options)


class AdamWEngine:
    """The part of the engine protocol that is the same wherever these parts lie in one optimizer's parameters."""

    def hold(
        self,
        named: dict[str, nn.Parameter],
        groups: list[dict[str, Any]],
        spec: Spec,
        processes: Processes,
        on_gpu: bool,
    ) -> None:
        """named: this rank's parts of the trained parameters, which `groups` hold."""
        self.named, self.processes = named, processes
        self.optimizer = make_adamw(groups, spec, on_gpu)
        self.groups = self.optimizer.param_groups
        self.dtype = autocast_dtype(spec.train.precision, processes.device)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)

    def gradients(self) -> dict[str, Tensor]:
        return {name: parameter.grad for name, parameter in self.named.items() if parameter.grad is not None}

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def masters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named.items()}

    def holding(self, values: dict[str, Tensor]) -> AbstractContextManager[None]:
        return swapped(self.masters(), values)

    def moments(self) -> Moments:
        state = self.optimizer.state
        if isinstance(self.optimizer, HostStateAdamW):
            self.optimizer.complete_copies()
        return {name: dict(state[parameter]) for name, parameter in self.named.items() if parameter in state}

    def shards(self, parts: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    @torch.no_grad()
    def load(self, masters: dict[str, Tensor], moments: Moments) -> None:
        # The step counter stays on the CPU unless the update is fused, as the optimizer itself keeps it.
        fused = self.optimizer.defaults["fused"]
        for name, parameter in self.named.items():
            parameter.copy_(masters[name])
            if name in moments:
                place = {"step": parameter.device if fused else torch.device("cpu")}
                self.optimizer.state[parameter] = {
                    key: tensor.to(place.get(key, parameter.device), copy=True) for key, tensor in moments[name].items()
                }
                if isinstance(self.optimizer, PiecewiseAdamW):
                    self.optimizer.store([parameter])

    def scaler_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(state)

    def memory_bytes(self) -> int:
        return peak_memory_bytes(self.processes.device)
