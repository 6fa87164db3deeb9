"""Weight files of any project as tensors by name: safetensors, or what torch.save wrote, read without running its code.

Files are checked here: that it is a weight file at all (and not a web page or a Git LFS pointer in its place), that
every tensor is a plain one whose numbers the file really holds, and, for tensors that are used, that they are finite
floats (`check_values`).
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adatad.errors import UserError
from adatad.files import FileError, atomic_write, listed, parse_json, read_start, reason, shown, what_it_is

CONTAINERS = (
    "state_dict", "model", "module", "model_state", "model_state_dict", "ema_encoder", "target_encoder", "encoder",
)  # fmt: skip
"""Keys under which checkpoints keep the parameters, beside the optimizer and the rest. The last three are V-JEPA's: an
average is what features come from, which only its distilled models call so, whose target is their teacher."""
AVERAGES = "state_dict_ema"
"""OpenTAD's key of the moving average of everything."""
META, OWN_META = "meta", "adatad"
"""Keys under which a checkpoint of OpenTAD's form that was written here describes itself; OpenTAD ignores both."""
# torch.load(weights_only=True) refuses these unless they are allowed. `np._core` is numpy's private home of the
# function that unpickles a scalar; torch documents no public name for it.
PLAIN_OBJECTS = [argparse.Namespace, np.dtype, np._core.multiarray.scalar, np.dtypes.Float64DType, np.dtypes.Int64DType]
"""Objects without side effects that published checkpoints hold beside tensors: training arguments, numbers."""
# Each has been mistaken for weights; torch's own error on them speaks of pickle.
OTHER_KINDS = {
    b"\x1f\x8b": "packed by gzip: unpack it with gunzip",
    b"BZh": "packed by bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "packed by xz: unpack it with unxz",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"\x89HDF": "an HDF5 file (Keras?): its project has to convert it to torch or safetensors",
    b"\x93NUMPY": "an array of numpy: save a state dict with torch.save",
    b"%PDF": "a PDF document: fetch the weights themselves",
    b"GGUF": "a GGUF file of a language model: it is no video transformer's",
}
"""First bytes of files that are mistaken for weights, and what to do with them."""
MAX_LISTED = 8
"""Names that a message lists; the rest is counted."""
MAX_NAME_CHARACTERS = 160
"""Longest name or reason in a message."""


class WeightsError(UserError):
    """Raised for a weight file that can't be used; the message names the file and what differs."""


class WeightFile(NamedTuple):
    """Content of a weight file. tensors: by their names in the file, without `module.`; averaged: they are a moving
    average; header: the file's metadata as text (safetensors' metadata, or what is added here to a checkpoint of
    OpenTAD)."""

    tensors: dict[str, Tensor]
    averaged: bool
    header: dict[str, str] = {}  # noqa: RUF012, a NamedTuple's default


