"""Instances out of a text table: which column says what, times as people write them, and which rows can't be used.

Times may be 3.2, "3,2", 3.2s, 3200 ms, 0:03.2, 1:02:03.2, or numbers of frames."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adatad.data.annotation_file import SUBSETS
from adatad.data.entry import MAX_FPS, brief, has_control_characters, is_visible, number
from adatad.data.prepare.table import DELIMITERS, Table, TableError, TableRow, read_table
from adatad.files import listed, shown


def _words_in(text: str) -> frozenset[str]:
    return frozenset(text.split())


REQUIRED_ROLES = ("video", "start", "end", "label")
ROLES = (*REQUIRED_ROLES, "duration", "subset", "fps")
NAMES = {
    "video": (
        _words_in(
            "video videos video_name videoname video_file video_filename video_file_name video_id videoid vid "
            "video_path filename file_name file file_path filepath media_file media_file_name media_file_path "
            "youtube_id"
        ),
        _words_in("name path clip clip_id clip_name media movie recording id source"),
    ),
    "label": (
        _words_in(
            "label labels class classes classname class_name class_label label_name action actions action_label "
            "action_name action_class activity activity_label activity_name activity_class behavior behaviour "
            "behavior_name behaviour_name annotation event event_label event_name category category_name "
            "trial_type"
        ),
        _words_in("annotations tag type event_type label_id class_id action_id label_index text value name"),
    ),
    "subset": (_words_in("subset split set partition"), _words_in("phase usage")),
    "fps": (
        _words_in("fps frame_rate framerate frames_per_second video_fps video_frame_rate"),
        _words_in("rate frequency sample_rate sampling_rate"),
    ),
}
"""Column names by role: those that are clear, and those that may be meant where none of the first is there."""
STARTS = _words_in("start begin beginning onset from init starts begins")
ENDS = _words_in("end stop offset to finish ends stops until")
UNITS = {
    "s": "seconds", "sec": "seconds", "secs": "seconds", "second": "seconds", "seconds": "seconds",
    "ms": "milliseconds", "msec": "milliseconds", "msecs": "milliseconds", "millis": "milliseconds",
    "millisecond": "milliseconds", "milliseconds": "milliseconds",
    "min": "minutes", "mins": "minutes", "minute": "minutes", "minutes": "minutes",
    "f": "frames", "frame": "frames", "frames": "frames", "frameno": "frames",
}  # fmt: skip
FRAME_WORDS = _words_in("number no nr idx index id num")
"""Words that may follow "frame"."""
TIME_WORDS = _words_in("time times timestamp timestamps t ts stamp timecode point of the in at position")
CLOCK_FORMS = re.compile(r"ss\.msec|hh:mm:ss(\.(ms|f+))?|h:mm:ss|mm:ss|m:ss", re.IGNORECASE)
"""Forms of times that ELAN and others write behind a column's name."""
JOINED = re.compile(
    r"(?P<t>t|time)?(?P<end>start|begin|onset|end|stop|offset|finish)"
    r"(?P<rest>timestamp|time|seconds|secs|sec|ms|msec|frames|frame)?"
)


class Column(NamedTuple):
    """A column. place: index from 0; name: as found; unit: of its times."""

    place: int
    name: str
    unit: str = "seconds"


def recognized(header: Sequence[str]) -> int:
    """Return how many roles a header's names stand for."""
    return len(_by_role(header))


def columns_of(header: Sequence[str], given: Mapping[str, str], where: str) -> dict[str, Column]:
    """Return the column of each role. given: names by role, which go before guesses; where: the table and its header,
    for errors.

    Raises TableError where a role has no column or several.
    """
    keys = [_key(name) for name in header if name]
    twice = next((name for name in header if name and keys.count(_key(name)) > 1), None)
    if twice is not None:
        raise TableError(f"{where} has the column {shown(twice)!r} twice; keep one of the two")
    chosen = {role: _named(role, name, header, where) for role, name in given.items()}
    taken = {column.place for column in chosen.values()}
    # Named columns are settled; what is left is guessed role by role.
    for role, columns in _by_role(header).items():
        left = [column for column in columns if column.place not in taken]
        # Only frames need a rate; beside times a column named so may be anything.
        is_idle = role == "fps" and not ("start" in chosen and chosen["start"].unit == "frames")
        if role in chosen or not left or is_idle:
            continue
        exact = [column for column in left if _key(column.name) == role]
        # A plain name wins over its variants, but a column "label" beside "class" may be its number or its weight.
        if exact and role != "label":
            left = exact
        if len(left) > 1:
            names = " and ".join(repr(shown(column.name)) for column in left)
            raise TableError(
                f"{where}: {names} can each be the {role}; say which it is: --columns {role}={_quoted(left[0].name)}"
            )
        chosen[role] = left[0]
    # An end says where an instance ends; a duration beside it may be the video's.
    if "end" in chosen:
        chosen.pop("duration", None)
    if "start" in chosen and chosen["start"].unit != "frames":
        chosen.pop("fps", None)
    absent = [role for role in REQUIRED_ROLES if role not in chosen and not (role == "end" and "duration" in chosen)]
    if absent:
        raise TableError(
            f"{where}: no column {', '.join(absent)}; expected a first line like {','.join(REQUIRED_ROLES)} and one "
            f"instance a line; if a column has another name, say so: --columns {absent[0]}=NAME"
        )
    return {role: chosen[role] for role in ROLES if role in chosen}


