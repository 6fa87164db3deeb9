"""DeepSpeed's ZeRO: AdamW's state (stage 1), gradients too (stage 2) and all weights too (stage 3) cut over the ranks.

DeepSpeed holds the trained parameters in fp32 and steps torch's AdamW; autocast, gradient sums and losses are as under
any other engine, so a run means the same.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.errors import UserError
from adatad.memory.arithmetic import autocast, no_autocast
from adatad.parallel.adamw import make_adamw
from adatad.parallel.deepspeed_config import deepspeed_config
from adatad.parallel.engine import all_finite, autocast_dtype, peak_memory_bytes, read_together, swapped
from adatad.parallel.host_adamw import HostStateAdamW
from adatad.parallel.processes import Processes, ensure_group
from adatad.parallel.zero3 import gather_for_waves, mark_units, reduce_by_parameter
from adatad.parallel.zero_partitions import Partitions, ShardedPartitions
from adatad.spec.schema import Spec


class ZeroEngine:
    """All stages; what differs between them is in `zero_partitions` and `zero3`."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        self.processes = processes
        self.dtype = _dtype(spec, processes)
        config = deepspeed_config(spec, processes.world, processes.device.type == "cpu")
        deepspeed = start_deepspeed(processes)
        self.sharded = config["zero_optimization"]["stage"] == 3
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for parameter, name in self.names.items()}
        _autocast_inside(model, processes.device, self.dtype, cache=not self.sharded)
        model.to(processes.device)
        for parameter in self.names:
            if parameter.dim() == 0:
                # DeepSpeed's broadcast of initial weights fails on these. One value with a dimension broadcasts alike.
                parameter.data = parameter.data.view(1)
        if self.sharded:
            mark_units(model)
        # Unless DeepSpeed moves the parameters to the host.
        offloads = config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
        self.fused = processes.device.type == "cuda" and not offloads
        adamw = make_adamw(groups, spec, self.fused)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, model_parameters=list(self.names), optimizer=adamw, config=config
        )
        if self.sharded:
            reduce_by_parameter(self.optimizer)
            gather_for_waves(model)
        self.model = _OutsideAutocast(self.engine, processes.device)
        self.adamw = adamw
        self.groups = adamw.param_groups
        layout = ShardedPartitions if self.sharded else Partitions
        self.partitions = layout(self.optimizer, self.names, processes.rank)
        self.partitions.watch_norm(self._judge)
        self.lengths = processes.gather({name: piece.length for name, piece in self.partitions.pieces.items()})
        self.norm, self.sums, self.losses = math.inf, [], None

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        with autocast(self.processes.device, self.dtype, cache=not self.sharded):
            yield

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages over ranks; a sum over the global batch is wanted. Micro-batches it is told to add up.
        self.engine.backward(loss * self.processes.world, scale_wrt_gas=False)

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        self.optimizer.clip_grad = max_norm or 0.0
        # A step that asks for no norm would be taken for one that isn't finite, and find no losses.
        self.norm, self.sums, self.losses = math.inf, [], losses
        self.engine.step()
        self.losses = None
        return self.norm, self.sums

    def _judge(self, norms: list[Tensor]) -> list[float]:
        """Within DeepSpeed's step: the norms that it is to go on with, infinite ones if the step is refused."""
        values = read_together(*norms, self.losses)
        norms, self.sums = values[: len(norms)], self.processes.sum_floats(values[len(norms) :])
        # DeepSpeed puts -1 for a group whose norm isn't finite.
        self.norm = math.hypot(*norms) if all(norm >= 0 for norm in norms) else math.inf
        return norms if all_finite(self.norm, *self.sums) else [math.inf] * len(norms)

    def masters(self) -> dict[str, Tensor]:
        return {name: piece.of(piece.flat) for name, piece in self.partitions.pieces.items()}

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        with swapped(self.masters(), values):
            self.partitions.spread()
            yield
        self.partitions.spread()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        state = self.adamw.state
        if isinstance(self.adamw, HostStateAdamW):
            self.adamw.complete_copies()
        return {
            name: {
                "step": state[piece.flat]["step"],
                **{key: piece.of(state[piece.flat][key]) for key in ("exp_avg", "exp_avg_sq")},
            }
            for name, piece in self.partitions.pieces.items()
            if piece.flat in state
        }

    def whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensor by tensor, so that one rank holds no more than one whole tensor on its device."""
        whole = {}
        for name, part in parts.items():
            lengths = [of_rank[name] for of_rank in self.lengths]
            pieces = self._gather(part.detach().to(self.processes.device), lengths)
            if pieces:
                whole[name] = torch.cat(pieces).view(self.shapes[name]).cpu()
        return whole

    def _gather(self, part: Tensor, lengths: list[int]) -> list[Tensor]:
        """All ranks' parts on the first rank, [] on the others."""
        longest = max(lengths)
        padded = F.pad(part, (0, longest - len(part)))
        pieces = [torch.empty_like(padded) for _ in lengths] if self.processes.is_main else None
        dist.gather(padded, pieces)
        return [piece[:length] for piece, length in zip(pieces or [], lengths, strict=bool(pieces))]

    def parts(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        rank = self.processes.rank
        parts = {}
        for name, tensor in whole.items():
            start = sum(lengths[name] for lengths in self.lengths[:rank])
            parts[name] = tensor.detach().flatten().narrow(0, start, self.lengths[rank][name])
        return parts

    def shards(self, parts: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    @torch.no_grad()
    def load(self, masters: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
        for name, master in self.masters().items():
            master.copy_(masters[name])
        for name, tensors in moments.items():
            piece = self.partitions.pieces[name]
            state = self.adamw.state[piece.flat]
            # The same for all parameters, and where torch keeps it: on the CPU, but for its fused kernel.
            state["step"] = tensors["step"].to(piece.flat.device if self.fused else "cpu", copy=True)
            for key in ("exp_avg", "exp_avg_sq"):
                piece.of(state.setdefault(key, torch.zeros_like(piece.flat.detach()))).copy_(tensors[key])
        self.partitions.spread()

    def scaler_state(self) -> dict[str, Any]:
        return {}

    def load_scaler(self, state: dict[str, Any]) -> None: ...

    def memory_bytes(self) -> int:
        return peak_memory_bytes(self.processes.device)


class _OutsideAutocast(nn.Module):
    """DeepSpeed's module. It would switch a surrounding autocast off, and warn; ours is inside of it."""

    def __init__(self, engine: nn.Module, device: torch.device):
        super().__init__()
        self.engine, self.device = engine, device

    def forward(self, *inputs: Any) -> Any:
        with no_autocast(self.device):
            return self.engine(*inputs)


def _autocast_inside(model: nn.Module, device: torch.device, dtype: torch.dtype, cache: bool) -> None:
    run = model.forward

    def forward(*inputs: Any) -> Any:
        with autocast(device, dtype, cache):
            return run(*inputs)

    model.forward = forward


def _dtype(spec: Spec, processes: Processes) -> torch.dtype:
    dtype = autocast_dtype(spec.train.precision, processes.device)
    if dtype == torch.float16:
        raise UserError(
            f"train.precision {spec.train.precision} means fp16 on this device, whose loss scale engine "
            f"{spec.parallel.engine} doesn't keep; set it to bf16 or fp32, or parallel.engine to ddp or fsdp"
        )
    return dtype


def start_deepspeed(processes: Processes) -> Any:
    """The library, on the process group there is; alone, on a group of one."""
    if processes.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise UserError(
            f"engines zero1, zero2 and zero3 need DeepSpeed: bash launch/setup.sh deepspeed installs it ({error})"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls collectives by the names that torch 2.13 is about to give up.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Its shared-memory collectives for CPUs would be compiled at the first run, and took part in wrong results then.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ensure_group(processes)
    # A process alone has it from no launcher, and DeepSpeed asks for it.
    os.environ.setdefault("LOCAL_RANK", str(processes.device.index or 0))
    deepspeed.init_distributed(verbose=False)
    return deepspeed
