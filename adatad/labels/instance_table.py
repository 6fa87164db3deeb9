"""Instances out of a text table: the rows that can be used, what was guessed, and what is wrong with the others."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adatad.files import listed, shown
from adatad.labels.clock import TIMECODE, Time, read_time, timecode_seconds
from adatad.labels.columns import REQUIRED_ROLES, Column, columns_of, recognized
from adatad.labels.text_table import DELIMITERS, Table, TableError, TableRow, read_table
from adatad.labels.values import MAX_FPS, SUBSETS, brief, has_control_characters, is_visible, number


class Instance(NamedTuple):
    """A row of the table. video: as the table names it; start, end: in `unit`, seconds or frames; subset: empty if
    unknown; fps: rate at which frames are counted, 0 if unknown; score: as the table has it."""

    line: int
    video: str
    start: float
    end: float
    label: str
    subset: str
    unit: str = "seconds"
    fps: float = 0.0
    score: str = ""


class TableInstances(NamedTuple):
    """Content of a table: its valid rows, sentences about what was guessed, and what is wrong with the other rows."""

    instances: list[Instance]
    notes: list[str]
    wrong: list[str]


def read_instances(path: Path, given: Mapping[str, str]) -> TableInstances:
    """Read the file of a table of instances.

    given: column names by role, as in `columns_of`. Raises TableError for what is no such table.
    """
    return instances_in(read_table(path, recognizer(given)), given)


def recognizer(given: Mapping[str, str]) -> Callable[[Sequence[str]], int]:
    """Return a function that counts the columns of a header that are known, for `read_table`."""
    return lambda header: recognized(header) + sum(name in header for name in given.values())


def instances_in(
    table: Table, given: Mapping[str, str], video: str = "", fps_of: Callable[[str], float | None] = lambda _: None
) -> TableInstances:
    """Return what a table of instances holds.

    given: column names by role; video: the one that all rows are of, where no column says it; fps_of: frames a second
    of a video, for timecodes. Raises TableError where a role has no column.
    """
    where = f"{table.path}: the header {table.header_shown()}"
    required = [role for role in REQUIRED_ROLES if role != "video" or not video]
    columns = columns_of(table.header, given, where, required)
    if not table.rows and not table.problems:
        raise TableError(f"{table.path}: no rows; expected one instance a line below the header {table.header_shown()}")
    instances, wrong, times = [], list(table.problems), []
    for row in table.rows:
        try:
            instance, read = _instance(row, columns, video, fps_of)
        except ValueError as error:
            wrong.append(f"line {row.line}: {error}")
            continue
        instances.append(instance)
        # Collected over all rows: whether "3.200" is 3.2 or 3200 shows only in the others.
        times += [(row.line, time) for time in read]
    wrong += _decimal_problems(times, table)
    notes = list(_notes(table, columns, times))
    if "video" not in columns:
        notes.append(f"no column names the video; all rows are of {shown(video)!r}, as the file is called")
    return TableInstances(instances, notes, wrong)


def _instance(
    row: TableRow, columns: Mapping[str, Column], video: str, fps_of: Callable[[str], float | None]
) -> tuple[Instance, list[Time]]:
    """Read an instance and its times from a row. Raises ValueError with what is wrong."""

    def field(role: str) -> str:
        """Return the row's field of a role; empty where the table has no such column."""
        return row.fields[columns[role].place] if role in columns else ""

    # NFC: accents as one character, so that one class typed in two ways stays one.
    label = unicodedata.normalize("NFC", field("label"))
    video, subset = field("video") if "video" in columns else video, field("subset").casefold()
    for what, text in (("video", video), ("label", label)):
        if not is_visible(text):
            raise ValueError(f"has no {what}")
        if has_control_characters(text):
            raise ValueError(f"the {what} {brief(text)} holds a line break, a tab or another control character")
    if subset and subset not in SUBSETS:
        raise ValueError(f"subset is training or validation, got {brief(field('subset'))}")
    # The column that tells where an instance ends.
    last = "end" if "end" in columns else "duration"
    times = []
    for role in ("start", last):
        try:
            times.append(_time(field(role), columns[role].unit, video, fps_of))
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
    subset, score = SUBSETS.get(subset, ""), field("score").replace(",", ".")
    return Instance(row.line, video, start, end, label, subset, unit, _rate(field("fps")), score), times


def _time(text: str, unit: str, video: str, fps_of: Callable[[str], float | None]) -> Time:
    """Read a time, also a timecode. Raises ValueError with what was expected."""
    if not TIMECODE.fullmatch(text) or unit == "frames":
        return read_time(text, unit)
    fps = fps_of(video)
    if not fps:
        raise ValueError("times; behind a third colon stand frames, for which the frame rate (fps) is wanted")
    return Time(timecode_seconds(text, fps) or 0.0, "", is_ambiguous=False)


def _rate(text: str) -> float:
    """Return frames a second from a number or a fraction such as 30000/1001; 0 for an empty field. Raises
    ValueError."""
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
    """Return problems with numbers that may be decimals or thousands, where the table doesn't show which."""
    signs = {sign: [line for line, time in times if time.sign == sign] for sign in ",."}
    doubtful = {sign: [line for line, time in times if time.sign == sign and time.is_ambiguous] for sign in ",."}
    wrong = []
    for sign, other in ((",", "."), (".", ",")):
        # One number such as 3.25 or 12.5 shows that the sign is a decimal one.
        sure = len(signs[sign]) > len(doubtful[sign])
        # In a table divided by commas a comma inside a number is suspicious as well, unless a clear decimal shows it.
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
    """Return sentences about what was guessed; none for a table of the documented form."""
    notes = []
    said = [
        f"{role} from '{column.name}'" + (f" ({column.unit})" if column.unit != "seconds" else "")
        for role, column in columns.items()
        if column.name != role
    ]
    if said or table.delimiter != ",":
        notes.append(
            f"columns, divided by {DELIMITERS[table.delimiter]}: {listed(said, 10) or ', '.join(REQUIRED_ROLES)}"
        )
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
    """Return the line with which a problem begins, for sorting; those without come last."""
    number = problem.removeprefix("line ").split(" ")[0].rstrip(":,")
    return int(number) if number.isdecimal() else sys.maxsize
