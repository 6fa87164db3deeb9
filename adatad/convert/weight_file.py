"""Weight files of any project as tensors by name: safetensors, or what torch.save wrote, without running its code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adatad.errors import UserError

CONTAINERS = ("state_dict", "model", "module", "model_state", "model_state_dict")
"""Keys under which checkpoints keep the parameters, beside the optimizer and the rest."""
AVERAGES = "state_dict_ema"
"""OpenTAD's key of the moving average of everything."""
PLAIN_OBJECTS = [argparse.Namespace, np.dtype, np._core.multiarray.scalar, np.dtypes.Float64DType, np.dtypes.Int64DType]
"""Objects without effects that published checkpoints hold beside tensors: the arguments of the training, numbers."""


class WeightsError(UserError):
    """A weight file that doesn't fit; the message names the file and what differs."""


class WeightFile(NamedTuple):
    """tensors: by the name that they have in the file, without `module.`; averaged: they are a moving average."""

    tensors: dict[str, Tensor]
    averaged: bool


def read_weight_file(path: str | Path, averages: bool = True) -> WeightFile:
    """All tensors of a weight file or checkpoint, on the CPU and, where the file allows it, not read before their use.

    averages: take OpenTAD's moving average where there is one. Raises WeightsError for what is neither safetensors nor
    a checkpoint of plain tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return WeightFile(load_file(path), averaged=False)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: not a readable safetensors file: {error}") from error
    content = _unpickled(path)
    averaged = averages and isinstance(content, Mapping) and bool(content.get(AVERAGES))
    tensors = _parameters(content[AVERAGES] if averaged else content)
    if not tensors:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"{path}: no parameters found: expected a state dict, alone or under {CONTAINERS}; got {held}"
        )
    return WeightFile({name.removeprefix("module."): tensor for name, tensor in tensors.items()}, averaged)


def _parameters(content: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint, itself or under one of `CONTAINERS`, at any depth; empty if there is none."""
    if not isinstance(content, Mapping):
        return {}
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping) and (found := _parameters(content[key])):
            return found
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _unpickled(path: Path) -> Any:
    """What torch.save wrote, weights only: a file that would run code is refused."""
    try:
        with torch.serialization.safe_globals(PLAIN_OBJECTS):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                # Files of before torch 1.6 can't be mapped.
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "it isn't torch.save's")
        raise WeightsError(
            f"{path}: holds more than tensors and numbers, and loading it could run code ({reason[:160]}); if you "
            "trust it, load it once with torch.load and save its state dict alone"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: not a readable weight file of torch.save's: {first[:200]}") from error
