"""Tables of events that BORIS exports: aggregated, a start and a stop a line, or tabular, an event a line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adatad.labels.boris import BehaviorEvent, add_events, add_pair
from adatad.labels.clock import read_time
from adatad.labels.columns import column_key
from adatad.labels.reading import Reading
from adatad.labels.text_table import Table, TableRow, table_of

BEHAVIOR, TIME, START, STOP = "behavior", ("time", "time_s"), ("start_s", "start"), ("stop_s", "stop")
TELLING = {"observation_id", "behavior_type", "status", "behavioral_category", "media_file_path", "media_file_name"}
"""Columns, two of which beside a behaviour and times show that BORIS wrote a table."""
KNOWN = {BEHAVIOR, *TIME, *START, *STOP, *TELLING, "subject", "modifiers", "comment"}
MAX_PREAMBLE_LINES = 60
"""Lines about the observation that older versions wrote above the header."""
PLAYER = re.compile(r"^\s*player #\d+:\s*", re.IGNORECASE)
Media = list[tuple[str, float | None]]


def is_header(names: Sequence[str]) -> bool:
    """Return whether names are the columns of such a table."""
    keys = {column_key(name) for name in names}
    timed = keys & {*TIME} or (keys & {*START} and keys & {*STOP})
    return BEHAVIOR in keys and bool(timed) and len(keys & TELLING) >= 2


def header_line(text: str) -> int | None:
    """Return the line, from 0, at which such a table begins in a text; None if there is none."""
    for number, line in enumerate(text.split("\n", MAX_PREAMBLE_LINES)[:MAX_PREAMBLE_LINES]):
        if any(is_header([name.strip('" \r') for name in line.split(sign)]) for sign in ",\t;"):
            return number
    return None


def read_boris_export(reading: Reading, text: str) -> None:
    """Read the events of a table in which `header_line` finds a header."""
    lines = text.split("\n")
    begin = header_line(text) or 0
    # Blank lines in the place of the preamble, so that messages name the lines of the file.
    text = "\n".join([""] * begin + lines[begin:])
    table = table_of(text, reading.path, lambda header: len({column_key(name) for name in header} & KNOWN))
    reading.problems += table.problems
    columns = {column_key(name): place for place, name in enumerate(table.header)}
    if any(name in columns for name in START):
        _read_aggregated(reading, table, columns)
    else:
        _read_tabular(reading, table, columns)


def _read_aggregated(reading: Reading, table: Table, columns: dict[str, int]) -> None:
    for row in table.rows:
        media = _media(reading, row, columns)
        start, stop = _event(reading, row, columns, START), _event(reading, row, columns, STOP)
        if start and stop:
            # A point has a turn, and its start alone is looked at.
            turn = "POINT" if start.turn == "POINT" else ""
            add_pair(reading, media, start._replace(turn=turn), stop)


def _read_tabular(reading: Reading, table: Table, columns: dict[str, int]) -> None:
    events: dict[str, list[BehaviorEvent]] = {}
    media: dict[str, Media] = {}
    for row in table.rows:
        event = _event(reading, row, columns, TIME)
        if event:
            found = _media(reading, row, columns)
            name = _field(row, columns, "observation_id") or found[0][0]
            media.setdefault(name, found)
            events.setdefault(name, []).append(event)
    for name, those in events.items():
        add_events(reading, media[name], those)


def _field(row: TableRow, columns: dict[str, int], *names: str) -> str:
    """Return the row's field under the first of the names that is a column; empty if none is."""
    return next((row.fields[columns[name]] for name in names if name in columns), "")


def _event(reading: Reading, row: TableRow, columns: dict[str, int], times: Sequence[str]) -> BehaviorEvent | None:
    """Return the event of a row at the time in one of the columns; None, and a problem, where that is no time."""
    where = f"line {row.line}"
    try:
        offset = _field(row, columns, "time_offset_s", "time_offset")
        seconds = read_time(_field(row, columns, *times), "seconds").value
        seconds -= read_time(offset, "seconds").value if offset else 0.0
    except ValueError as error:
        # Point events have no stop in some versions.
        if times == STOP and _field(row, columns, "behavior_type").upper() == "POINT":
            return _event(reading, row, columns, START)
        reading.problems.append(f"{where}: {times[0]}: expected {error}, got {_field(row, columns, *times)!r}")
        return None
    subject = _field(row, columns, "subject")
    return BehaviorEvent(
        where, seconds, "" if subject == "No focal subject" else subject, _field(row, columns, BEHAVIOR),
        _field(row, columns, "modifiers", "modifier"), _field(row, columns, "comment_start", "comment"),
        _field(row, columns, "behavior_type", "status").upper(),
    )  # fmt: skip


def _media(reading: Reading, row: TableRow, columns: dict[str, int]) -> Media:
    """Return the media of a row's observation with their lengths; the observation's name where it has none."""
    source = _parts(_field(row, columns, "source"))
    named = _parts(_field(row, columns, "media_file_name", "media_file_path", "media_file"))
    # The name alone is that of the event's file; the source lists all that ran one after the other.
    files = source if len(source) > 1 else named or source
    files = files or [_field(row, columns, "observation_id") or reading.path.stem]
    lengths: list[float | None] = []
    for text in _parts(_field(row, columns, "media_duration_s", "total_length")):
        try:
            lengths.append(read_time(text, "seconds").value)
        except ValueError:
            lengths.append(None)
    if len(lengths) != len(files):
        lengths = [None] * len(files)
    for file, length in zip(files, lengths, strict=True):
        reading.video(file, duration_seconds=length)
    return list(zip(files, lengths, strict=True))


def _parts(text: str) -> list[str]:
    return [part for part in (PLAYER.sub("", one).strip() for one in text.split(";")) if part not in ("", "NA")]
