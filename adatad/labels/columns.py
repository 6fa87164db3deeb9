"""Which column of a table says what, by its name: video, start, end, label and others, and the unit of times."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adatad.files import shown
from adatad.labels.text_table import TableError


def _words_in(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A duration may stand for the end; the others are optional.
REQUIRED_ROLES = ("video", "start", "end", "label")
ROLES = (*REQUIRED_ROLES, "duration", "subset", "fps", "score")
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
    "score": (_words_in("score confidence probability"), frozenset()),
}
"""Column names by role: those that are clear, and those that may be meant where none of the first is there."""
STARTS = _words_in("start begin beginning onset from init starts begins")
ENDS = _words_in("end stop offset to finish ends stops until")
# By the words of a column's name. "m" isn't there: metres, minutes and months are all written so.
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
# Names without a border between words: tstart, starttime, stopms.
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


def columns_of(
    header: Sequence[str], given: Mapping[str, str], where: str, required: Sequence[str] = REQUIRED_ROLES
) -> dict[str, Column]:
    """Return the column of each role. given: names by role, which go before guesses; where: the table and its header,
    for errors; required: roles that must have one.

    Raises TableError where a role has no column or several.
    """
    keys = [column_key(name) for name in header if name]
    # Compared as keys: "Start" and "start " are one column to whoever wrote them.
    twice = next((name for name in header if name and keys.count(column_key(name)) > 1), None)
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
        exact = [column for column in left if column_key(column.name) == role]
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
    absent = [role for role in required if role not in chosen and not (role == "end" and "duration" in chosen)]
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
            columns = [Column(place, name) for place, name in enumerate(header) if column_key(name) in names]
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
    # After splitting: "start_ms" and "Start (ms)" give the same words.
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
    places = places or [place for place, there in enumerate(header) if column_key(there) == column_key(name)]
    if len(places) != 1:
        raise TableError(
            f"{where}: --columns {role}={_quoted(name)}: {'no' if not places else 'more than one'} such column"
        )
    return Column(places[0], header[places[0]], unit_of(header[places[0]]))


def column_key(name: str) -> str:
    """Return a column's name in lower case, its words joined by underlines: "Start (s)" is "start_s"."""
    return "_".join(_words(name))


def _words(name: str) -> list[str]:
    """Split a name into lower-case words, without quotes and brackets; "startTime" is two."""
    plain = unicodedata.normalize("NFKC", name)
    # A border between a small letter and a capital one.
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", plain)
    return [word for word in re.split(r"[\W_]+", apart.casefold()) if word]


def _quoted(name: str) -> str:
    return f'"{shown(name)}"' if re.search(r"\W", name) else name
