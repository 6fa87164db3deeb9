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
"""Under a folder of cases; more are those of a whole disk."""


class CaseError(UserError):
    """A folder that isn't a readable case; the message names the file and what is wrong."""


@dataclass(frozen=True)
class GoldenCase:
    """facts: case.json; expected: expected.json; arrays by name from the three npz files."""

    folder: Path
    facts: dict[str, Any]
    expected: dict[str, Any]
    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.facts["name"]

    def samples(self, prefix: str) -> list[Tensor]:
        """Inputs called prefix/0, prefix/1, ... as tensors."""
        return [torch.from_numpy(self.inputs[f"{prefix}/{index}"]) for index in range(self.facts["input"]["batch"])]


def find_cases(folder: Path) -> list[Path]:
    """Folders, at any depth, that hold a case.json; none where there is no folder."""
    return [path.parent for path in files_named(folder, ("case.json",))]


def files_named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Files of these names at any depth under a folder, in order. Links to folders aren't followed. Raises CaseError
    for a folder with so many in it that it can't be one of cases."""
    found = []
    for count, (parent, folders, files) in enumerate(os.walk(folder)):
        if count >= MAX_FOLDERS:
            raise CaseError(f"{folder}: holds more than {MAX_FOLDERS:,} folders; name the folder of the cases alone")
        folders.sort()
        found += [Path(parent, name) for name in names if name in files]
    return sorted(found)


def read_case(folder: Path) -> GoldenCase:
    """Raises CaseError, or FileError of adatad.files, which name the file."""
    for name in FILES:
        if not (folder / name).is_file():
            raise CaseError(f"{folder / name}: missing; a case is a folder with {', '.join(FILES)}")
    facts, expected = (read_object(folder / name) for name in ("case.json", "expected.json"))
    if not isinstance(facts.get("name"), str):
        raise CaseError(f"{folder / 'case.json'}: expected the case's name under 'name'")
    weights, inputs, arrays = (read_arrays(folder / name) for name in ("weights.npz", "inputs.npz", "expected.npz"))
    _check_shapes(folder / "inputs.npz", facts, inputs)
    return GoldenCase(folder, facts, expected, weights, inputs, arrays)


def _check_shapes(path: Path, facts: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    """Inputs of another shape than case.json says could broadcast, and give other numbers instead of an error."""
    size = facts.get("input")
    if not isinstance(size, dict) or not all(isinstance(size.get(name), int) for name in ("batch", "window")):
        raise CaseError(f"{path.with_name('case.json')}: expected 'batch' and 'window' under 'input'")
    masks = inputs.get("masks")
    if masks is None or masks.shape != (size["batch"], size["window"]):
        got = "none" if masks is None else list(masks.shape)
        raise CaseError(
            f"{path}: masks: expected the shape [{size['batch']}, {size['window']}] of case.json, got {got}"
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CaseError or FileError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CaseError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Raises CaseError."""
    try:
        file = np.load(path, allow_pickle=False)
        arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else None
    # numpy, zipfile and three kinds of compression each raise errors of their own for a damaged file.
    except Exception as error:
        raise CaseError(f"{path}: can't be read: {reason(error)}; copy it again") from error
    if arrays is None:
        raise CaseError(f"{path}: expected an .npz file of several arrays, got a single array")
    return arrays
