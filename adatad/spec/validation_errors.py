"""pydantic's errors in words: one line for each wrong value of a spec, with its place and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adatad.spec.document import Document, Key, holds
from adatad.spec.keys import MAX_UNKNOWN, dotted, fields_at, leaves, meant
from adatad.spec.opentad import renamed
from adatad.spec.text import cut, nearest, short

UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
"""pydantic's names of an error that is about a key, not its value."""
MAX_ERRORS = 200
"""Errors of pydantic's that are put into words; more of them are counted."""


def error_lines(errors: Sequence[dict[str, Any]], document: Document, path: Path) -> list[str]:
    """Return pydantic's errors as lines, one for each wrong value; of a union's branches, that of the one meant."""
    groups: dict[int | Key, list[tuple[Key, dict[str, Any]]]] = {}
    unknown = 0
    # One group a union, by its key; an error outside of any is a group by its number.
    for number, error in enumerate(errors[:MAX_ERRORS]):
        # Counted apart: a file of the wrong kind has hundreds of unknown keys, which would hide the rest.
        unknown += error["type"] in UNKNOWN_KEY
        # A file that is no spec has nothing but such keys, and what it has may be a secret.
        if error["type"] not in UNKNOWN_KEY or unknown <= MAX_UNKNOWN:
            key, union = key_of_error(error, document.values)
            groups.setdefault(number if union is None else union, []).append((key, error))
    lines = [line for group in groups.values() for line in _lines(group, document, path)]
    left = max(0, unknown - MAX_UNKNOWN) + max(0, len(errors) - MAX_ERRORS)
    return [*lines, f"{cut(path)}: {left} more of that kind"] if left else lines


def _lines(group: Sequence[tuple[Key, dict[str, Any]]], document: Document, path: Path) -> list[str]:
    """Return the line on one error, or on those of all branches of a union."""
    if len(group) > 1:
        # Errors further inside are of a branch that fits in shape: it is the one that was meant.
        shallow = min(len(key) for key, _ in group)
        inside = [(key, error) for key, error in group if len(key) > shallow]
        if not inside:
            key, error = next(((key, error) for key, error in group if error["type"] != "tuple_type"), group[0])
            return [_line(error, key, document, path, ", or a list")]
        group = inside
    return [_line(error, key, document, path) for key, error in group]


def key_of_error(error: dict[str, Any], values: Any) -> tuple[Key, Key | None]:
    """Return the key that an error is about, and the key of the union that it is in, if in any.

    pydantic puts the name of a union's branch into its path ("str", "tuple[int, ...]"), which is no part of the key.
    """
    key: list[str | int] = []
    union = None
    for index, part in enumerate(error["loc"]):
        # A part that is in the values is of the key; any other is a branch's name, but for a key that is missing.
        if holds(values, part):
            values = values[part]
        elif error["type"] != "missing" or index < len(error["loc"]) - 1:
            union = tuple(key) if union is None else union
            continue
        key.append(part)
    return tuple(key), union


def _line(error: dict[str, Any], key: Key, document: Document, path: Path, more: str = "") -> str:
    """Return the line on one error. more: what is expected besides, for its end."""
    place = document.source(key) or cut(path)
    where = f"{place}: {dotted(key)}"
    got = short(error["input"])
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            # A section of OpenTAD's: what is inside says more than the section's name.
            inner = [leaf for leaf in leaves(key, error["input"]) if leaf != key and renamed(leaf)]
            if len(inner) > 1:
                here = ", ".join(f"{dotted(leaf)} is {meant(leaf)[0]} here" for leaf in inner[:MAX_UNKNOWN])
                return f"{where}: no such key; {here}"
            key = inner[0] if inner else key
            return f"{place}: {dotted(key)}: no such key{_hint_of_key(key)}"
        case "missing":
            source = document.source(key[:-1]) if key[:-1] else None
            return f"{source or cut(path)}: {dotted(key)}: is missing and has no default"
        case "literal_error":
            allowed = error["ctx"]["expected"]
            # pydantic's text: 'a', 'b' or 'c'.
            words = [word.strip("'") for word in allowed.replace(" or ", ", ").split(", ")]
            return f"{where}: expected {allowed}{more}, got {got}{_hint(str(error['input']), words)}"
        case "model_type":
            return f"{where}: expected a section with keys of its own, got {got}"
        case "tuple_type":
            return f"{where}: expected a list, got {got}"
        case "string_type" if isinstance(error["input"], dict):
            return f"{where}: {error['msg']}{more}, got {got}; quote text that begins with a brace"
        case _:
            return f"{where}: {error['msg']}{more}, got {got}"


def _hint(word: str, choices: Iterable[str]) -> str:
    """Return the end of a message about a word that is none of the choices."""
    close = nearest(word, choices)
    if close:
        return f"; did you mean {close}?"
    return f"; there are {', '.join(choices)}" if choices else ""


def _hint_of_key(key: Key) -> str:
    """Return the end of a message about a key that doesn't exist."""
    found = meant(key)
    if not found:
        section = dotted(key[:-1]) if key[:-1] else "a spec"
        fields = fields_at(key[:-1])
        return f"; {section} has {', '.join(fields)}" if fields else ""
    return f"; did you mean {' or '.join([', '.join(found[:-1]), found[-1]] if found[1:] else found)}?"
