"""The common part of engines that step torch's AdamW over this rank's part of the parameters, as plain tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from adatad.memory.arithmetic import autocast_dtype
from adatad.parallel.adamw import HostStateAdamW, PiecewiseAdamW, make_adamw
from adatad.parallel.base import peak_memory_bytes, swapped_tensors
from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec

Moments = dict[str, dict[str, Tensor]]


class AdamWEngine:
    """The part of the engine protocol that is the same wherever one optimizer's parameters are this rank's part.

    An engine calls `init_optimizer` at the end of its constructor: only then the parameters have their final form.
    """

    saves_shards = False

    def init_optimizer(
        self,
        named: dict[str, nn.Parameter],
        groups: list[dict[str, Any]],
        spec: Spec,
        processes: Processes,
        on_gpu: bool,
    ) -> None:
        """Make the optimizer and the loss scale. named: this rank's part of the trained parameters, which `groups`
        hold; on_gpu: whether they lie on one."""
        self.named, self.processes = named, processes
        self.optimizer = make_adamw(groups, spec, on_gpu)
        # The optimizer's own list: the schedule writes rates to it.
        self.groups = self.optimizer.param_groups
        self.dtype = autocast_dtype(spec.train.precision, processes.device)
        # Disabled, the scaler is a no-op, so that callers have no branch on the precision.
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's gradients, by name."""
        return {name: parameter.grad for name, parameter in self.named.items() if parameter.grad is not None}

    def clear_gradients(self) -> None:
        """Free all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def master_parameters(self) -> dict[str, Tensor]:
        """Return this rank's part of the trained parameters, without their graph."""
        return {name: parameter.detach() for name, parameter in self.named.items()}

    def swapped_parameters(self, values: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Exchange the parameters' contents with `values` inside the context."""
        return swapped_tensors(self.master_parameters(), values)

    def moments(self) -> Moments:
        """Return the optimizer's own tensors, not copies: the next step changes them."""
        state = self.optimizer.state
        # Copies to the host may still be on their way.
        if isinstance(self.optimizer, HostStateAdamW):
            self.optimizer.complete_copies()
        return {name: dict(state[parameter]) for name, parameter in self.named.items() if parameter in state}

    @torch.no_grad()
    def load(self, masters: dict[str, Tensor], moments: Moments) -> None:
        """Set parameters and moments; the tensors given are copied."""
        # The step counter stays on the CPU unless the update is fused, as the optimizer itself keeps it.
        fused = self.optimizer.defaults["fused"]
        for name, parameter in self.named.items():
            parameter.copy_(masters[name])
            if name in moments:
                place = {"step": parameter.device if fused else torch.device("cpu")}
                self.optimizer.state[parameter] = {
                    key: tensor.to(place.get(key, parameter.device), copy=True) for key, tensor in moments[name].items()
                }
                # These keep moments elsewhere, or in bf16: what was loaded goes there now.
                if isinstance(self.optimizer, PiecewiseAdamW):
                    self.optimizer.store([parameter])

    def scaler_state(self) -> dict[str, Any]:
        """Return the state of fp16's loss scale; {} in other precisions."""
        return self.scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Set the loss scale, if the state has one."""
        # A run of another precision saved none.
        if state:
            self.scaler.load_state_dict(state)

    def memory_bytes(self) -> int:
        """Return the peak memory of this rank."""
        return peak_memory_bytes(self.processes.device)