def _by_role(header: Sequence[str]) -> dict[str, list[Column]]:
    """Return the columns that may have each role, clear names before possible ones."""
    found: dict[str, list[Column]] = {}
    for place, name in enumerate(header):
        timed = _time_column(place, name)
        if timed:
            found.setdefault(timed[0], []).append(timed[1])
    for role, (strong, weak) in NAMES.items():
        # Weak names only where no strong one is there: "name" may be anything beside "video" and "label".
        for names in (strong, weak):
            columns = [Column(place, name) for place, name in enumerate(header) if _key(name) in names]
            # A column of times never plays another role.
            others = {column.place for other in found.values() for column in other}
            columns = [column for column in columns if column.place not in others]
            if columns:
                found.setdefault(role, columns)
                break
    return found


def _time_column(place: int, name: str) -> tuple[str, Column] | None:
    """Return the role (start, end or duration) and unit of a column of times; None for another column."""
    words, unit = [], "seconds"
    for word in _words(CLOCK_FORMS.sub(" seconds ", name)):
        # "starttime" and "tstart" are one word to the splitter.
        joined = JOINED.fullmatch(word)
        words += [part for part in (joined["t"], joined["end"], joined["rest"]) if part] if joined else [word]
    units = [UNITS[word] for word in words if word in UNITS]
    if units:
        unit = units[0]
    # "start frame time" and the like: too unclear to guess.
    if len(set(units)) > 1:
        return None
    rest = [word for word in words if word not in UNITS and word not in TIME_WORDS]
    if unit == "frames":
        rest = [word for word in rest if word not in FRAME_WORDS]
    if len(rest) != 1 or not words:
        return None
    for role, names in (("start", STARTS), ("end", ENDS), ("duration", {"duration"})):
        if rest[0] in names:
            return role, Column(place, name, unit)
    return None


def unit_of(name: str) -> str:
    """Return the unit in a column's name; seconds where it has none."""
    units = [UNITS[word] for word in _words(CLOCK_FORMS.sub(" seconds ", name)) if word in UNITS]
    return units[0] if units else "seconds"


def _named(role: str, name: str, header: Sequence[str], where: str) -> Column:
    if role not in ROLES:
        raise TableError(f"--columns {shown(role)}: expected one of {', '.join(ROLES)}")
    places = [place for place, there in enumerate(header) if there == name]
    places = places or [place for place, there in enumerate(header) if _key(there) == _key(name)]
    if len(places) != 1:
        raise TableError(
            f"{where}: --columns {role}={_quoted(name)}: {'no' if not places else 'more than one'} such column"
        )
    return Column(places[0], header[places[0]], unit_of(header[places[0]]))


def _key(name: str) -> str:
    return "_".join(_words(name))


def _words(name: str) -> list[str]:
    """Split a name into lower-case words, without quotes and brackets; "startTime" is two."""
    plain = unicodedata.normalize("NFKC", name)
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", plain)
    return [word for word in re.split(r"[\W_]+", apart.casefold()) if word]


def _quoted(name: str) -> str:
    return f'"{shown(name)}"' if re.search(r"\W", name) else name


