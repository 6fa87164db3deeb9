"""What a run fixes of torch's arithmetic: kernels that sum in one order, and products of float32 in float32.

docs/decisions/deterministic-kernels.md says which kernels that are, with torch's source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

from adatad.errors import UserError
from adatad.spec.schema import TrainSpec
from adatad.training.resolve import precision_on

CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What torch asks for before a deterministic product on a GPU. It looks once, at a process's first such product."""


def is_deterministic(train: TrainSpec, device: torch.device) -> bool:
    """Whether a run's kernels sum in one order: what `train.deterministic` says; where it's null, on CPUs alone."""
    return device.type == "cpu" if train.deterministic is None else train.deterministic


@contextmanager
def run_arithmetic(train: TrainSpec, device: torch.device) -> Iterator[None]:
    """Around all of a run, before its first product on a GPU. Raises UserError where a kernel that sums in one order
    is wanted and torch has none."""
    with ExitStack() as stack:
        if device.type == "cuda" and (train.deterministic or train.recheck_every):
            variables = {name: value for name, value in CUBLAS_WORKSPACE.items() if name not in os.environ}
            stack.enter_context(patch.dict(os.environ, variables))
        if precision_on(device, train.precision) == "fp32":
            stack.enter_context(full_float32())
        if is_deterministic(train, device):
            stack.enter_context(deterministic_kernels("train.deterministic"))
        yield


@contextmanager
def deterministic_kernels(key: str) -> Iterator[None]:
    """Kernels that sum in one order alone. Raises UserError, which names the spec's key, where torch has none."""
    settings = torch.utils.deterministic
    before, fills = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    # With `warn_only` flash attention would go on adding in any order.
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written, and filling it takes a launch for each tensor.
    settings.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{key} can't be used on this device: {line}; leave it out") from error
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and products of float32 without TF32, which keeps 10 of the 23 bits of a factor's fraction."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
