"""Sharded data parallelism: every weight lies in parts on all ranks (torch's FSDP2, `fully_shard`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from adatad.memory.arithmetic import autocast, forget_casts
from adatad.memory.weights import WeightProvider, laid_out_like, local_of
from adatad.models.backbone import VideoBackbone
from adatad.parallel.adamw_engine import AdamWEngine
from adatad.parallel.base import TORCH_WORKS_WITH, all_finite, read_together, require_names
from adatad.parallel.processes import Processes, ensure_group
from adatad.spec.schema import Spec

PRIVATE_NAMES = {
    FSDPModule: ("_set_unshard_async_op",),
    # One kernel for all tensors; other modules use such functions too.
    torch: ("_foreach_mul_", "_foreach_norm"),
}
"""Names that are used of torch and that it doesn't document, by their owner."""


class FsdpEngine(AdamWEngine):
    """An engine with one unit per backbone block, and the root: the patch embedding, side adapters and the detector.

    A unit is gathered before its forward and its backward and freed after each; the root stays gathered from its
    forward to the end of backward. Blocks under the wave are gathered by `FsdpWeights` instead of their hooks.

    Precision is the same autocast as with other engines. Weights are gathered as they are: frozen ones in the dtype
    that the memory policy gave them, trained ones in fp32, side by side in one unit. Gathering a trained block in 16
    bits would halve that traffic, but round the weights of its norms, which autocast computes in fp32: another
    training than on one process. Gradients are summed over ranks in fp32.

    With accumulation, hooks exchange gradients after the last micro-batch only. Not in mode full: whole gradients of
    all blocks would have to be kept until then. Those of blocks under the wave are exchanged at every micro-batch.
    """

    saves_shards = True

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], spec: Spec, processes: Processes):
        for owner, private in PRIVATE_NAMES.items():
            require_names("torch", TORCH_WORKS_WITH, owner.__name__, owner, private)
        names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for parameter, name in names.items()}
        shard_model(model, processes, spec.parallel.cpu_offload)
        self.model: FSDPModule = model
        self.sharded: dict[str, DTensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # The optimizer sees this rank's parts as plain tensors, in the same memory: nothing it does crosses ranks.
        local = {name: nn.Parameter(local_of(parameter)) for name, parameter in self.sharded.items()}
        groups = [{**group, "params": [local[names[p]] for p in group["params"]]} for group in groups]
        on_gpu = processes.device.type == "cuda" and not spec.parallel.cpu_offload
        self.init_optimizer(local, groups, spec, processes, on_gpu)
        self.exchange_always = spec.model.backbone.mode == "full"

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Surround a micro-batch with autocast, and let hooks exchange gradients in the backward of the last alone."""
        self.model.set_requires_gradient_sync(last or self.exchange_always)
        with autocast(self.processes.device, self.dtype):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients."""
        forget_casts(self.processes.device)
        self.scaler.scale(loss).backward()

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's parts of the gradients, by name."""
        return {name: local_of(p.grad) for name, p in self.sharded.items() if p.grad is not None}

    def clear_gradients(self) -> None:
        """Free all gradients."""
        for parameter in self.sharded.values():
            parameter.grad = None

    def update(self, max_norm: float | None, losses: Tensor | None = None) -> tuple[float, list[float]]:
        """Clip, step and clear the gradients."""
        # The optimizer steps plain parameters over the same memory: they take this rank's parts of the gradients over.
        for name, parameter in self.sharded.items():
            if parameter.grad is not None:
                self.named[name].grad = local_of(parameter.grad)
                parameter.grad = None
        gradients = [local.grad for local in self.named.values() if local.grad is not None]
        # Not finite if any value isn't.
        square = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        # As a tensor, which is read with the others. One without a scaler.
        scale = self.scaler.scale(torch.ones((), device=self.processes.device))
        scale, square, *own = read_together(scale, square, losses)
        # Squares of the parts' norms add up to that of all; the losses go along in the same collective.
        square, *sums = self.processes.sum_floats([square, *own])
        norm = math.sqrt(square) / scale
        if all_finite(norm, *sums):
            factor = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
            torch._foreach_mul_(gradients, factor / scale)
            self.optimizer.step()
        self._adjust_scale(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm, sums

    def _adjust_scale(self, norm: float) -> None:
        """Let the loss scale grow or shrink by the global norm, so on all ranks alike; a scaler left to itself would
        see this rank's parts alone."""
        if not self.scaler.is_enabled():
            return
        probe = nn.Parameter(torch.zeros((), device=self.processes.device))
        probe.grad = torch.full_like(probe, norm)
        # The scaler's only way to learn of a norm: unscale a parameter that has it for its gradient. It notes on the
        # device whether that is finite.
        self.scaler.unscale_(torch.optim.SGD([probe], lr=0.0))
        self.scaler.update()

    def gather_full(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gather tensors one by one into the first rank's host memory. All ranks call it."""
        full = {}
        # One at a time: the device never has more than one of them in full.
        for name, part in parts.items():
            parameter = self.sharded[name]
            # Shards may wait in host memory; collectives are those of the mesh's device.
            tensor = laid_out_like(parameter, part.to(parameter.device_mesh.device_type)).full_tensor()
            if self.processes.is_main:
                full[name] = tensor.to("cpu", copy=True).view(self.shapes[name])
        return full

    def shard(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of this rank's parts, where the parameters lie."""
        return {
            name: _part(tensor, self.processes).to(self.named[name].device, copy=True) for name, tensor in full.items()
        }

    def as_dtensors(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return parts as DTensors over the same memory."""
        return {name: laid_out_like(self.sharded[name], part) for name, part in parts.items()}


class FsdpWeights(WeightProvider):
    """Provider of the wave's weights: blocks are gathered while it is in them, the next one on its way meanwhile."""

    def __init__(self, blocks: nn.ModuleList):
        self.blocks = blocks

    @contextmanager
    def materialized(self, blocks: range, following: range) -> Iterator[None]:
        """Gather blocks for the context, and begin to gather those that follow; free the blocks after it."""
        # All gathers begin before the first is waited for; on every rank in the same order, as collectives must.
        for handle in [self.blocks[index].unshard(async_op=True) for index in blocks]:
            handle.wait()
        for index in following:
            self.blocks[index].unshard(async_op=True)
        try:
            yield
        finally:
            for index in blocks:
                self.blocks[index].reshard()


def shard_model(model: nn.Module, processes: Processes, cpu_offload: bool) -> None:
    """Cut all parameters of a model into one part a rank, in place, and have them gathered when they are needed."""
    ensure_group(processes)
    # FSDP takes no parameters without dimensions: they get one, of length 1, which broadcasts alike. Before anything is
    # sharded, since these are new parameters.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach().view(1), parameter.requires_grad))
    on_gpu = processes.device.type == "cuda"
    settings = {
        "mesh": init_device_mesh(processes.device.type, (processes.world,)),
        # Norms and losses need the trained weights' own precision; see FsdpEngine.
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu) if cpu_offload else OffloadPolicy(),
    }
    backbone: VideoBackbone = model.backbone
    # Blocks first: the root's unit takes what no unit has yet.
    for block in backbone.blocks:
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    for module in (model, *backbone.blocks):
        # Plain sums: the losses are parts of a sum over the global batch. A sum and a factor of 1 leave no division.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    backbone.executor = backbone.executor.with_weights(FsdpWeights(backbone.blocks))
    _prefetch_one_ahead(model, backbone)
    model.register_forward_hook(_reshard_after_inference)


def _reshard_after_inference(model: FSDPModule, _: Any, predictions: Any) -> None:
    """Free the root after a forward pass without a backward: the next one would read weights that are out of date."""
    if not torch.is_grad_enabled():
        model.reshard()


def _prefetch_one_ahead(model: FSDPModule, backbone: VideoBackbone) -> None:
    """Gather the next block's weights while a block works, if the next one's hooks will run.

    Left to itself, FSDP keeps each gather's buffer until the one after the next, and in backward fetches whatever ran
    before: blocks without a graph, or a block that must wait for a wave.
    """
    waves = [wave_pass.settings for wave_pass in backbone.executor.passes]
    in_waves = {index for settings in waves for index in range(settings.first, settings.last + 1)}
    # The side variant runs no block behind the last that feeds an adapter.
    count = max(backbone.adapter_blocks) + 1 if backbone.mode == "side" else len(backbone.blocks)
    # Blocks whose hooks run: called as modules, and not by a wave. Of these, those that have a backward.
    called = set(range(count)) - in_waves
    trained = [i for i, block in enumerate(backbone.blocks) if any(p.requires_grad for p in block.parameters())]
    differentiated = {index for index in called if trained and index >= trained[0]}
    for index, module in enumerate([*backbone.blocks, model]):
        # Gathers in streams of their own, whose end is waited for: without it gloo's would block here.
        module._set_unshard_async_op(True)
        if module is not model and index + 1 in called:
            module.set_modules_to_forward_prefetch([backbone.blocks[index + 1]])
        # A module that fetches itself, being whole already, fetches nothing.
        before = backbone.blocks[index - 1] if index - 1 in differentiated else module
        module.set_modules_to_backward_prefetch([before])


def _part(tensor: Tensor, processes: Processes) -> Tensor:
    """Return this rank's part as `fully_shard` cuts dimension 0: equal lengths, the last ones shorter or empty."""
    tensor = tensor.view(1) if tensor.ndim == 0 else tensor
    chunks = tensor.chunk(processes.world)
    return chunks[processes.rank] if processes.rank < len(chunks) else tensor[:0]
