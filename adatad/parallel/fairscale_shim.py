"""What fairscale 0.4.13, which is no longer developed, takes for granted and torch 2.13 or a CPU doesn't have."""

from __future__ import annotations

import logging
import warnings
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch

with warnings.catch_warnings():
    # Its OffloadModel, which nothing here uses, is decorated with a name that torch has moved.
    warnings.simplefilter("ignore", FutureWarning)
    from fairscale.nn.checkpoint import checkpoint_activations
    from fairscale.nn.data_parallel import fully_sharded_data_parallel

from adatad.memory.arithmetic import autocast


class _CpuForCuda(ModuleType):
    """torch, with torch.cpu in the place of torch.cuda."""

    cuda = torch.cpu

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def fit_fairscale(device: torch.device, dtype: torch.dtype) -> None:
    """Make fairscale run on `device` with this torch. dtype: of autocast; float32 means none."""
    # Collectives and storages under names that torch will drop some day: fairscale names them at every gather.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")
    warnings.filterwarnings("ignore", r"`torch\.distributed\._(all_gather|reduce_scatter)_base`")
    # Its checkpoint of the first block says that pixels have no gradient.
    warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
    # It logs through functions that set the root logger up, which would print a run's lines a second time.
    fully_sharded_data_parallel.logging = logging.getLogger("fairscale")
    # When its checkpoints run a block again they take CUDA's fp16 for autocast, whatever the dtype of the run is.
    checkpoint_activations.autocast = lambda _: _autocast(device, dtype)
    if device.type == "cuda":
        return
    # It orders gathers by CUDA streams and has none on a CPU. torch.cpu has the same functions, which do nothing.
    fully_sharded_data_parallel.torch = _CpuForCuda("torch")
    # It marks tensors that another stream still reads; a CPU has no other stream, and its tensors no such method.
    torch.Tensor.record_stream = lambda tensor, stream: None


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    return autocast(device, dtype)
