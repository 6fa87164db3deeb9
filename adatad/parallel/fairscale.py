"""Sharded weights with fairscale's FullyShardedDataParallel, which torch's own FSDP came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.checkpoint import checkpoint_wrapper
from torch import Tensor, nn

from adatad.memory.arithmetic import autocast
from adatad.memory.weights import TrainedWeights, WeightProvider
from adatad.models.actionformer import Predictions
from adatad.models.backbone import PlainExecutor
from adatad.parallel.adamw import AdamWEngine
from adatad.parallel.engine import all_finite, autocast_dtype, read_together
from adatad.parallel.fairscale_shim import fit_fairscale
from adatad.parallel.fairscale_units import GatheredWeights, Unit, together, whole_tensors
from adatad.parallel.processes import Processes, ensure_group
from adatad.spec.schema import Spec


class FairscaleEngine(AdamWEngine):
    """A unit for each backbone block, and one for all the rest. Between steps a rank holds 1/world of every parameter,
    and AdamW's state of that part alone.

    Of the frozen weights at most two blocks and the rest are whole at once under the policies none, selective and block
    (fairscale's own wrapper keeps all of them from their turn in backward to its end; see `Unit`). Under tile it is
    the blocks of one segment, gathered when their turn comes and not ahead of it: fairscale has no gather that goes on
    beside other work on every backend.

    fairscale's OffloadModel isn't used: it needs CUDA and works on a list of layers, not on a model.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        fit_fairscale(processes.device, autocast_dtype(spec.train.precision, processes.device))
        ensure_group(processes)
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.units = wrap(model.to(processes.device), spec)
        self.model = self.units[-1]
        self.unit_of = {parameter: unit for unit in self.units for parameter in unit.params}
        self.hold(named, groups, spec, processes, on_gpu=processes.device.type == "cuda")
        if model.backbone is not None:
            model.backbone.executor = model.backbone.executor.with_weights(GatheredUnits(self, model.backbone.blocks))

    def trained_weights(self, weights: TrainedWeights) -> tuple[Tensor, ...]:
        """What waves use in place of `TrainedWeights.forward`: those of blocks gathered by hand; the rest is whole in
        forward."""
        parameters = weights.parameters_used()
        by_hand = [p for p in parameters if self.unit_of[p] is not self.model]
        tensors: dict[nn.Parameter, Tensor] = {}
        if by_hand:
            anchor = torch.zeros((), device=self.processes.device, requires_grad=True)
            tensors = dict(zip(by_hand, GatheredWeights.apply(anchor, by_hand), strict=True))
        if torch.is_grad_enabled():
            for tensor, parameter in zip(tensors.values(), tensors, strict=True):
                tensor.register_hook(lambda _, unit=self.unit_of[parameter]: unit.gradients_are_there())
        return tuple(tensors[p] if p in tensors else p.view_as(p) for p in parameters)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        with nullcontext() if last else self.model.no_sync(), autocast(self.processes.device, self.dtype):
            yield

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        # fairscale keeps the last unit's frozen weights, and between micro-batches those of all.
        for unit in self.units:
            unit.let_go()

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        # As a tensor, which needs no reading. One without a scaler.
        norm = self.joint_norm(gradients) / self.scaler.scale(torch.ones((), device=self.processes.device))
        joint_norm, *own = read_together(norm, losses)
        sums = self.processes.sum_floats(own)
        if not math.isfinite(joint_norm):
            # The scaler looks at this rank's parts alone: show it everywhere what any rank has.
            torch._foreach_mul_(gradients, torch.nan)
        self.scaler.unscale_(self.optimizer)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.named.values()), max_norm, norm)
        if all_finite(joint_norm, *sums):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return joint_norm, sums

    def joint_norm(self, gradients: list[Tensor]) -> Tensor:
        """Over all ranks' parts, the same number on every rank."""
        total = nn.utils.get_total_norm(gradients).to(self.processes.device) ** 2
        dist.all_reduce(total)
        return total.sqrt()

    def whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, part in parts.items():
            tensor = whole_tensors([part], [self.named[name]])[0]
            if self.processes.is_main:
                found[name] = tensor.cpu()
        return found

    def parts(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.unit_of[self.named[name]].part(t, self.named[name]) for name, t in whole.items()}


def wrap(model: nn.Module, spec: Spec) -> list[Unit]:
    """Shard a model where it stands; the units of its blocks, then that of the rest. All ranks hold the same model."""
    options = {
        "process_group": dist.group.WORLD,
        "process_group_reduce_scatter": dist.new_group(timeout=timedelta(seconds=spec.train.hang_seconds)),
        "compute_device": next(model.parameters()).device,
        # Every gradient by itself: gloo wants exact shapes, which fairscale's buckets don't have, and on GPUs the way
        # is taken that was tested.
        "bucket_cap_mb": 0,
    }
    units, backbone = [], model.backbone
    if backbone is not None:
        if spec.parallel.checkpoint_offload:
            # fairscale's own checkpoints take the place of the executor's.
            backbone.executor = PlainExecutor()
        for index, block in enumerate(backbone.blocks):
            if spec.parallel.checkpoint_offload:
                checkpoint_wrapper(block, offload_to_cpu=True)
            backbone.blocks[index] = Unit(block, **options)
            units.append(backbone.blocks[index])
    model.register_forward_hook(_gradients_together)
    units.append(Unit(model, **options))
    units[-1].set_gradient_divide_factors(1.0, 1.0, recursive=True)
    return units


def _gradients_together(model: nn.Module, inputs: tuple[Any, ...], out: Predictions) -> Predictions:
    tensors = together([*out.logits, *out.offsets])
    return out._replace(logits=tensors[: len(out.logits)], offsets=tensors[len(out.logits) :])


class GatheredUnits(WeightProvider):
    """Gathers the units of the blocks that a wave runs."""

    def __init__(self, engine: FairscaleEngine, blocks: nn.ModuleList):
        self.engine, self.blocks = engine, blocks

    def trained(self, weights: TrainedWeights) -> tuple[Tensor, ...]:
        return self.engine.trained_weights(weights)

    @contextmanager
    def materialized(self, blocks: range, following: range) -> Iterator[None]:
        with ExitStack() as stack:
            for index in blocks:
                stack.enter_context(self.blocks[index].whole())
            yield
