"""fairscale's FullyShardedDataParallel around one part of the model, and what of it the wave needs by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import FullyShardedDataParallel, TrainingState
from fairscale.nn.data_parallel.fully_sharded_data_parallel import free_storage_
from torch import Tensor, nn


class Unit(FullyShardedDataParallel):
    """A part of the model whose parameters are gathered and let go together.

    It differs from fairscale's wrapper in two ways. Frozen weights may have another dtype than fp32: they are sharded
    and gathered in it. And they are let go as soon as the gradient of the unit's input is there: fairscale itself lets
    go of a parameter when its gradient is there, and so of frozen ones at the end of the whole backward pass only.
    """

    def __init__(self, module: nn.Module, **options: Any):
        own = [p for p in module.parameters() if not hasattr(p, "_is_sharded")]
        dtypes = [p.dtype for p in own]
        for parameter in own:
            # A copy: fairscale frees what it shards, which memory that NumPy once looked at doesn't allow.
            parameter.data = parameter.data.to(torch.float32, copy=True)
        super().__init__(module, flatten_parameters=False, disable_reshard_on_root=False, **options)
        for parameter, dtype in zip(own, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
        self.frozen = [p for p in self.params if not p.requires_grad]
        self.register_forward_pre_hook(_let_go_when_input_has_its_gradient)

    def _init_param_attributes(self, p: nn.Parameter) -> None:
        fresh = not hasattr(p, "_fp32_shard")
        super()._init_param_attributes(p)
        if fresh and p._is_sharded and p.dtype != self.compute_dtype:
            p._full_param_padded = torch.empty(p.numel() * self.world_size, device=p.device, dtype=p.dtype)
            free_storage_(p._full_param_padded)

    def _rebuild_full_params(self, force_full_precision: bool = False) -> list[tuple[Tensor, bool]] | None:
        if self.world_size > 1:
            return super()._rebuild_full_params(force_full_precision)
        # Alone every rank has all, and fairscale stumbles over parameters without dimensions.
        self.has_full_params = True
        return [(parameter.data, False) for parameter in self.params]

    def let_go(self, parameters: list[nn.Parameter] | None = None) -> None:
        """Only this rank's part of these (of all) parameters stays."""
        self._free_full_params(parameters)
        self._use_fp32_param_shard(parameters)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the parameters are whole; for code that reads them without calling the unit."""
        self._lazy_init()
        self._rebuild_full_params()
        try:
            yield
        finally:
            self.let_go()

    def part(self, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
        """This rank's part of a whole tensor, as of that parameter: a padded 1-D piece; all of it on one rank."""
        return self._get_shard(tensor)[0] if parameter._is_sharded else tensor

    def gradients_are_there(self) -> None:
        """Let fairscale's check at the end of backward find what it expects of a unit that wasn't called itself."""
        # Of a unit in which nothing learns it expects none.
        if any(parameter.requires_grad for parameter in self.params):
            self.training_state = TrainingState.BACKWARD_POST


def _let_go_when_input_has_its_gradient(unit: Unit, inputs: tuple[Any, ...]) -> None:
    first = inputs[0]
    if unit.frozen and isinstance(first, Tensor) and first.requires_grad and torch.is_grad_enabled():
        first.register_hook(lambda _: unit.let_go(unit.frozen))


def whole_tensors(parts: list[Tensor], like: list[nn.Parameter]) -> list[Tensor]:
    """Tensors of the layout of these parameters, gathered from all ranks with one collective. All ranks call it."""
    flat = torch.cat([part.detach().flatten() for part in parts])
    rows = flat.new_empty(dist.get_world_size(), len(flat))
    dist.all_gather(list(rows.unbind()), flat)
    pieces = rows.split([part.numel() for part in parts], dim=1)
    return [_cut(piece, p._orig_size) for piece, p in zip(pieces, like, strict=True)]


def _cut(piece: Tensor, size: torch.Size) -> Tensor:
    return torch.cat(list(piece))[: size.numel()].view(size)


class GatheredWeights(torch.autograd.Function):
    """Sharded trained parameters as whole tensors. Backward adds to the parameters' gradients this rank's parts of the
    sums over all ranks.

    The parameters aren't inputs that autograd sees: it would remember the shape that they have now, and a unit gives
    them another while it is whole. `anchor`, any tensor that requires a gradient, makes autograd come by.
    """

    @staticmethod
    def forward(ctx, anchor: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        ctx.parameters = parameters
        return tuple(whole_tensors([p.data for p in parameters], parameters))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        world = dist.get_world_size()
        rows = [_rows(g, world, p.numel()) for g, p in zip(gradients, ctx.parameters, strict=True)]
        sums = rows[0].new_empty(sum(row.shape[1] for row in rows))
        dist.reduce_scatter(sums, list(torch.cat(rows, dim=1).unbind()))
        for parameter, part in zip(ctx.parameters, sums.split([p.numel() for p in ctx.parameters]), strict=True):
            part = part.view(parameter.shape)
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad.add_(part)
        return None, None


def _rows(gradient: Tensor, world: int, size: int) -> Tensor:
    """A whole gradient as every rank's padded part, [world, size]."""
    rows = gradient.new_zeros(world * size)
    rows[: gradient.numel()] = gradient.flatten()
    return rows.view(world, size)


class _OneNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def together(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors, whose gradients go on only when all are there.

    fairscale gathers a unit at the gradient of each of its outputs. One that came after the first parameters were let
    go would gather those again, for good.
    """
    return list(_OneNode.apply(*tensors)) if torch.is_grad_enabled() else tensors
