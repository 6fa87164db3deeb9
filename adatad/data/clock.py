"""Times as tables write them: 3.2, "3,2", 3.2s, 3200 ms, 0:03.2, 1:02:03.2, or numbers of frames."""

from __future__ import annotations

import re
from typing import NamedTuple

SECONDS_BY_UNIT = {"seconds": 1.0, "milliseconds": 0.001, "minutes": 60.0}
UNITS_BEHIND = {"s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 0.001, "msec": 0.001, "min": 60.0}
NUMBER = re.compile(r"([+-]?(?:[0-9]{1,15}(?:[.,][0-9]{0,15})?|[.,][0-9]{1,15})(?:[eE][+-]?[0-9]{1,2})?) *([a-z]{0,7})")
CLOCK = re.compile(
    r"(?:0 days? )?(?:(?P<hours>[0-9]{1,4}):(?=[0-5][0-9]:))?(?P<minutes>[0-9]{1,4}):"
    r"(?P<seconds>[0-5][0-9](?:[.,][0-9]{0,9})?)"
)
THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}[.,][0-9]{3}")
"""A number whose sign may stand for a decimal or for thousands."""


class Time(NamedTuple):
    """value: seconds, or the number of a frame; sign: the decimal sign that was written; is_ambiguous: it may as well
    divide thousands."""

    value: float
    sign: str
    is_ambiguous: bool


def read_time(text: str, unit: str) -> Time:
    """The time that a field holds. unit: "seconds", "milliseconds", "minutes" or "frames", of numbers without their
    own. Raises ValueError with what was expected."""
    # Blanks of other kinds come from spreadsheets.
    text = " ".join(text.split()).lower()
    clock = CLOCK.fullmatch(text)
    if clock and unit != "frames":
        seconds = float(clock["seconds"].replace(",", "."))
        whole = int(clock["hours"] or 0) * 3600 + int(clock["minutes"]) * 60
        # To a nanosecond: what is added must not be seen in what is written.
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
    # Divided, not multiplied: 3200 ms are 3.2 s to the last bit.
    seconds = value / 1000 if factor == 0.001 else value * factor
    return Time(seconds, _sign(found[1]), bool(THOUSANDS.fullmatch(found[1])))


def _sign(text: str) -> str:
    return next((character for character in text if character in ".,"), "")


def _expected(unit: str) -> str:
    return "whole numbers of frames" if unit == "frames" else f"{unit}, or m:ss or h:mm:ss"
