"""What the messages of checks propose: settings to paste, and numbers that fit."""

from __future__ import annotations

import json
import math


def instead(**settings: object) -> str:
    """What to write, to be pasted: `--set a.b=c`, of a__b=c."""
    pairs = (f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items())
    return "--set " + " ".join(pair.replace(" ", "") for pair in pairs)


def multiple(value: int, step: int) -> int:
    """The least multiple that is no smaller."""
    return -(-value // step) * step


def divisor(value: int, near: int) -> int:
    """The divisor of `value` that is nearest to a number."""
    low = [n for n in range(1, math.isqrt(value) + 1) if value % n == 0]
    return min((*low, *(value // n for n in low)), key=lambda n: abs(n - near))
