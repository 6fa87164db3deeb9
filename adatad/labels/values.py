"""Values of annotation files of any form: numbers, names and subsets, and how messages show them."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from adatad.files import shown

MAX_SECONDS = 1e7
"""Longest time, four months: a longer one is a wrong number."""
MAX_FPS = 1e5
MAX_VALUE_CHARACTERS = 120
"""Longest value that a message repeats."""
PLAIN_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?")
# Only names that mean the same in every project.
SUBSETS = {
    "training": "training", "train": "training", "trn": "training", "tr": "training",
    "validation": "validation", "val": "validation", "valid": "validation", "validate": "validation",
    "dev": "validation",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""Names of subsets in annotation files and tables, and the name that is used here."""


def has_control_characters(text: str) -> bool:
    """Return whether a text holds line or page breaks of any kind, tabs, escapes or halves of characters."""
    return not text.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text
    )


def is_visible(text: str) -> bool:
    """Return whether a text has a visible character."""
    # The first character mostly is one, and a generator takes longer: files hold names by the hundred thousand.
    first = text[:1]
    if first and first.isprintable() and not first.isspace():
        return True
    return any(character.isprintable() and not character.isspace() for character in text)


def number(value: Any) -> float | None:
    """Return a number, also from plain text (HACS writes durations so); None for anything else."""
    # What nearly all are, first.
    if type(value) is float:
        return value
    # bool is a subclass of int, and float() also takes "nan", "1_000" and digits of other scripts.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not PLAIN_NUMBER.fullmatch(value.strip()):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def brief(value: Any) -> str:
    """Return a value of a file for an error: on one line, not too long."""
    try:
        text = repr(value)
    # Nested without end, or an integer of thousands of digits, which Python refuses to print.
    except (RecursionError, ValueError):
        return f"{type(value).__name__} without end"
    return shown(text, MAX_VALUE_CHARACTERS)
