"""Sharded weights with fairscale's FullyShardedDataParallel, which torch's own FSDP came from.

All that knows fairscale is in this file. It is no longer developed: `fairscale_runs_here` gives it what it takes for
granted and torch or a CPU doesn't have, and PRIVATE_NAMES lists what is used of it that it doesn't document.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adatad.memory.arithmetic import autocast, autocast_dtype
from adatad.memory.weights import TrainedWeights
from adatad.models.actionformer import Predictions
from adatad.models.backbone import PlainExecutor
from adatad.parallel.adamw_engine import AdamWEngine
from adatad.parallel.base import all_finite, read_together, require_names
from adatad.parallel.processes import Processes, ensure_group
from adatad.spec.schema import Spec

with warnings.catch_warnings():
    # Its OffloadModel, which nothing here uses, is decorated with a name that torch has moved.
    warnings.simplefilter("ignore", FutureWarning)
    from fairscale.nn.checkpoint import checkpoint_activations, checkpoint_wrapper
    from fairscale.nn.data_parallel import FullyShardedDataParallel, fully_sharded_data_parallel

WORKS_WITH = ">=0.4.13,<0.5"
"""Versions of fairscale that have the private names, as in setup.cfg."""
PRIVATE_NAMES = {
    "fairscale.nn.checkpoint.checkpoint_activations": ("autocast",),
    "fairscale.nn.data_parallel.fully_sharded_data_parallel": ("TrainingState", "free_storage_", "logging", "torch"),
    "FullyShardedDataParallel": (
        "_free_full_params",
        "_get_shard",
        "_init_param_attributes",
        "_lazy_init",
        "_rebuild_full_params",
        "_use_fp32_param_shard",
    ),
    "a FullyShardedDataParallel": ("compute_dtype", "has_full_params", "params", "training_state", "world_size"),
    # Also `_fp32_shard` and `_full_param_padded`, which are set at the first use.
    "the parameters of a FullyShardedDataParallel": ("_is_sharded", "_orig_size"),
}
"""Names that are used of fairscale and that it doesn't document, by their module or by the object that has them."""


def require_private_names(part: str, owner: object) -> None:
    """Raise UserError unless a part of fairscale has the names that PRIVATE_NAMES lists for it."""
    require_names("fairscale", WORKS_WITH, part, owner, PRIVATE_NAMES[part])


