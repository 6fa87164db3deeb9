"""Compare two runs bit for bit: weights, averages, optimizer state, the metrics of every step, detections and mAP."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from adatad.errors import UserError
from adatad.files import parse_json, read_json, read_text
from adatad.report.run_files import with_loss_names
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.run_directory import RunDirectory

# They differ between two runs on one machine, too.
IGNORED_ENDINGS = ("seconds", "bytes")
"""Endings of keys that hold clocks and memory."""
COMPARED_STATE = ("progress", "normalizer", "scaler", "frozen_fingerprint")
"""Keys of a checkpoint's state that hold results of training; the others describe the file and the model."""
IGNORED = "Ignored: keys that end in 'seconds' or 'bytes', the spec, and what a checkpoint says of its own form."
MAX_LISTED = 5
"""Differences of a part that are printed one by one."""

Values = dict[str, Any]
"""Tensors or JSON scalars by name."""


class NotComparableError(UserError):
    """A run that can't be compared with the other one; the message names it and says what to do."""


@dataclass(frozen=True)
class TensorDifference:
    """One name whose values differ.

    values: how many differ; absolute: the largest |a - b|; relative: that, as a share of the largest magnitude under
    this name. Both are infinite where there is no distance: another type or shape, a text, a value that isn't finite.
    """

    name: str
    values: int
    absolute: float
    relative: float
    text: str


@dataclass(frozen=True)
class RunPart:
    """One kind of values of both runs. values: compared numbers and texts; differences: in the order of the runs."""

    name: str
    values: int
    differences: tuple[TensorDifference, ...]


@dataclass(frozen=True)
class RunComparison:
    """The outcome for two runs. within: relative difference that is accepted; 0 accepts equal bits alone."""

    run_a: Path
    run_b: Path
    step: int
    within: float
    parts: tuple[RunPart, ...]

    @property
    def is_identical(self) -> bool:
        """Return whether all compared bits are equal."""
        return not any(part.differences for part in self.parts)

    @property
    def is_equal(self) -> bool:
        """Return whether the runs are equal, or all differences are within the tolerance."""
        found = (difference for part in self.parts for difference in part.differences)
        # Without a tolerance 0.0 and -0.0 differ, though their distance is 0.
        return all(self.within > 0 and d.relative <= self.within for d in found)

    def table(self) -> Table:
        """Return a row for each part, to be printed by rich."""
        title = f"A {self.run_a}\nB {self.run_b}\nafter step {self.step}"
        table = Table("", "values", "differ", "largest", "relative", title=title, title_justify="left")
        for part in self.parts:
            found = part.differences
            sizes = (max(getattr(d, size) for d in found) for size in ("absolute", "relative")) if found else ()
            count = sum(d.values for d in found)
            table.add_row(part.name, f"{part.values:,}", f"{count:,}", *(f"{size:.3g}" for size in sizes))
        return table

    def lines(self) -> Iterator[str]:
        """Yield a line for each of the first differences of every part, one on what is ignored, and the verdict."""
        for part in self.parts:
            yield from (f"{part.name}: {d.name}: {d.text}" for d in part.differences[:MAX_LISTED])
            if (more := len(part.differences) - MAX_LISTED) > 0:
                yield f"{part.name}: and under {more} more names"
        yield IGNORED
        close = f"equal within {self.within:g}, not in every bit" if self.is_equal else "NOT equal"
        yield "equal: every bit" if self.is_identical else close


def same(run_a: Path, run_b: Path, within: float = 0.0) -> RunComparison:
    """Compare two runs at their newest checkpoints.

    within: relative difference that counts as equal (see `TensorDifference`). Tensors go by parameter name, so that
    runs of different engines, with whole or sharded checkpoints, can be compared; AdamW's moments that were saved in
    bf16 are compared as float32. Raises UserError for a folder that is no run, a run without a checkpoint or with a
    broken one, and runs whose newest checkpoints stand at different steps.
    """
    if run_a.resolve() == run_b.resolve():
        raise NotComparableError(f"{run_a}: both names mean this run; name two runs")
    (step_a, parts_a), (step_b, parts_b) = _read_run(run_a), _read_run(run_b)
    if step_a != step_b:
        raise NotComparableError(
            f"{run_a} has its newest checkpoint at step {step_a}, {run_b} at step {step_b}; train both to the same step"
        )
    parts = (_compare_part(name, parts_a[name], parts_b[name]) for name in parts_a)
    return RunComparison(run_a, run_b, step_a, within, tuple(parts))


