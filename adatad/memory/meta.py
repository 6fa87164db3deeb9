"""Meta tensors that behave as tensors of a GPU would: its attention kernels, its autocast, and numbers for the host.

Nothing has a value on the meta device, but every tensor has a size and a lifetime, which is all that a count of memory
needs. Without this, attention would be counted by its naive formula, and autocast would do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.memory.arithmetic import meta_autocast

# Only those that the model uses: torch's autocast has longer lists.
LOW = ("linear", "conv1d", "conv3d")
"""Functions of torch.nn.functional that autocast computes in its own dtype."""
EXACT = ("layer_norm", "binary_cross_entropy_with_logits")
"""Functions that autocast computes in float32."""


IsOfGpu = Callable[[Tensor], bool]


def _is_meta(tensor: Tensor) -> bool:
    return tensor.is_meta


@contextmanager
def gpu_like_meta(is_of_gpu: IsOfGpu = _is_meta) -> Iterator[None]:
    """While active, meta tensors take the operators that CUDA tensors would. A torch function mode would be the usual
    way, but it is off during backward, where policies run blocks again.

    is_of_gpu: which tensors stand for a GPU's.
    """
    with ExitStack() as stack:
        # In F itself: modules look the functions up there at each call, also where blocks run again in backward.
        for name in LOW + EXACT:
            run = partial(_under_autocast, is_of_gpu, getattr(F, name), name in LOW)
            stack.enter_context(patch.object(F, name, run))
        naive = F.scaled_dot_product_attention
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", partial(_attention, is_of_gpu, naive)))
        stack.enter_context(patch.object(F, "rms_norm", partial(_rms_norm, is_of_gpu, F.rms_norm)))
        # The host reads a few numbers in a step (norms, losses); ones are as good as any, and finite.
        numbers = Tensor.tolist
        stack.enter_context(
            patch.object(Tensor, "tolist", lambda x: [1.0] * len(x) if x.is_meta and x.dim() else numbers(x))
        )
        yield


def _under_autocast(is_of_gpu: IsOfGpu, function: Callable, low: bool, *args: Any, **kwargs: Any) -> Any:
    # Looked up at each call: regions open and close inside of this context.
    region = meta_autocast()
    if region.dtype is not None:
        cast = partial(_cast, is_of_gpu, region.dtype if low else torch.float32, region.casts)
        args = tuple(map(cast, args))
        kwargs = {name: cast(value) for name, value in kwargs.items()}
    return function(*args, **kwargs)


def _cast(is_of_gpu: IsOfGpu, dtype: torch.dtype, casts: dict[int, Tensor], value: Any) -> Any:
    """Cast as autocast does: casts of trained weights stay until the region ends, others are made at every use."""
    if not isinstance(value, Tensor) or not is_of_gpu(value) or not value.is_floating_point() or value.dtype == dtype:
        return value
    if not (value.is_leaf and value.requires_grad):
        return value.to(dtype)
    # By identity: a weight that is used twice is cast once, as autocast's cache has it.
    if id(value) not in casts:
        casts[id(value)] = value.to(dtype)
    return casts[id(value)]


def _attention(
    is_of_gpu: IsOfGpu, naive: Callable, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Run flash attention in 16 bits without a mask, else the memory-efficient kernel."""
    if not is_of_gpu(q):
        return naive(q, k, v, attn_mask=attn_mask)
    dtype = meta_autocast().dtype or q.dtype
    # As autocast casts the arguments of attention.
    q, k, v = (tensor.to(dtype) for tensor in (q, k, v))
    if attn_mask is None and q.dim() == 4 and dtype in (torch.bfloat16, torch.float16):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)[0]
    if q.dim() != 4:
        # The kernels take [batch, heads, length, width] alone.
        return naive(q, k, v, attn_mask=None if attn_mask is None else attn_mask.to(dtype))
    if attn_mask is not None:
        # The kernel wants the mask in full shape; expanded, it takes no memory.
        attn_mask = attn_mask.to(dtype).expand(*q.shape[:-1], k.shape[-2])
    # With it the kernel also returns what backward needs, which counts.
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v))
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, needs_gradient)[0]


