"""Golden cases of data, post-processing and evaluation: JSON files, each of its own form, told apart by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adatad.dev.parity import map_file, nms_file, post_file, schedule_file, transforms_file, windows_file
from adatad.dev.parity.comparison import Comparison
from adatad.dev.parity.golden_cases import CaseError, files_named, read_object

NAMES = (
    "nms.json",
    "map.json",
    "map_epic.json",
    "recall.json",
    "post.json",
    "lr.json",
    "windows.json",
    "transforms.json",
)
"""Files that are cases, wherever they lie under a folder."""


def find_data_files(folder: Path) -> list[Path]:
    """Files of cases, at any depth."""
    return files_named(folder, NAMES)


def run_data_file(path: Path) -> list[Comparison]:
    """Every comparison of a file. Raises CaseError or FileError where it can't be read, or holds none."""
    rows = runner(path.name)(read_object(path), path.parent)
    if not rows:
        raise CaseError(f"{path}: holds nothing to compare: none of the lists of cases that a {path.name} has")
    return rows


def runner(name: str) -> Callable[[dict[str, Any], Path], list[Comparison]]:
    """The function that compares the content of a file of that name; the folder is for arrays beside it."""
    match name:
        case "nms.json":
            return nms_file.run
        case "map.json":
            return map_file.run
        case "map_epic.json":
            return map_file.run_epic
        case "recall.json":
            return map_file.run_recall
        case "post.json":
            return post_file.run
        case "lr.json":
            return schedule_file.run
        case "windows.json":
            return windows_file.run
        case "transforms.json":
            return transforms_file.run
        case _:
            raise ValueError(name)
