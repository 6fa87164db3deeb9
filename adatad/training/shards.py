"""Checkpoints of which every rank writes its own part, through torch.distributed.checkpoint.

For full fine-tuning under an engine that shards: no rank ever holds the trained tensors whole. The parts are
safetensors files, each with its place in the whole in its header (nothing is pickled). They are read back whole, or cut
anew for any number of ranks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

FOLDER = "shards"
"""Of a checkpoint; it takes the place of the files that hold whole tensors."""
SHAPES = "shapes.json"
"""Beside the parts: the tensors' own shapes, since shards have a dimension where a number has none."""


def start_saving(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> Future:
    """Copy this rank's parts of DTensors to the host, then write them in the background. All ranks call it, with the
    same names; `group` is used for nothing else."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        return dcp.async_save(tensors, storage_writer=writer, process_group=group)


def describe(folder: Path) -> dict[str, Tensor]:
    """Meta tensors of everything in a folder."""
    shapes = json.loads((folder / SHAPES).read_text())
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {n: torch.empty(shapes[n], dtype=d.properties.dtype, device="meta") for n, d in stored.items()}


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole, on the host."""
    described = describe(folder)
    tensors = {name: torch.empty(_sharded_shape(t), dtype=t.dtype) for name, t in described.items()}
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name: tensor.view(described[name].shape) for name, tensor in tensors.items()}


def read_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill this rank's parts of DTensors, however many ranks wrote the folder. All ranks call it."""
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def _sharded_shape(tensor: Tensor) -> torch.Size:
    return tensor.shape or torch.Size([1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about its own older names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
