"""The device of a process: its GPU, or the CPU where there is none, or none is wanted. Never the CPU because a GPU that
is there doesn't work: that would train for weeks what takes an hour."""

from __future__ import annotations

import os

import torch

from adatad.errors import UserError
from adatad.memory.arithmetic import has_bf16
from adatad.parallel.visible_gpus import BF16_CAPABILITY, asks_for_gpus, device_nodes, hides_all, names_mig
from adatad.spec.schema import Spec

MAX_ERROR_CHARACTERS = 300
"""Length at which messages cut an error of CUDA's, in characters."""
ON_CPU = "--device cpu runs on the CPU"


class DeviceError(UserError):
    """A GPU that is there and can't be used, or can't do what the spec wants; the message says why and what to do."""


def device_of(local_rank: int) -> torch.device:
    """Return the device of a rank of this machine.

    Raises DeviceError if there are fewer GPUs than ranks, or one that is there can't be used.
    """
    # `is_available` is False for every reason, a driver that is too old among them: look further before the CPU.
    if not torch.cuda.is_available():
        refuse_broken_gpus()
        return torch.device("cpu")
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if local_rank >= count:
        mig = "; of the MIG instances that CUDA_VISIBLE_DEVICES names CUDA shows a process the first one alone"
        raise DeviceError(
            f"LOCAL_RANK is {local_rank}, and this process sees {count} GPU{'s' if count > 1 else ''}: start as many "
            "processes as there are GPUs (--nproc-per-node), or look at CUDA_VISIBLE_DEVICES"
            + (mig if names_mig(visible) else "")
        )
    device = torch.device("cuda", local_rank)
    # NCCL and torch's streams take the current device.
    try:
        torch.cuda.set_device(device)
    except RuntimeError as error:
        raise DeviceError(f"GPU {local_rank} can't be used: {first_line(error)}; {ON_CPU}") from error
    return device


def refuse_broken_gpus() -> None:
    """Raise DeviceError if torch has no GPU to offer where there is one. An empty CUDA_VISIBLE_DEVICES, which --device
    cpu sets, wants none."""
    visible, nodes = os.environ.get("CUDA_VISIBLE_DEVICES"), device_nodes()
    if hides_all(visible):
        return
    if nodes:
        there = f"{nodes[0]} is there"
    elif torch.version.cuda and asks_for_gpus(os.environ):
        there = f"CUDA_VISIBLE_DEVICES={visible} asks for GPUs"
    else:
        return
    raise DeviceError(
        f"{there}, and torch {torch.__version__} can't use it: {cuda_failure()} (adatad doctor says more); {ON_CPU}"
    )


def cuda_failure() -> str | None:
    """Return why torch can't use a GPU, in a line; None if it can."""
    try:
        torch.cuda.init()
    except Exception as error:
        # A build for CPUs raises AssertionError, CUDA RuntimeError.
        return first_line(error)
    return None if torch.cuda.device_count() else "no CUDA GPUs are available"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, cut."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_ERROR_CHARACTERS]


def check_card(spec: Spec, device: torch.device) -> None:
    """Raise DeviceError if a GPU can't compute in what the spec asks for."""
    if device.type != "cuda":
        return
    if spec.train.precision == "bf16" and not has_bf16():
        raise DeviceError(
            f"train.precision: {torch.cuda.get_device_name(device)} doesn't compute in bf16, which begins with compute "
            f"capability {'.'.join(map(str, BF16_CAPABILITY))}; set it to fp16, fp32 or auto"
        )
