"""Types for argparse: numbers within bounds, sizes of memory with units, time limits of Slurm."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from adatad.files import shown

UNITS = {"": 1.0, "g": 1.0, "gb": 1.0, "gib": 1.0, "m": 1 / 1024, "mb": 1 / 1024, "mib": 1 / 1024, "t": 1024.0,
         "tb": 1024.0, "tib": 1024.0}  # fmt: skip
MAX_GIB = 1e6
MAX_SHOWN = 40
"""Characters of a value that an error repeats."""
# sbatch's forms: minutes, minutes:seconds, hours:minutes:seconds, and days in front of hours.
TIME_LIMIT = re.compile(
    r"[0-9]{1,7}(:[0-9]{1,2}){0,2}|[0-9]{1,5}-[0-9]{1,2}(:[0-9]{1,2}){0,2}|infinite|unlimited", re.I
)


def number(least: float, most: float) -> Callable[[str], float]:
    """Return an argparse type: a number from `least` to `most`."""

    def read(text: str) -> float:
        """Read the number. Raises ArgumentTypeError, whose text argparse prints."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # fails the comparison below, as "nan" itself does
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected a number from {least:g} to {most:g}, got {shown(text, MAX_SHOWN)!r}"
            )
        return value

    return read


def gib(text: str) -> float:
    """Read memory in GiB from "24", "24GB", "24 GiB" or "24576MB"; an argparse type."""
    # GB counts as GiB: the memory of GPUs is sold in GB, and is GiB.
    form = re.fullmatch(r"([0-9.]{1,12}(?:e[0-9]{1,2})?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    try:
        value = float(form[1]) * UNITS[form[2].lower()]
    except (TypeError, ValueError, KeyError):
        value = math.nan
    if not 0 < value <= MAX_GIB:
        raise argparse.ArgumentTypeError(f"expected a size such as 24, 24GB or 24576MB, got {shown(text, MAX_SHOWN)!r}")
    return value


def time_limit(text: str) -> str:
    """Check a time limit for sbatch; an argparse type."""
    if not TIME_LIMIT.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "expected minutes, hours:minutes:seconds or days-hours, such as 24:00:00 or 2-12, "
            f"got {shown(text, MAX_SHOWN)!r}"
        )
    return text
