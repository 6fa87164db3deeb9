"""The valid part of a spec that has errors: what can be checked beside them, so that all is reported at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from adatad.spec.document import Key
from adatad.spec.keys import fields_at, leaves, meant
from adatad.spec.opentad import renamed
from adatad.spec.schema import Spec
from adatad.spec.validation_errors import MAX_ERRORS, UNKNOWN_KEY, key_of_error

MAX_ROUNDS = 8
"""Validations that are tried: what is taken out may leave something incomplete, as an entry without its rate."""


def validate_partly(values: dict[str, Any]) -> tuple[Spec | None, set[Key]]:
    """Return the spec without its wrong keys and values, and the keys whose values are unknown because of these.

    The spec is None if nothing can be saved.
    """
    # A copy: the caller's messages still quote the original values.
    values, invalid = copy.deepcopy(values), set()
    for _ in range(MAX_ROUNDS):
        try:
            return Spec.model_validate(values), invalid
        except ValidationError as caught:
            errors = caught.errors(include_url=False)
            if len(errors) > MAX_ERRORS:
                # That is no spec with a slip in it.
                return None, invalid
        # All places first: what is taken out below would move them.
        places = [key_of_error(error, values)[0] for error in errors]
        for error, key in zip(errors, places, strict=True):
            invalid.update(_leave_out(values, key, error["type"]))
    return None, invalid


def _leave_out(values: dict[str, Any], key: Key, kind: str) -> set[Key]:
    """Take a wrong value out, or put one in that is missing; returns the keys that are invalid then."""
    container = _at(values, key[:-1])
    # What a mistyped key was meant to set isn't at its default by intent, so checks mustn't judge that.
    if kind in UNKNOWN_KEY:
        return set(_keys_meant(key, container.pop(key[-1], None)))
    in_list = next((index for index, part in enumerate(key) if isinstance(part, int)), None)
    if kind == "missing" and in_list is None:
        # A stand-in, so that validation goes on; as an invalid key it is read by no check.
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


def _keys_meant(key: Key, value: Any) -> Iterator[Key]:
    """Yield the keys that somebody may have meant who wrote `key`, which doesn't exist, and what stands in it."""
    inner = [leaf for leaf in leaves(key, value) if leaf != key and renamed(leaf)]
    for leaf in inner:
        yield from map(_key_of, meant(leaf))
    for target in map(_key_of, [] if inner else meant(key)):
        if isinstance(value, dict) and fields_at(target):
            for name, inside in value.items():
                yield from _keys_meant((*target, name), inside)
        else:
            yield target


def _key_of(text: str) -> Key:
    """Return the key of a text that `meant` returned."""
    return tuple(int(part) if part.isdigit() else part for part in text.partition("=")[0].split("."))


class InvalidKeyReadError(Exception):
    """A check has read a value that is known to be wrong: what it concludes says nothing new."""


class ValidView:
    """A section whose valid values can be read; those of `invalid` keys raise InvalidKeyReadError."""

    def __init__(self, section: BaseModel, invalid: set[Key], at: Key = ()):
        self._section, self._invalid, self._at = section, invalid, at

    def __getattr__(self, name: str) -> Any:
        key, value = (*self._at, name), getattr(self._section, name)
        if key not in self._invalid and isinstance(value, BaseModel):
            return ValidView(value, self._invalid, key)
        # A value counts as invalid with anything inside it.
        if any(invalid[: len(key)] == key for invalid in self._invalid):
            raise InvalidKeyReadError
        return value
