"""Golden cases of the model: folders with what the reference was given and what it computed.

A case is a folder with case.json, weights.npz, inputs.npz, expected.npz and expected.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adatad.errors import UserError

FILES = ("case.json", "weights.npz", "inputs.npz", "expected.npz", "expected.json")


class CaseError(UserError):
    """A folder that isn't a readable case; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Case:
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
    """Folders, at any depth, that hold a case.json."""
    return sorted(path.parent for path in folder.rglob("case.json"))


def read_case(folder: Path) -> Case:
    for name in FILES:
        if not (folder / name).is_file():
            raise CaseError(f"{folder / name}: missing; a case is a folder with {', '.join(FILES)}")
    try:
        facts, expected = (json.loads((folder / name).read_text()) for name in ("case.json", "expected.json"))
        weights, inputs, arrays = (
            dict(np.load(folder / name, allow_pickle=False)) for name in ("weights.npz", "inputs.npz", "expected.npz")
        )
    except (OSError, ValueError) as error:
        raise CaseError(f"{folder}: can't be read: {error}") from error
    return Case(folder, facts, expected, weights, inputs, arrays)