def read_weight_file(path: str | Path, averages: bool = True) -> WeightFile:
    """Read all tensors of a weight file or checkpoint, on the CPU; where the file allows it, lazily.

    averages: take OpenTAD's moving average where there is one. Raises WeightsError for what is neither safetensors nor
    a checkpoint of plain tensors.
    """
    path = Path(path)
    start = _start(path)
    if path.suffix == ".safetensors" or _begins_as_safetensors(start):
        tensors, header = read_safetensors(path)
        return WeightFile(tensors, averaged=False, header=header)
    content = _unpickled(path, start)
    averaged = averages and isinstance(content, Mapping) and bool(content.get(AVERAGES))
    found = _parameters(content[AVERAGES] if averaged else content)
    if not found:
        held = (
            ", ".join(map(brief, list(content)[:MAX_LISTED]))
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise WeightsError(
            f"{path}: no parameters found: expected a state dict, alone or under {CONTAINERS}; got {held or 'nothing'}"
        )
    # DistributedDataParallel puts `module.` before names.
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        _check_form(path, name, tensor)
        bare = name.removeprefix("module.")
        if bare in tensors:
            raise WeightsError(f"{path}: holds {brief(bare)} twice, with and without module. before it")
        tensors[bare] = tensor
    meta = content.get(META) if isinstance(content, Mapping) else None
    return WeightFile(tensors, averaged, _texts(meta.get(OWN_META)) if isinstance(meta, Mapping) else {})


def is_own_safetensors(path: Path) -> bool:
    """Return whether a file is named safetensors, or is one that was written here and renamed since. Raises
    WeightsError for what can't be read."""
    if path.suffix == ".safetensors" or path.is_dir():
        return not path.is_dir()
    return _begins_as_safetensors(_start(path)) and "content" in read_header(path)[1]


def _begins_as_safetensors(start: bytes) -> bool:
    """Return whether a file begins with a length of 8 bytes, then JSON, whatever its name."""
    return start[8:9] == b"{" and not start.startswith(b"PK")


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file. Raises WeightsError."""
    with _open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _own_header(path, dict(file.metadata() or {}))


def read_header(path: str | Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Read the tensor shapes and the metadata of a safetensors file. Raises WeightsError."""
    with _open_safetensors(path) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return shapes, _own_header(path, dict(file.metadata() or {}))


@contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file for reading. Raises WeightsError for whatever goes wrong inside, except MemoryError."""
    _start(Path(path))
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (MemoryError, WeightsError):
        raise
    except Exception as error:
        # safetensors raises its own error, and others for dtypes that torch doesn't know.
        raise WeightsError(f"{path}: not a readable safetensors file: {_reason(error)}; fetch it again") from error


def check_values(tensors: Mapping[str, Tensor], path: object) -> None:
    """Raise WeightsError, naming the tensors, for values that can't be weights: integers, complex numbers, NaN,
    infinity."""
    problems = [f"{brief(name)} {problem}" for name, t in tensors.items() if (problem := _value_problem(t))]
    if problems:
        raise WeightsError(
            f"{path}: its numbers can't be weights: {name_few(problems, '; ')}. The file is damaged, or was made for "
            "something else: fetch it again"
        )


def _value_problem(tensor: Tensor) -> str | None:
    if not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')}, expected floats"
    # torch.isnan isn't implemented for 8-bit floats.
    numbers = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    if torch.isnan(numbers).any():
        return "holds NaN"
    return "holds infinite numbers" if torch.isinf(numbers).any() else None


@contextmanager
def writing_weights(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path like `adatad.files.atomic_write`, also for safetensors' and torch's own errors. Raises
    FileError."""
    with atomic_write(path) as unfinished:
        try:
            yield unfinished
        except (SafetensorError, RuntimeError) as error:
            raise FileError(
                f"{path}: can't be written: {_reason(error)}; what was there is as it was. Make room, or name another "
                "file"
            ) from error


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Raises FileError."""
    with writing_weights(path) as unfinished:
        save_file(tensors, unfinished, metadata=header)


def write_torch(path: str | Path, content: Any) -> None:
    """Write a file with torch.save, atomically. Raises FileError."""
    with writing_weights(path) as unfinished:
        torch.save(content, unfinished)


def brief(name: object) -> str:
    """Return a name as it can be printed, cut if it is very long."""
    return shown(str(name)[: MAX_NAME_CHARACTERS + 1], MAX_NAME_CHARACTERS)


def name_few(names: list[str], between: str = ", ") -> str:
    """Return the first names, and how many more there are."""
    return listed([brief(name) for name in names], MAX_LISTED, between)


def _start(path: Path) -> bytes:
    """Return the file's first bytes. Raises WeightsError if they show that it is no weight file."""
    try:
        start = read_start(path)
    except FileError as error:
        raise WeightsError(str(error)) from error
    # A web page, a Git LFS pointer and the like: what download tools leave in a file's place.
    what = what_it_is(start)
    what = what or next((text for magic, text in OTHER_KINDS.items() if start.startswith(magic)), None)
    if not start:
        raise WeightsError(f"{path}: not a readable weight file: it is empty; fetch it again")
    if what:
        raise WeightsError(f"{path}: is {what}")
    return start


def _check_form(path: Path, name: str, tensor: Tensor) -> None:
    """Raise WeightsError for a tensor that isn't the plain array that it claims to be."""
    where = f"{path}: {brief(name)}"
    if tensor.is_meta:
        raise WeightsError(f"{where} has no numbers (it was saved from the meta device); take a file that has them")
    if tensor.is_quantized:
        raise WeightsError(f"{where} is quantized; save tensor.dequantize() of it where the file was made")
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
        raise WeightsError(f"{where} is {kind}; save tensor.to_dense() of it where the file was made")
    # A tensor with stride 0 claims any size for a few bytes: using it would allocate what it claims.
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held:
        raise WeightsError(
            f"{where} claims {claimed:,} bytes, of which the file holds {held:,} (strides of 0); save "
            "tensor.contiguous() of it where the file was made"
        )


def _own_header(path: object, metadata: dict[str, str]) -> dict[str, str]:
    """Return the metadata under our own key, or else all of it."""
    if OWN_META not in metadata:
        return metadata
    try:
        return _texts(parse_json(metadata[OWN_META], f"{path}: header"))
    except FileError as error:
        raise WeightsError(str(error)) from error


def _texts(content: Any) -> dict[str, str]:
    if not isinstance(content, Mapping):
        return {}
    return {key: text for key, text in content.items() if isinstance(key, str) and isinstance(text, str)}


def _parameters(content: Any, within: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, itself or under one of `CONTAINERS` at any depth; empty if there is
    none."""
    # A pickled dict may contain itself: don't recurse for ever.
    if not isinstance(content, Mapping) or id(content) in within:
        return {}
    # Checkpoints nest: {"model": {"module": {...}}} is found by going down as long as there is a known key.
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping) and (found := _parameters(content[key], (*within, id(content)))):
            return found
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _unpickled(path: Path, start: bytes) -> Any:
    """Load what torch.save wrote, weights only: a file that would run code is refused."""
    # torch.save writes a zip archive; others get a message of their own here, before torch's unclear one.
    if start.startswith(b"PK"):
        _check_zip(path)
    try:
        with torch.serialization.safe_globals(PLAIN_OBJECTS), warnings.catch_warnings():
            # torch warns about files that it then refuses, or reads correctly.
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                # Files of before torch 1.6 can't be mapped.
                return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except (pickle.UnpicklingError, KeyError, IndexError, EOFError) as error:
        # The last two: text that by chance begins like a pickle pops an empty stack, or has no STOP at its end.
        # torch's error names the refused object in the line about GLOBAL; without one the pickle itself is broken.
        line = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), None)
        if line is None:
            raise WeightsError(
                f"{path}: not a readable weight file: it is neither torch.save's nor safetensors, or damaged; fetch it "
                "again, or save it again with torch.save(model.state_dict(), FILE)"
            ) from error
        raise WeightsError(
            f"{path}: holds more than tensors and numbers, and loading it could run code ({brief(line)}), so it isn't "
            "read. Where it was made, save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        # A damaged pickle can raise anything.
        raise WeightsError(
            f"{path}: not a readable weight file of torch.save's: {_reason(error)}; fetch it again"
        ) from error


def _check_zip(path: Path) -> None:
    """Raise WeightsError for a zip archive that torch.save didn't write."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: not a readable weight file: {_reason(error)}; fetch it again") from error
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            f"{path}: is a TorchScript program; take its weights with "
            "torch.save(torch.jit.load(FILE).state_dict(), OUT)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise WeightsError(
            f"{path}: is a zip archive, but not torch.save's (it holds {name_few(names) or 'nothing'}); unpack it and "
            "name the weight file"
        )
    # Stored, not compressed: that is what lets torch map the file.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{path}: was packed again since torch.save wrote it; unpack it, or fetch it again")


def _reason(error: BaseException) -> str:
    return brief(reason(error))