class FairscaleEngine(AdamWEngine):
    """An engine with a unit for each backbone block, and one for all the rest.

    Between steps a rank holds 1/world of every parameter, and AdamW's state of that part alone. Of the frozen weights
    at most two blocks and the rest are gathered at once under the policies none, selective and block (fairscale's own
    wrapper keeps all of them from their turn in backward to its end; see `Unit`). Under tile it is the blocks of one
    segment, gathered when their turn comes and not ahead of it: fairscale has no gather that goes on beside other work
    on every backend.

    fairscale's OffloadModel isn't used: it needs CUDA and works on a list of layers, not on a model.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        for part in (checkpoint_activations, fully_sharded_data_parallel):
            require_private_names(part.__name__, part)
        require_private_names("FullyShardedDataParallel", FullyShardedDataParallel)
        ignore_warnings()
        ensure_group(processes)
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.units = shard_model(model.to(processes.device), spec)
        self.model = self.units[-1]
        self.unit_of = {parameter: unit for unit in self.units for parameter in unit.params}
        self.init_optimizer(named, groups, spec, processes, on_gpu=processes.device.type == "cuda")
        if model.backbone is not None:
            # Waves don't call blocks as modules: their weights are gathered by hand.
            provider = FairscaleWeights(self, model.backbone.blocks)
            model.backbone.executor = model.backbone.executor.with_weights(provider)

    def trained_weights(self, weights: TrainedWeights) -> tuple[Tensor, ...]:
        """Return what `TrainedWeights.forward` would: weights of blocks gathered by hand, the rest as the root unit has
        it whole in forward."""
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
        """Surround a micro-batch with autocast and what fairscale needs; gradients are exchanged after the last."""
        device = self.processes.device
        with (
            fairscale_runs_here(device, self.dtype),
            nullcontext() if last else self.model.no_sync(),
            autocast(device, self.dtype),
        ):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients, and free all gathered weights."""
        with fairscale_runs_here(self.processes.device, self.dtype):
            self.scaler.scale(loss).backward()
        # fairscale keeps the last unit's frozen weights, and between micro-batches those of all.
        for unit in self.units:
            unit.reshard()

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        """Clip, step and clear the gradients."""
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        # As a tensor, which needs no reading. One without a scaler.
        norm = self.joint_norm(gradients) / self.scaler.scale(torch.ones((), device=self.processes.device))
        joint_norm, *own = read_together(norm, losses)
        sums = self.processes.sum_floats(own)
        if not math.isfinite(joint_norm):
            # The scaler looks at this rank's parts alone: show it everywhere what any rank has.
            for gradient in gradients:
                gradient.fill_(torch.nan)
        self.scaler.unscale_(self.optimizer)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.named.values()), max_norm, norm)
        if all_finite(joint_norm, *sums):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return joint_norm, sums

    def joint_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm of all ranks' parts, the same number on every rank."""
        total = nn.utils.get_total_norm(gradients).to(self.processes.device) ** 2
        dist.all_reduce(total)
        return total.sqrt()

    def gather_full(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gather tensors one by one into the first rank's host memory. All ranks call it."""
        found = {}
        for name, part in parts.items():
            tensor = full_tensors([part], [self.named[name]])[0]
            if self.processes.is_main:
                found[name] = tensor.cpu()
        return found

    def shard(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's padded parts of full tensors."""
        return {name: self.unit_of[self.named[name]].part(t, self.named[name]) for name, t in full.items()}


def shard_model(model: nn.Module, spec: Spec) -> list[Unit]:
    """Shard a model in place; return the units of its blocks, then that of the rest. All ranks hold the same model."""
    device = next(model.parameters()).device
    options = {
        "dtype": autocast_dtype(spec.train.precision, device),
        "process_group": dist.group.WORLD,
        "process_group_reduce_scatter": dist.new_group(timeout=timedelta(seconds=spec.train.hang_seconds)),
        "compute_device": device,
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
    """Let backward enter the root unit once all its outputs have their gradients; a forward hook."""
    tensors = together([*out.logits, *out.offsets])
    return out._replace(logits=tensors[: len(out.logits)], offsets=tensors[len(out.logits) :])


class FairscaleWeights:
    """Provider of the wave's weights from a backbone's units."""

    def __init__(self, engine: FairscaleEngine, blocks: nn.ModuleList):
        self.engine, self.blocks = engine, blocks

    def trained(self, weights: TrainedWeights) -> tuple[Tensor, ...]:
        """Return the trained tensors that a wave uses, in full."""
        return self.engine.trained_weights(weights)

    @contextmanager
    def materialized(self, blocks: range, following: range) -> Iterator[None]:
        """Gather blocks for the context; those that follow are gathered when they are asked for."""
        with ExitStack() as stack:
            for index in blocks:
                stack.enter_context(self.blocks[index].gathered())
            yield


class _CpuForCuda(ModuleType):
    """torch, with torch.cpu in the place of torch.cuda: the same functions, which do nothing."""

    cuda = torch.cpu

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_CPU_TORCH = _CpuForCuda("torch")


def _record_no_stream(tensor: Tensor, stream: Any) -> None: ...


@contextmanager
def fairscale_runs_here(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let fairscale run on `device` with this torch, inside the context. dtype: of autocast.

    Its code runs when a unit is made, in forward and in backward. The context may be entered within itself.
    """
    replaced = [
        # It logs through functions that set the root logger up, which would print a run's lines a second time.
        (fully_sharded_data_parallel, "logging", logging.getLogger("fairscale")),
        # When its checkpoints run a block again they take CUDA's fp16 for autocast, whatever the dtype of the run is.
        (checkpoint_activations, "autocast", lambda _: autocast(device, dtype)),
    ]
    if device.type != "cuda":
        # It orders gathers by CUDA streams, and marks tensors that another stream still reads. A CPU has neither.
        replaced += [
            (fully_sharded_data_parallel, "torch", _CPU_TORCH),
            (torch.Tensor, "record_stream", _record_no_stream),
        ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(_replaced(owner, name, value))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            # It was inherited: torch.Tensor has record_stream from its base.
            delattr(owner, name)


def ignore_warnings() -> None:
    """Silence what fairscale would warn of at every gather, for the process: undoing that repeats other warnings."""
    # Collectives and storages under names that torch will drop some day.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")
    warnings.filterwarnings("ignore", r"`torch\.distributed\._(all_gather|reduce_scatter)_base`")
    # Its checkpoint of the first block says that pixels have no gradient.
    warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")


class Unit(FullyShardedDataParallel):
    """A part of the model whose parameters are gathered and freed together.

    It differs from fairscale's wrapper in two ways. Frozen weights may have another dtype than fp32: they are sharded
    and gathered in it. And they are freed as soon as the gradient of the unit's input is there: fairscale itself frees
    a parameter when its gradient is there, and so frozen ones at the end of the whole backward pass only.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, compute_device: torch.device, **options: Any):
        """Wrap a module; its parameters without a unit become this one's. dtype: of autocast. options: fairscale's."""
        self.environment = partial(fairscale_runs_here, compute_device, dtype)
        own = [p for p in module.parameters() if not hasattr(p, "_is_sharded")]
        dtypes = [p.dtype for p in own]
        for parameter in own:
            # A copy: fairscale frees what it shards, which memory that NumPy once looked at doesn't allow.
            parameter.data = parameter.data.to(torch.float32, copy=True)
        options |= {"flatten_parameters": False, "disable_reshard_on_root": False, "compute_device": compute_device}
        with self.environment():
            super().__init__(module, **options)
        require_private_names("a FullyShardedDataParallel", self)
        for parameter in self.params:
            require_private_names("the parameters of a FullyShardedDataParallel", parameter)
        for parameter, dtype in zip(own, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
        self.frozen = [p for p in self.params if not p.requires_grad]
        self.register_forward_pre_hook(_reshard_when_input_has_its_gradient)

    def _init_param_attributes(self, p: nn.Parameter) -> None:
        fresh = not hasattr(p, "_fp32_shard")
        super()._init_param_attributes(p)
        if fresh and p._is_sharded and p.dtype != self.compute_dtype:
            p._full_param_padded = torch.empty(p.numel() * self.world_size, device=p.device, dtype=p.dtype)
            fully_sharded_data_parallel.free_storage_(p._full_param_padded)

    def _rebuild_full_params(self, force_full_precision: bool = False) -> list[tuple[Tensor, bool]] | None:
        if self.world_size > 1:
            return super()._rebuild_full_params(force_full_precision)
        # Alone every rank has all, and fairscale stumbles over parameters without dimensions.
        self.has_full_params = True
        return [(parameter.data, False) for parameter in self.params]

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Gather the unit, run its module and free it."""
        with self.environment():
            return super().forward(*inputs, **keywords)

    def reshard(self, parameters: list[nn.Parameter] | None = None) -> None:
        """Free all but this rank's part of these (of all) parameters."""
        with self.environment():
            self._free_full_params(parameters)
            self._use_fp32_param_shard(parameters)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather the parameters for the context, for code that reads them without calling the unit."""
        with self.environment():
            # What fairscale does before a first forward pass, which such a unit may never have.
            self._lazy_init()
            self._rebuild_full_params()
        try:
            yield
        finally:
            self.reshard()

    def part(self, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of a full tensor, as of that parameter: a padded 1-D piece; all of it on one rank."""
        return self._get_shard(tensor)[0] if parameter._is_sharded else tensor

    def gradients_are_there(self) -> None:
        """Let fairscale's check at the end of backward find what it expects of a unit that wasn't called itself."""
        # Of a unit in which nothing learns it expects none.
        if any(parameter.requires_grad for parameter in self.params):
            self.training_state = fully_sharded_data_parallel.TrainingState.BACKWARD_POST


def _reshard_when_input_has_its_gradient(unit: Unit, inputs: tuple[Any, ...]) -> None:
    """Free a unit's frozen weights in backward once its input has its gradient; a forward pre-hook."""
    first = inputs[0]
    if unit.frozen and isinstance(first, Tensor) and first.requires_grad and torch.is_grad_enabled():
        first.register_hook(lambda _: unit.reshard(unit.frozen))


def full_tensors(parts: list[Tensor], like: list[nn.Parameter]) -> list[Tensor]:
    """Return full tensors of parts that lie as these parameters do, gathered with one collective. All ranks call it."""
    flat = torch.cat([part.detach().flatten() for part in parts])
    rows = flat.new_empty(dist.get_world_size(), len(flat))
    dist.all_gather(list(rows.unbind()), flat)
    full = [torch.cat(list(piece)) for piece in rows.split([part.numel() for part in parts], dim=1)]
    # The end is padding: every rank's part has the same length.
    return [t[: p._orig_size.numel()].view(p._orig_size) for t, p in zip(full, like, strict=True)]


class GatheredWeights(torch.autograd.Function):
    """Gather sharded trained parameters. Backward adds this rank's parts of the sums over all ranks to their gradients.

    The parameters aren't inputs that autograd sees: it would remember the shape that they have now, and a unit gives
    them another while it is gathered. `anchor`, any tensor that requires a gradient, makes autograd call backward.
    """

    @staticmethod
    def forward(ctx, anchor: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        """Return the full tensors of the parameters, gathered with one collective."""
        ctx.parameters = parameters
        return tuple(full_tensors([p.data for p in parameters], parameters))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        """Sum full gradients over the ranks, with one collective, into this rank's parts."""
        world = dist.get_world_size()
        rows = [_rows(g, world, p.numel()) for g, p in zip(gradients, ctx.parameters, strict=True)]
        sums = rows[0].new_empty(sum(row.shape[1] for row in rows))
        dist.reduce_scatter(sums, list(torch.cat(rows, dim=1).unbind()))
        for parameter, part in zip(ctx.parameters, sums.split([p.numel() for p in ctx.parameters]), strict=True):
            part = part.view(parameter.shape)
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad.add_(part)
        return None, None


def _rows(gradient: Tensor, world: int, size: int) -> Tensor:
    """Return a full gradient as every rank's padded part, [world, size]."""
    rows = gradient.new_zeros(world * size)
    rows[: gradient.numel()] = gradient.flatten()
    return rows.view(world, size)


class _OneNode(torch.autograd.Function):
    """One node of the graph for several tensors: autograd calls its backward when all their gradients are there."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return views of the tensors."""
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Pass all gradients on."""
        return gradients


def together(tensors: list[Tensor]) -> list[Tensor]:
    """Return the same tensors, whose gradients go on only when all are there.

    fairscale gathers a unit at the gradient of each of its outputs. One that came after the first parameters were freed
    would gather those again, and nothing would free them.
    """
    return list(_OneNode.apply(*tensors)) if torch.is_grad_enabled() else tensors
