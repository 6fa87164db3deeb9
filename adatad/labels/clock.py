"""Times as people write them: 3.2, "3,2", 3.2s, 3200 ms, 0:03.2, 1:02:03.2, 1:02:03:12 with frames, or frames alone."""

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
TIMECODE = re.compile(
    r"(?P<hours>[0-9]{1,4}):(?P<minutes>[0-5][0-9]):(?P<seconds>[0-5][0-9])(?P<sign>[:;])(?P<frames>[0-9]{2,3})"
)
"""Hours, minutes, seconds, frames. A semicolon says that numbers are left out to keep to the clock."""
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


def timecode_seconds(text: str, fps: float) -> float | None:
    """Return the seconds of a timecode such as 1:02:03:12; None for another text.

    fps: the video's frames a second. At 29.97 a timecode counts 30 frames a second and falls behind the clock, unless
    it is written with a semicolon.
    """
    found = TIMECODE.fullmatch(text.strip())
    if not found:
        return None
    whole = int(found["hours"]) * 3600 + int(found["minutes"]) * 60 + int(found["seconds"])
    if found["sign"] == ";":
        return whole + int(found["frames"]) / fps
    return (whole * round(fps) + int(found["frames"])) / fps
