"""Counts the bytes of every live tensor storage while code runs: in all, by label, and where the peak was.

On meta tensors no memory is used and no GPU is needed; on CPU tensors the count can be held against resident memory.
Of scratch inside kernels only attention's is counted, on meta tensors, as a GPU's allocator counts it. Not counted: the
CUDA context, workspaces of libraries, and rounding and gaps of the allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adatad.memory.meta import MetaResults
from adatad.memory.scopes import current_scope, scope_path

FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def flash_scratch_bytes(query: Tensor) -> int:
    """Return the bytes that flash attention's backward sums the queries' gradient in: float32, lengths rounded up to
    128 and head widths to 32, or 64 above 128.

    query: [batch, heads, length, width]. Source: `dq_accum` of mha_bwd in torch's
    aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp. Deterministic algorithms take it several times
    where batch x heads are fewer than the GPU's multiprocessors.
    """
    batch, heads, length, width = query.shape
    multiple = 32 if width <= 128 else 64
    return 4 * batch * heads * _rounded_up(length, 128) * _rounded_up(width, multiple)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Peak:
    """The largest number of bytes that were alive at once, what they were, and what was being done."""

    bytes: int
    by_label: dict[str, int]
    place: str


class Meter(TorchDispatchMode):
    """Counts storages on one type of device that are made, or registered, while it is active."""

    def __init__(self, device_type: str):
        super().__init__()
        self.device_type = device_type
        # Results of meta kernels are remembered; on a CPU operators run as they are.
        self._run = MetaResults() if device_type == "meta" else _run
        self.live: dict[int, tuple[int, str]] = {}
        self.by_label: dict[str, int] = {}
        self.current_bytes = 0
        self.reset_peak()

    def reset_peak(self) -> None:
        """Forget the peak so far; the next one counts from the bytes that are there now."""
        self._peak_bytes, self._peak_labels, self._peak_place = self.current_bytes, dict(self.by_label), scope_path()

    @property
    def peak(self) -> Peak:
        """The largest sum so far, and what it was made of."""
        by_label = {name: size for name, size in self._peak_labels.items() if size}
        return Peak(self._peak_bytes, dict(sorted(by_label.items(), key=lambda item: -item[1])), self._peak_place)

    def register(self, tensors: Iterable[Tensor], name: str) -> None:
        """Count tensors under a label, whatever they were counted under before. A view counts as its whole storage."""
        for tensor in tensors:
            # Storages, not tensors: views of one memory count once.
            key = id(tensor.untyped_storage())
            if key in self.live:
                size, old = self.live[key]
                self.live[key] = size, name
                self.by_label[old] -= size
                self.by_label[name] = self.by_label.get(name, 0) + size
            else:
                self._count(tensor, name)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch's own switch: nothing is compiled here, and its guard costs a sixth of the time, at every operator.
        return False

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = self._run(operator, args, kwargs or {})
        if isinstance(result, Tensor):
            self._count(result, current_scope())
        elif isinstance(result, (tuple, list)):
            for part in result:
                if isinstance(part, Tensor):
                    self._count(part, current_scope())
        # A CPU runs another kernel, so there it isn't counted.
        if operator is FLASH_BACKWARD and self.device_type == "meta":
            # Taken when the results are there.
            self._count_scratch(flash_scratch_bytes(args[1]))
        return result

    def _count(self, tensor: Tensor, name: str) -> None:
        # What the host has is counted by its own stores, against its own bound.
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.live:
            return
        size = storage.nbytes()
        self.live[key] = size, name
        self.by_label[name] = self.by_label.get(name, 0) + size
        self.current_bytes += size
        # When the last tensor on it has gone, whoever held it. Not at exit, when nobody reads the count any more.
        weakref.finalize(storage, self._forget, key).atexit = False
        if self.current_bytes > self._peak_bytes:
            self.reset_peak()

    def _count_scratch(self, size: int) -> None:
        """Count memory that an operator takes and gives back while it runs, beside its results."""
        name = current_scope()
        self.by_label[name] = self.by_label.get(name, 0) + size
        self.current_bytes += size
        if self.current_bytes > self._peak_bytes:
            self.reset_peak()
        self.by_label[name] -= size
        self.current_bytes -= size

    def _forget(self, key: int) -> None:
        size, name = self.live.pop(key)
        self.by_label[name] -= size
        self.current_bytes -= size


def _run(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    return operator(*args, **kwargs)
