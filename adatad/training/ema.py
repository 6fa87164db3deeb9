"""Exponential moving average of the trained parameters; frozen ones need none."""

from __future__ import annotations

import torch
from torch import Tensor

from adatad.memory.offload import host_like, pieces, settle, to_device, write_host
from adatad.memory.scopes import memory_scope


class Ema:
    """Averages that start as copies of the parameters, without warm-up.

    They have the engine's layout: of a parameter that is sharded, each rank averages its own part. on_host: they wait
    in host memory between steps, and are updated on the device, some at a time.
    """

    def __init__(self, masters: dict[str, Tensor], decay: float, on_host: bool = False):
        self.decay, self.on_host = decay, on_host
        self._averages = {
            name: write_host(host_like(master, "moving averages"), master) if on_host else master.clone()
            for name, master in masters.items()
        }
        self._copied_from = {master.device for master in masters.values()} if on_host else set()
        """Devices whose copies to the host may not be complete."""

    @property
    def averages(self) -> dict[str, Tensor]:
        """Averages by name, after a wait for copies to the host that were begun."""
        while self._copied_from:
            settle(self._copied_from.pop())
        return self._averages

    @torch.no_grad()
    def update(self, masters: dict[str, Tensor]) -> None:
        """Set average = decay x average + (1 - decay) x parameter. Called after every optimizer step."""
        if not self.on_host:
            self._update(list(self._averages.values()), [masters[name] for name in self._averages])
            return
        # Not the property: copies of the last step and of this one follow each other on one stream, without a wait.
        averages = iter(self._averages.values())
        for parameters in pieces([masters[name] for name in self._averages]):
            hosts = [next(averages) for _ in parameters]
            with memory_scope("moving average"):
                here = [to_device(host, p.device) for host, p in zip(hosts, parameters, strict=True)]
            self._update(here, parameters)
            for host, average in zip(hosts, here, strict=True):
                write_host(host, average)
        self._copied_from.add(next(iter(masters.values())).device)

    def _update(self, averages: list[Tensor], parameters: list[Tensor]) -> None:
        # Not lerp: changes are near the rounding of fp32, and the reference multiplies and adds.
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, parameters, alpha=1 - self.decay)

    def load(self, averages: dict[str, Tensor]) -> None:
        """Copy averages of a checkpoint, of the engine's layout, into these."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
