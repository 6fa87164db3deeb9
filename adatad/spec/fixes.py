"""Fixes that the messages of checks propose: settings to paste, and numbers that fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from adatad.spec.document import Key

PLAIN = re.compile(r"[a-z]+[0-9]?")
"""Values that neither YAML nor a shell wants quoted."""


@dataclass(frozen=True)
class Fixable:
    """A problem with ways to fix it, each of them settings as `instead` takes them, the usual way first."""

    text: str
    ways: tuple[dict[str, object], ...]

    def message(self, given: Iterable[Key]) -> str:
        """Return the problem and one way to fix it: the first that leaves alone the keys that the user has just given,
        the usual one if none does."""
        given = [tuple(map(str, key)) for key in given]
        # Who has just set memory.policy=block wants that; changing the other key is then the better advice.
        free = [way for way in self.ways if not any(_touches(name, key) for name in way for key in given)]
        return f"{self.text}; {instead(**(free or self.ways)[0])}"


def fixed_by(text: str, *settings: dict[str, object]) -> Fixable:
    """Return a problem with settings of which each fixes it."""
    return Fixable(text, settings)


def _touches(name: str, key: tuple[str, ...]) -> bool:
    """Return whether one of the two keys is the other, or inside it."""
    parts = tuple(name.split("__"))
    # A section's fix touches each key in it, and a key's fix the section that was given as a whole.
    length = min(len(parts), len(key))
    return parts[:length] == key[:length]


def instead(**settings: object) -> str:
    """Return the argument that sets keys, to be pasted: `--set a.b=c` for a__b=c."""
    words = []
    for key, value in settings.items():
        # JSON is YAML too, and quotes what YAML would take for something else.
        text = value if isinstance(value, str) and PLAIN.fullmatch(value) else json.dumps(value)
        # One word a setting: lists are pasted without quotes.
        words.append(f"{key.replace('__', '.')}={text}".replace(" ", ""))
    return f"--set {' '.join(words)}"


def multiple(value: int, step: int) -> int:
    """Return the least multiple of `step` that is no smaller than `value`."""
    return -(-value // step) * step


def divisor(value: int, near: int) -> int:
    """Return the divisor of `value` that is nearest to a number."""
    # Divisors come in pairs around the square root, so half of them is enough to look for.
    low = [n for n in range(1, math.isqrt(value) + 1) if value % n == 0]
    return min((*low, *(value // n for n in low)), key=lambda n: abs(n - near))
