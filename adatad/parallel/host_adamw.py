"""AdamW whose moments wait in host memory between steps; they are updated on the device, some parameters at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatad.memory.offload import host_like, settle, to_device, write_host
from adatad.memory.scopes import memory_scope
from adatad.parallel.piecewise_adamw import MOMENTS, PiecewiseAdamW


class HostStateAdamW(PiecewiseAdamW):
    """Computes what torch's AdamW computes, to the same bits."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._on_host: dict[Tensor, dict[str, Tensor]] = {}
        self._copied_from: set[torch.device] = set()
        """Devices whose copies to the host may not be complete."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self._copied_from.add(self.param_groups[0]["params"][0].device)

    def complete_copies(self) -> None:
        """Wait until the host can read the moments. Steps need no wait: the next one's copies come after these."""
        while self._copied_from:
            settle(self._copied_from.pop())

    def _fetch(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            for name, host in self._on_host.get(parameter, {}).items():
                with memory_scope("optimizer state"):
                    self.state[parameter][name] = to_device(host, parameter.device)

    def store(self, parameters: Sequence[Tensor]) -> None:
        self._put_away(parameters)
        settle(parameters[0].device)

    def _put_away(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            state, hosts = self.state.get(parameter, {}), self._on_host.setdefault(parameter, {})
            for name in MOMENTS:
                if name in state:
                    if name not in hosts:
                        hosts[name] = host_like(state[name], "AdamW's moments")
                    state[name] = write_host(hosts[name], state[name])