SECONDS_BY_UNIT = {"seconds": 1.0, "milliseconds": 0.001, "minutes": 60.0}
UNITS_BEHIND = {"s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 0.001, "msec": 0.001, "min": 60.0}
NUMBER = re.compile(r"([+-]?(?:[0-9]{1,15}(?:[.,][0-9]{0,15})?|[.,][0-9]{1,15})(?:[eE][+-]?[0-9]{1,2})?) *([a-z]{0,7})")
CLOCK = re.compile(
    r"(?:0 days? )?(?:(?P<hours>[0-9]{1,4}):(?=[0-5][0-9]:))?(?P<minutes>[0-9]{1,4}):"
    r"(?P<seconds>[0-5][0-9](?:[.,][0-9]{0,9})?)"
)
THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}[.,][0-9]{3}")
"""A number whose sign may be a decimal sign or divide thousands."""


class Time(NamedTuple):
    """A time. value: seconds, or a frame number; sign: its decimal sign; is_ambiguous: the sign may divide
    thousands."""

    value: float
    sign: str
    is_ambiguous: bool


def read_time(text: str, unit: str) -> Time:
    """Read the time in a field.

    unit: "seconds", "milliseconds", "minutes" or "frames", for numbers without a unit of their own. Raises ValueError
    with what was expected.
    """
    # Spreadsheets write other spaces, such as the no-break space.
    text = " ".join(text.split()).lower()
    clock = CLOCK.fullmatch(text)
    if clock and unit != "frames":
        seconds = float(clock["seconds"].replace(",", "."))
        whole = int(clock["hours"] or 0) * 3600 + int(clock["minutes"]) * 60
        # Rounded to a nanosecond: the sum's rounding error must not show in the file that is written.
        return Time(round(whole + seconds, 9), _sign(text), is_ambiguous=False)
    found = NUMBER.fullmatch(text)
    if not found or (found[2] and (unit == "frames" or found[2] not in UNITS_BEHIND)):
        raise ValueError(_expected(unit))
    value = float(found[1].replace(",", "."))
    if unit == "frames":
        if not value.is_integer():
            raise ValueError(_expected(unit))
        return Time(value, "", is_ambiguous=False)
    factor = UNITS_BEHIND[found[2]] if found[2] else SECONDS_BY_UNIT[unit]
    # Divided, not multiplied, by 1000: 3200 ms are then 3.2 s to the last bit.
    seconds = value / 1000 if factor == 0.001 else value * factor
    return Time(seconds, _sign(found[1]), bool(THOUSANDS.fullmatch(found[1])))


def _sign(text: str) -> str:
    return next((character for character in text if character in ".,"), "")


def _expected(unit: str) -> str:
    return "whole numbers of frames" if unit == "frames" else f"{unit}, or m:ss or h:mm:ss"


class Instance(NamedTuple):
    """A row of the table. video: as the table names it; start, end: in `unit`, seconds or frames; subset: empty if
    unknown; fps: rate at which frames are counted, 0 if unknown."""

    line: int
    video: str
    start: float
    end: float
    label: str
    subset: str
    unit: str = "seconds"
    fps: float = 0.0


def read_instances(path: Path, given: Mapping[str, str]) -> tuple[list[Instance], list[str], list[str]]:
    """Read a table of instances: the valid rows, sentences about what was guessed, and what is wrong with the other
    rows.

    given: column names by role, as in `columns_of`. Raises TableError for what is no such table.
    """
    table = read_table(path, lambda header: recognized(header) + sum(name in header for name in given.values()))
    columns = columns_of(table.header, given, f"{path}: the header {table.header_shown()}")
    if not table.rows and not table.problems:
        raise TableError(f"{path}: no rows; expected one instance a line below the header {table.header_shown()}")
    instances, wrong, times = [], list(table.problems), []
    for row in table.rows:
        try:
            instance, read = _instance(row, columns)
        except ValueError as error:
            wrong.append(f"line {row.line}: {error}")
            continue
        instances.append(instance)
        # Collected over all rows: whether "3.200" is 3.2 or 3200 shows only in the others.
        times += [(row.line, time) for time in read]
    wrong += _decimal_problems(times, table)
    return instances, list(_notes(table, columns, times)), wrong


def _instance(row: TableRow, columns: Mapping[str, Column]) -> tuple[Instance, list[Time]]:
    """Read an instance and its times from a row. Raises ValueError with what is wrong."""

    def field(role: str) -> str:
        """Return the row's field of a role; empty where the table has no such column."""
        return row.fields[columns[role].place] if role in columns else ""

    # NFC: accents as one character, so that one class typed in two ways stays one.
    label = unicodedata.normalize("NFC", field("label"))
    video, subset = field("video"), field("subset").casefold()
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
