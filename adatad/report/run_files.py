"""Reading of a run's files, which may be damaged: a run may have been killed, its disk full, a file edited.

What can't be read is named in a FileError, or counted and left out.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adatad.files import FileError, parse_json, read_bytes, read_json, read_text

MAX_STEP = 2**53
MAX_NUMBER = 1e300
"""Largest magnitude that an axis of a picture can hold."""
MAX_SECONDS = 1e10
"""Longest duration of a run or a step that is believed."""
MAX_TEXT_BYTES = 16 << 20
"""Largest text file of names that is read."""
NESTED = ("lr", "mAP")
"""Keys of a line of metrics.jsonl that hold several numbers by name."""

Record = dict[str, Any]


class MetricLines(NamedTuple):
    """Usable lines of metrics.jsonl in their order, and how many of the others there were."""

    train: list[Record]
    evaluations: list[Record]
    left_out: int

    def note(self, path: Path) -> str | None:
        """Return a line about what was left out; None if nothing was."""
        lines = f"{self.left_out} line{'s' * (self.left_out != 1)}"
        return f"{path}: {lines} can't be read or lack a key; left out" if self.left_out else None


def read_metrics(
    path: Path, train_keys: Collection[str], evaluation_keys: Collection[str] = ("average_mAP",)
) -> MetricLines:
    """Read the lines of a metrics file that may still be written; none if there is no file. Raises FileError.

    train_keys, evaluation_keys: what a line of that kind must have besides "step": numbers, or under `NESTED` numbers
    by name. A last line without an end is still being written, or was cut off by a kill, and isn't counted.
    """
    if not is_there(path):
        return MetricLines([], [], 0)
    keys = {"train": train_keys, "evaluation": evaluation_keys}
    by_kind: dict[str, list[Record]] = {kind: [] for kind in keys}
    left_out = 0
    # A run that is killed may leave half a character: decode with replacements, and parse line by line.
    *lines, last = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate([*lines, last]):
        record = _record(line)
        if record is None:
            # Not the last line: it may be unfinished.
            left_out += bool(line.strip()) and number < len(lines)
        elif (kind := record["kind"]) in keys:
            if _is_usable(record, keys[kind]):
                by_kind[kind].append(record)
            else:
                left_out += 1
    return MetricLines(by_kind["train"], by_kind["evaluation"], left_out)


def _record(line: str) -> Record | None:
    """Return the object of a line; None if it isn't one."""
    try:
        record = parse_json(line, "line")
    except FileError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def _is_usable(record: Record, keys: Iterable[str]) -> bool:
    step = record.get("step")
    is_step = type(step) is int and 0 <= step <= MAX_STEP
    # `type` above, not isinstance: True is an int, and no step.
    return is_step and all(
        _are_numbers(record.get(key)) if key in NESTED else is_number(record.get(key)) for key in keys
    )


def is_there(path: Path) -> bool:
    """Return whether a path exists, also as a broken link."""
    return os.path.lexists(path)


def by_step(records: Sequence[Record]) -> list[Record]:
    """Return records in the order of steps; for a step that a resumed run repeated, the last one."""
    latest = {record["step"]: record for record in records}
    return [latest[step] for step in sorted(latest)]


def is_number(value: object) -> bool:
    """Return whether a value is a number that can be drawn; NaN and infinity, as losses may be, are too."""
    # Not isinstance: True is an int.
    if type(value) not in (int, float):
        return False
    return abs(value) <= MAX_NUMBER or (type(value) is float and not math.isfinite(value))


def _is_finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def _are_lists(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, list) and all(map(_is_finite, item)) for item in value.values()
    )


def _are_groups(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(group, dict) and _is_finite(group.get("average_mAP")) and _is_count(group.get("instances"))
        for group in value.values()
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_STEP


def _is_duration(value: object) -> bool:
    return _is_finite(value) and 0 <= value <= MAX_SECONDS


RESULT: dict[str, tuple[str, Callable[[object], bool], Any]] = {
    "untrained_average_mAP": ("a number", _is_finite, None),
    "best_average_mAP": ("a number", _is_finite, None),
    "mAP": ("numbers by tIoU", _are_numbers, {}),
    "ap_per_class": ("lists of numbers by class", _are_lists, {}),
    "groups": ("average_mAP and instances by group", _are_groups, {}),
    "epochs": ("a count", _is_count, None),
    "seconds": ("a duration", _is_duration, None),
}
"""Keys of result.json: what is expected, its test, and the default of one that isn't there."""


def read_result(path: Path) -> Record:
    """Read result.json, with every key of `RESULT`. Raises FileError for a truncated file and another form."""
    content = read_json(path)
    if not isinstance(content, dict) or not _is_finite(content.get("average_mAP")):
        raise FileError(f"{path}: is no result of a run: expected an object with average_mAP, a number")
    for key, (expected, is_right, default) in RESULT.items():
        value = content.get(key)
        if value is not None and not is_right(value):
            raise FileError(f"{path}: {key}: expected {expected}, got {reprlib.repr(value)}")
        content[key] = default if value is None else value
    return content


def read_words(path: Path) -> list[str]:
    """Read names in a text file, one a line; none if there is no file. Raises FileError."""
    return read_text(path, MAX_TEXT_BYTES).split() if is_there(path) else []


def read_end(path: Path, limit_bytes: int) -> str:
    """Read the end of a text file of any size, whatever it holds. Raises OSError."""
    # O_NONBLOCK: opening a pipe would wait for a writer. Its seek fails then, as an OSError.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        size = file.seek(0, 2)
        file.seek(max(size - limit_bytes, 0))
        return file.read(limit_bytes).decode("utf-8", errors="replace")
