"""What pydantic says is wrong with a spec, as lines for its author: where it came from, the key, what was expected."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Union

from pydantic import BaseModel

from adatad.spec.document import Document, Key, holds
from adatad.spec.schema import Spec

UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
"""pydantic's names of an error that is about a key, not its value."""


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def explain(errors: Sequence[dict[str, Any]], document: Document, path: Path) -> list[str]:
    """pydantic's errors as lines, one for each wrong value: of a union's branches, the one that was meant speaks."""
    groups: dict[int | Key, list[tuple[Key, dict[str, Any]]]] = {}
    for number, error in enumerate(errors):
        key, union = place(error, document.values)
        groups.setdefault(number if union is None else union, []).append((key, error))
    return [line for group in groups.values() for line in _lines(group, document, path)]


def _lines(group: Sequence[tuple[Key, dict[str, Any]]], document: Document, path: Path) -> list[str]:
    """One error, or those of all branches of a union."""
    if len(group) > 1:
        # Errors further inside are of a branch that fits in shape: it is the one that was meant.
        shallow = min(len(key) for key, _ in group)
        inside = [(key, error) for key, error in group if len(key) > shallow]
        if not inside:
            key, error = next(((key, error) for key, error in group if error["type"] != "tuple_type"), group[0])
            return [_line(error, key, document, path, ", or a list")]
        group = inside
    return [_line(error, key, document, path) for key, error in group]


def place(error: dict[str, Any], values: Any) -> tuple[Key, Key | None]:
    """The key that an error is about, and the key of the union that it is in, if in any.

    pydantic puts the name of a union's branch into its path ("str", "tuple[int, ...]"), which is no part of the key.
    """
    key: list[str | int] = []
    union = None
    for index, part in enumerate(error["loc"]):
        if holds(values, part):
            values = values[part]
        elif error["type"] != "missing" or index < len(error["loc"]) - 1:
            union = tuple(key) if union is None else union
            continue
        key.append(part)
    return tuple(key), union


def _line(error: dict[str, Any], key: Key, document: Document, path: Path, more: str = "") -> str:
    """One error; `more` is expected besides."""
    where = f"{document.source(key) or path}: {dotted(key)}"
    got = repr(error["input"])
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            return f"{where}: no such key{_hint(str(key[-1]), fields_at(key[:-1]))}"
        case "missing":
            source = document.source(key[:-1]) if key[:-1] else None
            return f"{source or path}: {dotted(key)}: is missing and has no default"
        case "literal_error":
            allowed = error["ctx"]["expected"]
            words = [word.strip("'") for word in allowed.replace(" or ", ", ").split(", ")]
            return f"{where}: expected {allowed}{more}, got {got}{_hint(str(error['input']), words)}"
        case "model_type":
            return f"{where}: expected a section with keys of its own, got {got}"
        case "tuple_type":
            return f"{where}: expected a list, got {got}"
        case _:
            return f"{where}: {error['msg']}{more}, got {got}"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return close[0] if close else None


def _hint(word: str, choices: Iterable[str]) -> str:
    close = nearest(word, choices)
    if close:
        return f"; did you mean {close}?"
    return f"; there are {', '.join(choices)}" if choices else ""


def fields_at(key: Key) -> dict[str, Any]:
    """The fields of the section at a key; none if there is no section."""
    section: Any = Spec
    for part in key:
        if isinstance(part, int):
            continue
        section = _section_in(section.model_fields[part].annotation) if part in section.model_fields else None
        if section is None:
            return {}
    return section.model_fields


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as tuple[ParameterGroup, ...] or BackboneOptimizerSpec | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType, tuple, typing.Annotated):
        return next((found for part in typing.get_args(annotation) if (found := _section_in(part))), None)
    return None
