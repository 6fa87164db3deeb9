"""Rows of a table of instances: which video, from when to when, what; and what is wrong with the other rows."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from adatad.data.annotation_file import listed
from adatad.data.clock import Time, read_time
from adatad.data.columns import NEEDED, Column, columns_of, recognized
from adatad.data.entry import MAX_FPS, brief, has_control_characters, is_visible, number
from adatad.data.table import DELIMITERS, Row, Table, TableError, read_table

SUBSETS = {
    "training": "training", "train": "training", "trn": "training", "tr": "training",
    "validation": "validation", "val": "validation", "valid": "validation", "validate": "validation",
    "dev": "validation",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""What tables call a subset, and what it is called here."""


class Instance(NamedTuple):
    """A row of the table. video: as the table names it; start, end: in `unit`, seconds or frames; subset: empty where
    the table doesn't say; fps: at which frames are counted, 0 where the table doesn't say."""

    line: int
    video: str
    start: float
    end: float
    label: str
    subset: str
    unit: str = "seconds"
    fps: float = 0.0


def read_instances(path: Path, given: Mapping[str, str]) -> tuple[list[Instance], list[str], list[str]]:
    """Rows that can be read, sentences about what was guessed, and what is wrong with the other rows.

    given: column names by role, as `columns_of` takes them. Raises TableError for what is no such table.
    """
    table = read_table(path, lambda header: recognized(header) + sum(name in header for name in given.values()))
    columns = columns_of(table.header, given, f"{path}: the header {table.header_shown()}")
    if not table.rows and not table.problems:
        raise TableError(f"{path}: no rows; expected one instance a line below the header {table.header_shown()}")
    instances, wrong, times = [], list(table.problems), []
    for row in table.rows:
        try:
            instance, read = _instance(row, columns, table)
        except ValueError as error:
            wrong.append(f"line {row.line}: {error}")
            continue
        instances.append(instance)
        times += [(row.line, time) for time in read]
    wrong += _decimal_problems(times, table)
    return instances, list(_notes(table, columns, times)), wrong


def _instance(row: Row, columns: Mapping[str, Column], table: Table) -> tuple[Instance, list[Time]]:
    """Raises ValueError with what is wrong."""

    def field(role: str) -> str:
        return row.fields[columns[role].place] if role in columns else ""

    # Accents as one character, as names of videos are compared: one class, whichever way it was typed.
    label = unicodedata.normalize("NFC", field("label"))
    video, subset = field("video"), field("subset").casefold()
    for what, text in (("video", video), ("label", label)):
        if not is_visible(text):
            raise ValueError(f"has no {what}")
        if has_control_characters(text):
            raise ValueError(f"the {what} {brief(text)} holds a line break, a tab or another control character")
    if subset and subset not in SUBSETS:
        raise ValueError(f"subset is training or validation, got {brief(field('subset'))}")
    last = "end" if "end" in columns else "duration"
    times = []
    for role in ("start", last):
        try:
            times.append(read_time(field(role), columns[role].unit))
        except ValueError as error:
            raise ValueError(
                f"start and {last} are {error}, got {brief(field('start'))} and {brief(field(last))}"
            ) from None
    start, end = times[0].value, times[1].value
    units = columns["start"].unit == "frames", columns[last].unit == "frames"
    if units[0] != units[1]:
        raise ValueError("start and end are frames in one column and times in the other")
    if last == "duration":
        end += start
    if not (math.isfinite(end) and 0 <= start < end):
        raise ValueError(f"expected 0 <= start < end, got {start:g} and {end:g}")
    unit = "frames" if units[0] else "seconds"
    return Instance(row.line, video, start, end, label, SUBSETS.get(subset, ""), unit, _rate(field("fps"))), times


def _rate(text: str) -> float:
    """Frames a second: a number or a fraction such as 30000/1001; 0 for an empty field. Raises ValueError."""
    if not text:
        return 0.0
    parts = [number(part.replace(",", ".")) for part in text.split("/")]
    rate = None
    if len(parts) <= 2 and None not in parts and all(part > 0 for part in parts):
        rate = parts[0] / (parts[1] if len(parts) == 2 else 1)
    if rate is None or not 0 < rate <= MAX_FPS:
        raise ValueError(f"fps is frames a second, above 0 and at most {MAX_FPS:g}, got {brief(text)}")
    return rate


def _decimal_problems(times: list[tuple[int, Time]], table: Table) -> list[str]:
    """Numbers that may be decimals or thousands, where the table doesn't tell."""
    signs = {sign: [line for line, time in times if time.sign == sign] for sign in ",."}
    doubtful = {sign: [line for line, time in times if time.sign == sign and time.is_ambiguous] for sign in ",."}
    wrong = []
    for sign, other in ((",", "."), (".", ",")):
        sure = len(signs[sign]) > len(doubtful[sign])
        # Commas that divide columns are no decimal signs in the same table, unless a number shows it.
        suspicious = signs[other] or (sign == "," and table.delimiter == ",")
        if doubtful[sign] and suspicious and not (sure and not signs[other]):
            lines = listed([str(line) for line in dict.fromkeys(doubtful[sign])])
            example = "3,200" if sign == "," else "3.200"
            wrong.append(
                f"line {lines}: a number like {example} may be 3.2 or 3200 in this table; write all times with the "
                "same decimal sign and no other"
            )
    return wrong


def _notes(table: Table, columns: Mapping[str, Column], times: list[tuple[int, Time]]) -> list[str]:
    """Sentences about what was guessed; none for a table of the documented form."""
    notes = []
    said = [
        f"{role} from '{column.name}'" + (f" ({column.unit})" if column.unit != "seconds" else "")
        for role, column in columns.items()
        if column.name != role
    ]
    if said or table.delimiter != ",":
        notes.append(f"columns, divided by {DELIMITERS[table.delimiter]}: {listed(said, 10) or ', '.join(NEEDED)}")
    if "end" not in columns:
        notes.append("an instance ends its duration after its start")
    if any(column.unit == "frames" for column in columns.values()):
        notes.append("frames are counted from 0; an instance ends where its end frame begins")
    if any(time.sign == "," for _, time in times):
        notes.append("decimal commas in times")
    places = {column.place for column in columns.values()}
    unused = [name for place, name in enumerate(table.header) if name and place not in places]
    if unused:
        notes.append(f"columns that aren't used: {listed(unused, 10)}")
    if table.comments:
        lines = listed([str(line) for line in table.comments])
        notes.append(f"left out as comments, which begin with #: line {lines}")
    return notes


def line_of(problem: str) -> int:
    """The line that a problem begins with, for sorting; those without come last."""
    number = problem.removeprefix("line ").split(" ")[0].rstrip(":,")
    return int(number) if number.isdecimal() else sys.maxsize
