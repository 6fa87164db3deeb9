"""Golden cases of the model: folders with what the reference was given and what it computed.

A case is a folder with case.json, weights.npz, inputs.npz, expected.npz and expected.json.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adatad.errors import UserError
from adatad.files import read_json, reason

FILES = ("case.json", "weights.npz", "inputs.npz", "expected.npz", "expected.json")
MAX_FOLDERS = 20_000
"""Folders that a folder of cases may hold; more are those of a whole disk."""


class CaseError(UserError):
    """A folder that isn't a readable case; the message names the file and what is wrong."""


@dataclass(frozen=True)
class GoldenCase:
    """One case of the model. facts: case.json; expected: expected.json; arrays by name from the three npz files."""

    folder: Path
    facts: dict[str, Any]
    expected: dict[str, Any]
    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        """The case's name in case.json."""
        return self.facts["name"]

    def samples(self, prefix: str) -> list[Tensor]:
        """Return the inputs called prefix/0, prefix/1, ... as tensors."""
        return [torch.from_numpy(self.inputs[f"{prefix}/{index}"]) for index in range(self.facts["input"]["batch"])]


def find_cases(folder: Path) -> list[Path]:
    """Return the folders, at any depth, that hold a case.json; none if there is no such folder."""
    return [path.parent for path in files_named(folder, ("case.json",))]


def files_named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of these names at any depth under a folder, sorted. Links to folders aren't followed. Raises
    CaseError for a folder that holds more than MAX_FOLDERS."""
    found = []
    for count, (parent, folders, files) in enumerate(os.walk(folder)):
        if count >= MAX_FOLDERS:
            raise CaseError(f"{folder}: holds more than {MAX_FOLDERS:,} folders; name the folder of the cases alone")
        folders.sort()  # os.walk goes through them in this order
        found += [Path(parent, name) for name in names if name in files]
    return sorted(found)


def read_case(folder: Path) -> GoldenCase:
    """Read all files of a case. Raises CaseError or FileError, which name the file."""
    for name in FILES:
        if not (folder / name).is_file():
            raise CaseError(f"{folder / name}: missing; a case is a folder with {', '.join(FILES)}")
    facts, expected = (read_object(folder / name) for name in ("case.json", "expected.json"))
    if not isinstance(facts.get("name"), str):
        raise CaseError(f"{folder / 'case.json'}: expected the case's name under 'name'")
    weights, inputs, arrays = (read_arrays(folder / name) for name in ("weights.npz", "inputs.npz", "expected.npz"))
    path, size = folder / "inputs.npz", facts.get("input")
    if not isinstance(size, dict) or not all(isinstance(size.get(name), int) for name in ("batch", "window")):
        raise CaseError(f"{folder / 'case.json'}: expected 'batch' and 'window' under 'input'")
    # Inputs of another shape than case.json says could broadcast, and give other numbers instead of an error.
    masks = inputs.get("masks")
    if masks is None or masks.shape != (size["batch"], size["window"]):
        got = "none" if masks is None else list(masks.shape)
        raise CaseError(
            f"{path}: masks: expected the shape [{size['batch']}, {size['window']}] of case.json, got {got}"
        )
    return GoldenCase(folder, facts, expected, weights, inputs, arrays)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises CaseError or FileError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CaseError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file. Raises CaseError."""
    try:
        # A pickle could run code; golden files have none.
        file = np.load(path, allow_pickle=False)
        arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else None
    # numpy, zipfile and three kinds of compression each raise errors of their own for a damaged file.
    except Exception as error:
        raise CaseError(f"{path}: can't be read: {reason(error)}; copy it again") from error
    if arrays is None:
        raise CaseError(f"{path}: expected an .npz file of several arrays, got a single array")
    return arrays
