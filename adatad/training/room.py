"""Whether the disk of a run has room for its checkpoints, looked at before the first step."""

from __future__ import annotations

import math
import os
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path

from adatad.files import FileError, reason

BYTES_PER_NUMBER = 16
"""Of a trained parameter in a checkpoint: itself, its average and AdamW's two moments, in fp32."""
LARGEST_FILE_BYTES = 8
"""Of a trained parameter in a checkpoint's largest file, the optimizer's."""
CHECKPOINTS = 2
"""There is always a whole one while the next is written."""
MIN_FREE_FILES = 64


def check_room(run: Path, trained_numbers: int, resuming: bool) -> None:
    """Raises FileError if the disk that `run` lies, or will lie, on can't take two checkpoints of so many trained
    numbers: one, where a run that is resumed has the other already."""
    there = next((folder for folder in (run, *run.parents) if folder.exists()), Path("."))
    needed = trained_numbers * BYTES_PER_NUMBER * (1 if resuming else CHECKPOINTS)
    try:
        free = shutil.disk_usage(there).free
        facts = os.statvfs(there)
    except OSError as error:
        raise FileError(f"{there}: can't be looked at: {reason(error)}; run.root names another place") from error
    fix = "make room, or put runs elsewhere (run.root)"
    if free < needed:
        raise FileError(
            f"{run}: {size(free)} are free there; checkpoints of this model need {size(needed)} at least: {fix}"
        )
    # Some file systems don't count files.
    if facts.f_files and facts.f_favail < MIN_FREE_FILES:
        raise FileError(f"{run}: {facts.f_favail} more files fit there (inodes); a run makes {MIN_FREE_FILES}: {fix}")
    most, largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0], trained_numbers * LARGEST_FILE_BYTES
    if most != resource.RLIM_INFINITY and most < largest:
        raise FileError(
            f"{run}: files of this process may have {size(most)} (ulimit -f); a checkpoint of this model has one of "
            f"{size(largest)}: ulimit -f unlimited"
        )


def size(number_of_bytes: float) -> str:
    """Bytes as people write them: 64 MB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log(max(number_of_bytes, 1), 1000)))
    return f"{number_of_bytes / 1000**power:.3g} {units[power]}"


def numbers_in(shapes: Iterable[Iterable[int]]) -> int:
    """Numbers that tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes)