def _read_run(folder: Path) -> tuple[int, dict[str, Values]]:
    """Return the step of a run's newest checkpoint, and all values of the run by part."""
    files = RunDirectory(folder)
    if not folder.is_dir() or not files.is_run:
        raise NotComparableError(f"{folder}: is no run: expected a folder with metrics.jsonl and checkpoints/")
    checkpoints = all_checkpoints(files.checkpoints)
    if not checkpoints:
        raise NotComparableError(f"{folder}: has no checkpoint to compare; train it to one")
    checkpoint = read_checkpoint(checkpoints[-1])
    # Flat, one name for each tensor, as all other parts are.
    moments = {f"{name}/{key}": t for name, tensors in checkpoint.optimizer.items() for key, t in tensors.items()}
    state = {key: checkpoint.state.get(key) for key in COMPARED_STATE}
    return checkpoint.state["progress"]["step"], {
        "weights": checkpoint.parameters,
        "averages": checkpoint.ema,
        "optimizer": moments,
        "state": dict(_scalars("", state)),
        "metrics": _read_metrics(files.metrics),
        # A run that was never evaluated has neither file.
        "detections": dict(_scalars("", read_json(files.detections))) if files.detections.exists() else {},
        "mAP": dict(_scalars("", read_json(files.result))) if files.result.exists() else {},
    }


def _read_metrics(path: Path) -> Values:
    """Return the scalars of every step by name, in order of steps."""
    records = {}
    lines = read_text(path).splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        record = parse_json(line, f"{path}: line {number}")
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise NotComparableError(f"{path}: line {number}: expected an object with a step, as training writes it")
        # A resumed run repeats the steps after its checkpoint; the last line of a step is the one that counts.
        records[record["step"], str(record.get("kind"))] = with_loss_names(record)
    found: Values = {}
    for (step, kind), record in sorted(records.items(), key=lambda item: item[0][0]):
        found |= _scalars(f"step {step} {kind} ", record)
    return found


def _scalars(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the scalars in a JSON value with the keys and places that lead to them, without ignored keys."""
    # An empty list counts as a value: no detections of a video, and no such video, are two things.
    if not isinstance(value, (dict, list)) or not value:
        yield prefix, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        nested = isinstance(inner, (dict, list))
        if nested or not str(key).endswith(IGNORED_ENDINGS):
            yield from _scalars(f"{prefix}{key}/" if nested else f"{prefix}{key}", inner)


def _compare_part(name: str, a: Values, b: Values) -> RunPart:
    differences, count = [], 0
    # Names of A in their order, then those that only B has: the first difference is the first in time.
    for key in dict.fromkeys((*a, *b)):
        size = next(v[key].numel() if isinstance(v[key], Tensor) else 1 for v in (a, b) if key in v)
        count += size
        if key not in a or key not in b:
            text = f"is only in {'A' if key in a else 'B'}"
            differences.append(TensorDifference(key, size, math.inf, math.inf, text))
        else:
            compare = _tensor_difference if isinstance(a[key], Tensor) else _scalar_difference
            differences += compare(key, a[key], b[key])
    return RunPart(name, count, tuple(differences))


def _tensor_difference(name: str, a: Tensor, b: Tensor) -> list[TensorDifference]:
    if a.dtype != b.dtype or a.shape != b.shape:
        text = f"{a.dtype} {list(a.shape)} in A, {b.dtype} {list(b.shape)} in B"
        return [TensorDifference(name, max(a.numel(), b.numel()), math.inf, math.inf, text)]
    # Bytes, not values: NaN equals itself here, and 0.0 is not -0.0.
    bytes_a, bytes_b = (t.contiguous().reshape(-1, 1).view(torch.uint8) for t in (a, b))
    unequal = (bytes_a != bytes_b).any(dim=1)
    count = int(unequal.sum())
    if not count:
        return []
    # In float64, where the difference of any two floats of 32 bits is exact enough to be told from rounding.
    flat_a, flat_b = a.reshape(-1).double(), b.reshape(-1).double()
    distance = (flat_a[unequal] - flat_b[unequal]).abs()
    absolute = float(distance.nan_to_num(nan=math.inf).max())
    relative = _share(absolute, float(torch.stack([flat_a.abs().max(), flat_b.abs().max()]).max()))
    text = f"{count:,} of {a.numel():,} values, by at most {absolute:.3g} ({relative:.3g} of the largest)"
    return [TensorDifference(name, count, absolute, relative, text)]


def _scalar_difference(name: str, a: Any, b: Any) -> list[TensorDifference]:
    # By their bits, as tensors are: NaN equals NaN.
    if type(a) is type(b) and (struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else a == b):
        return []
    absolute = relative = math.inf
    if all(isinstance(value, (int, float)) and math.isfinite(value) for value in (a, b)):
        absolute = abs(a - b)
        relative = _share(absolute, max(abs(a), abs(b)))
    return [TensorDifference(name, 1, absolute, relative, f"{a!r} in A, {b!r} in B")]


def _share(absolute: float, largest: float) -> float:
    if absolute == 0:
        return 0.0
    return absolute / largest if math.isfinite(absolute) and math.isfinite(largest) else math.inf