def _rms_norm(
    is_of_gpu: IsOfGpu, naive: Callable, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float
) -> Tensor:
    """Run the fused kernel, which keeps its input and a number for each row."""
    return _FusedRMSNorm.apply(x, weight) if is_of_gpu(x) else naive(x, shape, weight, eps)


class _FusedRMSNorm(torch.autograd.Function):
    """A norm that takes the memory of CUDA's kernel. On other devices PyTorch has a sum of small operators alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        """Return the normed rows."""
        ctx.has_weight = weight is not None
        rows = x.new_empty(*x.shape[:-1], 1, dtype=torch.promote_types(x.dtype, torch.float32))
        ctx.save_for_backward(x, rows, *((weight,) if ctx.has_weight else ()))
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of those that want one."""
        x, _, *weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None,
            torch.empty_like(weight[0]) if weight and wanted[1] else None,
        )


class MetaResults:
    """Runs operators on meta tensors, and remembers what shapes come of what shapes.

    Most meta kernels are Python and take 100 us; a step of a large model calls the same few a million times.
    """

    _known: ClassVar[dict[tuple, Any]] = {}
    """Results by operator and arguments, of the whole process: they depend on nothing else."""

    def __call__(self, operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        # The most frequent ones, and nothing to do: the result is the argument.
        if operator in IN_PLACE and args[0].is_meta:
            return args[0]
        # Others may do anything with their arguments.
        if operator.namespace != "aten" or operator._schema.is_mutable:
            return operator(*args, **kwargs)
        try:
            key = operator, _described(args), _described(tuple(kwargs.items()))
            known = self._known.get(key)
        except TypeError:
            return operator(*args, **kwargs)
        if known is not None and known is not ALIAS:
            return _made(known)
        result = operator(*args, **kwargs)
        if known is None:
            # A view must be made of its base each time: a remembered one would count as memory of its own.
            anew = _shares(result, args) or not all(tensor.is_meta for tensor in _tensors(result))
            self._known[key] = ALIAS if anew else _described(result)
        return result


ALIAS = object()
"""Mark of a result that is a view of what came in, or has a value: it must be made anew each time."""

IN_PLACE = {
    getattr(getattr(torch.ops.aten, name), overload)
    for name, overloads in {
        "add_": ("Tensor", "Scalar"), "mul_": ("Tensor", "Scalar"), "div_": ("Tensor", "Scalar"),
        "addcmul_": ("default",), "addcdiv_": ("default",), "copy_": ("default",), "zero_": ("default",),
        "lerp_": ("Scalar",), "sqrt_": ("default",), "fill_": ("Scalar",),
    }.items()
    for overload in overloads
}  # fmt: skip
"""Operators that change values, which nothing has here, and nothing else."""


class _Described(tuple):
    """A meta tensor's shape, strides, dtype."""


def _described(value: Any) -> Any:
    """Return a hashable description of operator arguments or results. Raises TypeError for what can't be remembered."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError("a tensor with values")
        # Strides too: a kernel's result may be laid out as its input is.
        return _Described((value.shape, value.stride(), value.dtype))
    if isinstance(value, (tuple, list)):
        return tuple(_described(part) for part in value)
    return value


def _made(description: Any) -> Any:
    if isinstance(description, _Described):
        shape, strides, dtype = description
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    if isinstance(description, tuple):
        return tuple(_made(part) for part in description)
    return description


def _shares(result: Any, args: Any) -> bool:
    """Return whether a result lies in the memory of an argument."""
    storages = {id(tensor.untyped_storage()) for tensor in _tensors(args)}
    return any(id(tensor.untyped_storage()) in storages for tensor in _tensors(result))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
