"""DeepSpeed's ZeRO: AdamW's state (stage 1), gradients too (stage 2) and all weights too (stage 3) cut over the ranks.

DeepSpeed holds the trained parameters in fp32 and steps torch's AdamW; autocast, gradient sums and losses are as under
any other engine, so a run means the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.errors import UserError
from adatad.memory.arithmetic import autocast, autocast_dtype, no_autocast
from adatad.parallel.adamw import MOMENTS, HostStateAdamW, make_adamw
from adatad.parallel.base import all_finite, peak_memory_bytes, read_together, swapped_tensors
from adatad.parallel.deepspeed.config import deepspeed_config
from adatad.parallel.deepspeed.internals import Partitions, ShardedPartitions, start_deepspeed
from adatad.parallel.deepspeed.zero3 import gather_for_waves, mark_units, reduce_by_parameter
from adatad.parallel.processes import Processes
from adatad.spec.schema import Spec


class ZeroEngine:
    """The engine of all three stages; what differs between them is in `Partitions` and `zero3`."""

    saves_shards = False

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        self.processes = processes
        self.dtype = autocast_dtype(spec.train.precision, processes.device)
        if self.dtype == torch.float16:
            raise UserError(
                f"train.precision {spec.train.precision} means fp16 on this device, whose loss scale engine "
                f"{spec.parallel.engine} doesn't keep; set it to bf16 or fp32, or parallel.engine to ddp or fsdp"
            )
        config = deepspeed_config(spec, processes.world, processes.device.type == "cpu")
        deepspeed = start_deepspeed(processes)
        self.sharded = config["zero_optimization"]["stage"] == 3
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for parameter, name in self.names.items()}
        model.to(processes.device)
        for parameter in self.names:
            if parameter.dim() == 0:
                # DeepSpeed's broadcast of initial weights fails on these. One value with a dimension broadcasts alike.
                parameter.data = parameter.data.view(1)
        # Before `initialize` for what its hooks must find, after it for what it has set up in another way.
        if self.sharded:
            mark_units(model)
        # torch's fused kernel, unless DeepSpeed moves the parameters to the host.
        offloads = config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
        self.fused = processes.device.type == "cuda" and not offloads
        adamw = make_adamw(groups, spec, self.fused)
        # Stage 3 changes weights in place between uses, of which autocast's cache would know nothing.
        inside = _AutocastInside(model, processes.device, self.dtype, cache=not self.sharded)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=inside, model_parameters=list(self.names), optimizer=adamw, config=config
        )
        if self.sharded:
            reduce_by_parameter(self.optimizer)
            gather_for_waves(model)
        self.model = _NoAutocastOutside(self.engine, processes.device)
        self.adamw = adamw
        self.groups = adamw.param_groups
        layout = ShardedPartitions if self.sharded else Partitions
        self.partitions = layout(self.optimizer, self.names, processes.rank)
        self.partitions.watch_norm(self._judge)
        self.lengths = processes.gather({name: part.length for name, part in self.partitions.slices.items()})
        self.norm, self.sums, self.losses = math.inf, [], None

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Surround a micro-batch with autocast, and tell DeepSpeed which one is the last before the update."""
        self.engine.set_gradient_accumulation_boundary(last)
        with autocast(self.processes.device, self.dtype, cache=not self.sharded):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients."""
        # DeepSpeed averages over ranks; a sum over the global batch is wanted. Micro-batches it is told to add up.
        self.engine.backward(loss * self.processes.world, scale_wrt_gas=False)

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        """Clip, step and clear the gradients, all by DeepSpeed, which calls `_judge` with their norms in between."""
        self.optimizer.clip_grad = max_norm or 0.0
        # A step that asks for no norm would be taken for one that isn't finite, and find no losses.
        self.norm, self.sums, self.losses = math.inf, [], losses
        self.engine.step()
        self.losses = None
        return self.norm, self.sums

    def _judge(self, norms: list[Tensor]) -> list[float]:
        """Return the norms that DeepSpeed's step is to go on with, infinite ones if the step is refused."""
        values = read_together(*norms, self.losses)
        norms, self.sums = values[: len(norms)], self.processes.sum_floats(values[len(norms) :])
        # DeepSpeed puts -1 for a group whose norm isn't finite.
        self.norm = math.hypot(*norms) if all(norm >= 0 for norm in norms) else math.inf
        return norms if all_finite(self.norm, *self.sums) else [math.inf] * len(norms)

    def master_parameters(self) -> dict[str, Tensor]:
        """Return views of this rank's parts in DeepSpeed's flat fp32 tensors, 1-D."""
        return {name: part.of(part.flat) for name, part in self.partitions.slices.items()}

    @contextmanager
    def swapped_parameters(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Exchange the parameters' contents with `values` inside the context. All ranks call it."""
        with swapped_tensors(self.master_parameters(), values):
            self.partitions.update_model()
            yield
        # The values are back in the flat tensors; the model still has the others.
        self.partitions.update_model()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return views of AdamW's moments in DeepSpeed's flat tensors."""
        state = self.adamw.state
        if isinstance(self.adamw, HostStateAdamW):
            self.adamw.complete_copies()
        return {
            name: {"step": state[part.flat]["step"], **{key: part.of(state[part.flat][key]) for key in MOMENTS}}
            for name, part in self.partitions.slices.items()
            if part.flat in state
        }

    def gather_full(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gather tensors one by one into the first rank's host memory. All ranks call it."""
        full = {}
        # Tensor by tensor, so that the first rank has no more than one full tensor on its device.
        for name, part in parts.items():
            lengths = [of_rank[name] for of_rank in self.lengths]
            # Collectives want equal lengths.
            padded = F.pad(part.detach().to(self.processes.device), (0, max(lengths) - len(part)))
            received = [torch.empty_like(padded) for _ in lengths] if self.processes.is_main else None
            dist.gather(padded, received)
            if received:
                cut = [padded[:length] for padded, length in zip(received, lengths, strict=True)]
                full[name] = torch.cat(cut).view(self.shapes[name]).cpu()
        return full

    def shard(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's values of full tensors, 1-D."""
        rank = self.processes.rank
        parts = {}
        for name, tensor in full.items():
            start = sum(lengths[name] for lengths in self.lengths[:rank])
            parts[name] = tensor.detach().flatten().narrow(0, start, self.lengths[rank][name])
        return parts

    @torch.no_grad()
    def load(self, masters: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
        """Set parameters and moments, then the model's own copies of the parameters. All ranks call it."""
        for name, master in self.master_parameters().items():
            master.copy_(masters[name])
        for name, tensors in moments.items():
            part = self.partitions.slices[name]
            state = self.adamw.state[part.flat]
            # The same for all parameters, and where torch keeps it: on the CPU, but for its fused kernel.
            state["step"] = tensors["step"].to(part.flat.device if self.fused else "cpu", copy=True)
            for key in MOMENTS:
                part.of(state.setdefault(key, torch.zeros_like(part.flat.detach()))).copy_(tensors[key])
        self.partitions.update_model()

    def scaler_state(self) -> dict[str, Any]:
        """Return nothing: this engine refuses fp16, so there is no loss scale."""
        return {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Do nothing, as there is no loss scale."""

    def memory_bytes(self) -> int:
        """Return the peak memory of this rank."""
        return peak_memory_bytes(self.processes.device)


class _AutocastInside(nn.Module):
    """The model in autocast, for DeepSpeed to wrap: autocast around its engine is switched off in there."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, cache: bool):
        super().__init__()
        self.model, self.device, self.dtype, self.cache = model, device, dtype, cache

    def forward(self, *inputs: Any) -> Any:
        """Run the model in autocast."""
        with autocast(self.device, self.dtype, self.cache):
            return self.model(*inputs)


class _NoAutocastOutside(nn.Module):
    """DeepSpeed's engine outside of autocast, which it would switch off with a warning at every call."""

    def __init__(self, engine: nn.Module, device: torch.device):
        super().__init__()
        self.engine, self.device = engine, device

    def forward(self, *inputs: Any) -> Any:
        """Run DeepSpeed's engine without autocast around it."""
        with no_autocast(self.device):
            return self.engine(*inputs)
