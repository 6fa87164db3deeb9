"""The pretended GPU in the place of torch.cuda: training on it finds host waits, races, and mixed devices.

Tensors "on" it are meta tensors whose `device` is cuda:0; everything on the CPU is real. No GPU is needed, nor a CUDA
build of torch (docs/pretended-gpu.md).

    with pretended_gpu() as gpu:
        run = resolve_model(spec, Processes(0, 1, GPU), 20)
        parts = build_train_state(run, Processes(0, 1, GPU), build_model(spec.model, 20))
        train_step(parts, [batch], 1)          # makes the optimizer's state and pinned memory
        gpu.counts.clear()
        train_step(parts, [batch], 2)
    assert gpu.counts.waits.total() <= 2 and not gpu.counts.races
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import _lru_cache_wrapper, partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from adatad.dev.pretended.operators import GPU, OnGpu, PretendedGpu, activated
from adatad.dev.pretended.streams import PretendedEvent, PretendedStream, on_timeline
from adatad.memory import arithmetic
from adatad.memory.meta import gpu_like_meta

MEMORY_BYTES = 2**37
"""Memory of the pretended device."""


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Have torch find a GPU while the context lasts. None of its tensors may be used afterwards.

    Raises RuntimeError inside of another one.
    """
    gpu = PretendedGpu()
    with activated(gpu), _as_if_cuda(gpu), gpu:
        yield gpu


@contextmanager
def _as_if_cuda(gpu: PretendedGpu) -> Iterator[None]:
    """Replace torch.cuda, torch.accelerator, pinned memory, autocast and attention's kernels.

    Private names of torch are replaced too, since its C++ can't run on tensors without a device. All are restored when
    the context is left, also by an error.
    """
    with ExitStack() as stack:
        # First in, last out: after all patches are undone.
        stack.callback(_forget_tables)
        cuda = _cuda(gpu)
        accelerator = {
            "is_available": lambda: True,
            "current_accelerator": lambda check_available=False: GPU,
            "current_device_index": cuda["current_device"],
            **{name: cuda[name] for name in ("device_count", "current_stream", "synchronize")},
        }
        for module, stubs in ((torch.cuda, cuda), (torch.accelerator, accelerator)):
            for name, stub in stubs.items():
                stack.enter_context(patch.object(module, name, stub))
        stack.enter_context(
            patch.object(Tensor, "pin_memory", lambda x, device=None: x if gpu.is_pinned(x) else gpu.pin(x.clone()))
        )
        stack.enter_context(patch.object(Tensor, "is_pinned", lambda x, device=None: gpu.is_pinned(x)))
        # Sharded weights are freed by resizing their storage to 0.
        resize = torch.UntypedStorage.resize_
        stack.enter_context(
            patch.object(torch.UntypedStorage, "resize_", lambda x, size: (gpu.timeline.resize(x), resize(x, size))[1])
        )
        # Optimizers and norms take one kernel for many tensors if they know the tensors' type and device.
        for module in map(import_module, ("torch.utils._foreach_utils", "torch.optim.optimizer")):
            types = [*module._foreach_supported_types, OnGpu]
            stack.enter_context(patch.object(module, "_foreach_supported_types", types))
        # The C++ behind foreach operators sees the meta device; Python asks for tensors on a GPU.
        group = torch._C._group_tensors_by_device_and_dtype
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", partial(_grouped, group)))
        stack.enter_context(patch.object(torch, "autocast", _autocast_for(torch.autocast)))
        # Read when torch.amp.GradScaler is built.
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        # Without compilation: no compiler knows these tensors.
        stack.enter_context(patch("adatad.memory.compiled.compiled", lambda function: function))
        stack.enter_context(gpu_like_meta(lambda x: isinstance(x, OnGpu)))
        # torch.tensor(..., device="cuda") makes a tensor on the CPU and moves it, where the mode sees it.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # Module.to() swaps the content of parameters instead of replacing them, as it does for a GPU.
        stack.callback(
            torch.__future__.set_swap_module_params_on_conversion,
            torch.__future__.get_swap_module_params_on_conversion(),
        )
        torch.__future__.set_swap_module_params_on_conversion(True)
        yield


def _forget_tables() -> None:
    """Clear the caches of the package's functions: tables on the pretended device must not outlive it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("adatad."):
            for value in vars(module).values():
                if isinstance(value, _lru_cache_wrapper):
                    value.cache_clear()


def _cuda(gpu: PretendedGpu) -> dict[str, Any]:
    """Return the replacements of names of torch.cuda."""
    timeline = gpu.timeline
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        # Without a CUDA build, initialization raises.
        "is_bf16_supported": lambda *_, **__: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "Stream": on_timeline(PretendedStream, timeline),
        "Event": on_timeline(PretendedEvent, timeline),
        "stream": timeline.on,
        "current_stream": lambda device=None: timeline.stream,
        "default_stream": lambda device=None: timeline.current[0],
        "synchronize": lambda device=None: timeline.wait(timeline.everything, "synchronize"),
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "pretended GPU",
        # Of an H100, so that no code path for older cards is taken.
        "get_device_capability": lambda device=None: (9, 0),
        # Meta tensors take no memory: there is nothing to measure.
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (MEMORY_BYTES, MEMORY_BYTES),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
    }


def _grouped(group: Callable, *args: Any) -> dict[tuple[torch.device, Any], Any]:
    """Group tensors by device and dtype, as torch does; all meta tensors here are the pretended device's."""
    found = group(*args)
    return {(GPU if device.type == "meta" else device, dtype): tensors for (device, dtype), tensors in found.items()}


def _autocast_for(real: Any) -> Any:
    """Return torch.autocast, but for "cuda" with the casts that the planner counts with."""

    def autocast(
        device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **options: Any
    ) -> AbstractContextManager:
        """Return an autocast region; of "cuda", the planner's."""
        if device_type != "cuda":
            return real(device_type, dtype, enabled, **options)
        return arithmetic.autocast(torch.device("meta"), dtype or torch.float16 if enabled else torch.float32)

    return autocast
