"""Reading of a run's files, which may be damaged: a run may have been killed, its disk full, a file edited.

What can't be read is named in a FileError, or counted and left out.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from adatad.files import FileError, parse_json, read_bytes, read_json, read_text

# Largest whole number up to which a float, as JSON of other programs has them, is exact.
MAX_STEP = 2**53
MAX_NUMBER = 1e300
"""Largest magnitude that an axis of a picture can hold."""
MAX_SECONDS = 1e10
"""Longest duration of a run or a step that is believed."""
MAX_TEXT_BYTES = 16 << 20
"""Largest text file of names that is read."""
NESTED = ("lr", "mAP")
"""Keys of a line of metrics.jsonl that hold several numbers by name."""

LOSS_NAMES = {"cost": "loss", "cls_loss": "class_loss", "reg_loss": "segment_loss"}
"""Names of losses in metrics.jsonl and in all that shows them, by those that the model's code has for them, which
earlier versions wrote."""

# Plain dicts: lines of earlier versions have fewer keys, and each reader asks for its own.
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
    by name. Losses have the names of `LOSS_NAMES`, also those that earlier versions wrote. A last line without an end
    is still being written, or was cut off by a kill, and isn't counted.
    """
    return MetricsReader(path, train_keys, evaluation_keys).read()


class MetricsReader:
    """Reader of a metrics file that grows: each `read` takes what came since the one before. Arguments are those of
    `read_metrics`."""

    def __init__(self, path: Path, train_keys: Collection[str], evaluation_keys: Collection[str]):
        self._path, self._keys = path, {"train": train_keys, "evaluation": evaluation_keys}
        self._begin()

    def _begin(self) -> None:
        self._lines, self._done_bytes, self._file = MetricLines([], [], 0), 0, None

    def read(self) -> MetricLines:
        """Return all usable lines so far. Raises FileError."""
        if not is_there(self._path):
            self._begin()
            return self._lines
        # Another file of that name, or a shorter one, is another run's: all is read again.
        with suppress(OSError):
            facts = self._path.stat()
            if facts.st_ino != self._file or facts.st_size < self._done_bytes:
                self._begin()
            self._file = facts.st_ino
        content = read_bytes(self._path, start=self._done_bytes)
        whole, last = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        self._done_bytes += len(whole)
        # A run that is killed may leave half a character: decode with replacements, and parse line by line.
        for line in whole.decode("utf-8", errors="replace").split("\n"):
            self._take(line, self._lines.train, self._lines.evaluations)
        # A last line without an end is read too: it may be whole but for the line break. It isn't kept, as it will be
        # read again.
        train, evaluations, left_out = list(self._lines.train), list(self._lines.evaluations), self._lines.left_out
        if _record(text := last.decode("utf-8", errors="replace")) is not None:
            left_out += not self._usable(text, train, evaluations)
        return MetricLines(train, evaluations, left_out)

    def _take(self, line: str, train: list[Record], evaluations: list[Record]) -> None:
        if line.strip() and not self._usable(line, train, evaluations):
            self._lines = self._lines._replace(left_out=self._lines.left_out + 1)

    def _usable(self, line: str, train: list[Record], evaluations: list[Record]) -> bool:
        """Append a line's record to those of its kind; return False if it can't be used."""
        record = _record(line)
        if record is None:
            return False
        kind, step = record["kind"], record.get("step")
        # A newer version may write lines of other kinds, which aren't wrong.
        if kind not in self._keys:
            return True
        # `type`, not isinstance: True is an int, and no step.
        is_step = type(step) is int and 0 <= step <= MAX_STEP
        if not is_step or not all(
            _are_numbers(record.get(key)) if key in NESTED else is_number(record.get(key)) for key in self._keys[kind]
        ):
            return False
        (train if kind == "train" else evaluations).append(record)
        return True


def _record(line: str) -> Record | None:
    """Return a line's object; None if it holds none, or one without a kind."""
    try:
        record = parse_json(line, "line")
    except FileError:
        return None
    return with_loss_names(record) if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def with_loss_names(record: Record) -> Record:
    """Return a line with today's names of losses, in the place of the model's own."""
    return {LOSS_NAMES.get(key, key): value for key, value in record.items()}


def is_there(path: Path) -> bool:
    """Return whether a path exists, also as a broken link."""
    return os.path.lexists(path)


def detections_of(source: Path) -> Path:
    """Return the detections file of a run directory's last evaluation; another path as it is."""
    return source / "detections.json" if source.is_dir() else source


def by_step(records: Sequence[Record]) -> list[Record]:
    """Return records in the order of steps; for a step that a resumed run repeated, the last one."""
    # Later lines win: a run that was killed repeats the steps since its checkpoint, and appends.
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


# Everything but average_mAP may be missing: results of earlier versions lack what came later.
RESULT: dict[str, tuple[str, Callable[[object], bool], Any]] = {
    "untrained_average_mAP": ("a number", _is_finite, None),
    "best_average_mAP": ("a number", _is_finite, None),
    "best_epoch": ("a count", _is_count, None),
    "best_mAP": ("numbers by tIoU", _are_numbers, {}),
    "mAP": ("numbers by tIoU", _are_numbers, {}),
    "ap_per_class": ("lists of numbers by class", _are_lists, {}),
    "groups": ("average_mAP and instances by group", _are_groups, {}),
    "epochs": ("a count", _is_count, None),
    "seconds": ("a duration", _is_duration, None),
    "stopped_early": ("true or false", lambda value: isinstance(value, bool), False),
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
