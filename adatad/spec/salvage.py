"""What can still be checked of a spec in which some keys or values are wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from adatad.spec.document import Key
from adatad.spec.explain import MAX_ERRORS, UNKNOWN_KEY, fields_at, leaves, meant, place
from adatad.spec.opentad import renamed
from adatad.spec.schema import Spec

ROUNDS = 8
"""What is left out may leave something else incomplete: an entry without its rate, a list without its entry."""


def salvage(values: dict[str, Any]) -> tuple[Spec | None, set[Key]]:
    """The spec that is left without its wrong keys and values, and the keys of which nobody knows what was meant."""
    values, doubtful = copy.deepcopy(values), set()
    for _ in range(ROUNDS):
        try:
            return Spec.model_validate(values), doubtful
        except ValidationError as caught:
            errors = caught.errors(include_url=False)
            if len(errors) > MAX_ERRORS:
                # That is no spec with a slip in it.
                return None, doubtful
        # All places first: what is taken out below would move them.
        places = [place(error, values)[0] for error in errors]
        for error, key in zip(errors, places, strict=True):
            doubtful.update(_leave_out(values, key, error["type"]))
    return None, doubtful


def _leave_out(values: dict[str, Any], key: Key, kind: str) -> set[Key]:
    """Take a wrong value out, or put one in that is missing; returns the keys that are doubtful then."""
    container = _at(values, key[:-1])
    if kind in UNKNOWN_KEY:
        return set(_meant(key, container.pop(key[-1], None)))
    in_list = next((index for index, part in enumerate(key) if isinstance(part, int)), None)
    if kind == "missing" and in_list is None:
        container[key[-1]] = {} if fields_at(key) else ""
    elif in_list is not None and (kind == "missing" or not isinstance(container, dict)):
        # A list without one of its items says something else: it goes as a whole.
        key = key[:in_list]
        _at(values, key[:-1]).pop(key[-1], None)
    else:
        container.pop(key[-1], None)
    return {key}


def _at(values: Any, key: Key) -> Any:
    for part in key:
        values = values.get(part, {}) if isinstance(values, dict) else values[part]
    return values


def _meant(key: Key, value: Any) -> Iterator[Key]:
    """The keys that somebody may have meant who wrote `key`, which doesn't exist, and what stands in it."""
    inner = [leaf for leaf in leaves(key, value) if leaf != key and renamed(leaf)]
    for leaf in inner:
        yield from map(_key_of, meant(leaf))
    for target in map(_key_of, [] if inner else meant(key)):
        if isinstance(value, dict) and fields_at(target):
            for name, inside in value.items():
                yield from _meant((*target, name), inside)
        else:
            yield target


def _key_of(text: str) -> Key:
    return tuple(int(part) if part.isdigit() else part for part in text.partition("=")[0].split("."))


class DoubtError(Exception):
    """A doubtful value was read: what follows from it is no news."""


class Undoubted:
    """A section through which all can be read that isn't doubtful; what is raises DoubtError."""

    def __init__(self, section: BaseModel, doubtful: set[Key], at: Key = ()):
        self._section, self._doubtful, self._at = section, doubtful, at

    def __getattr__(self, name: str) -> Any:
        key, value = (*self._at, name), getattr(self._section, name)
        if key not in self._doubtful and isinstance(value, BaseModel):
            return Undoubted(value, self._doubtful, key)
        if any(doubtful[: len(key)] == key for doubtful in self._doubtful):
            raise DoubtError
        return value
