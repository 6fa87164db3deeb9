"""What is wrong with a spec, in words; what can still be checked of it; and what a key means."""

from __future__ import annotations

import copy
import json
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Union

import yaml
from pydantic import BaseModel, ValidationError

from adatad.errors import UserError
from adatad.spec.document import Document, Key, holds
from adatad.spec.experiments import CONFIGS
from adatad.spec.opentad import WORDS, renamed
from adatad.spec.schema import Spec
from adatad.spec.text import MAX_WORD, cut, cut_key, nearest, short

UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
"""pydantic's names of an error that is about a key, not its value."""


MAX_ERRORS = 200
"""Of pydantic's that are looked at."""
MAX_UNKNOWN = 5
"""Keys that don't exist of which each gets a line."""
SLIP = 0.6
"""Likeness from which a word is taken for another that was mistyped."""
MAX_SHIPPED = 8
"""Shipped files that set a key of which each gets a line."""
TYPE_NAMES = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null"}
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C reads all shipped specs in a tenth of the time."""
MAX_LEVELS = 8
"""Of an unknown section that are looked into."""


def dotted(key: Key) -> str:
    return ".".join(cut_key(str(part)) for part in key)


def explain(errors: Sequence[dict[str, Any]], document: Document, path: Path) -> list[str]:
    """pydantic's errors as lines, one for each wrong value: of a union's branches, the one that was meant speaks."""
    groups: dict[int | Key, list[tuple[Key, dict[str, Any]]]] = {}
    unknown = 0
    for number, error in enumerate(errors[:MAX_ERRORS]):
        unknown += error["type"] in UNKNOWN_KEY
        # A file that is no spec has nothing but such keys, and what it has may be a secret.
        if error["type"] not in UNKNOWN_KEY or unknown <= MAX_UNKNOWN:
            key, union = place(error, document.values)
            groups.setdefault(number if union is None else union, []).append((key, error))
    lines = [line for group in groups.values() for line in _lines(group, document, path)]
    left = max(0, unknown - MAX_UNKNOWN) + max(0, len(errors) - MAX_ERRORS)
    return [*lines, f"{cut(path)}: {left} more of that kind"] if left else lines


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
    """Return the key that an error is about, and the key of the union that it is in, if in any.

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
    place = document.source(key) or cut(path)
    where = f"{place}: {dotted(key)}"
    got = short(error["input"])
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
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
    close = nearest(word, choices)
    if close:
        return f"; did you mean {close}?"
    return f"; there are {', '.join(choices)}" if choices else ""


def _hint_of_key(key: Key) -> str:
    found = meant(key)
    if not found:
        section = dotted(key[:-1]) if key[:-1] else "a spec"
        fields = fields_at(key[:-1])
        return f"; {section} has {', '.join(fields)}" if fields else ""
    return f"; did you mean {' or '.join([', '.join(found[:-1]), found[-1]] if found[1:] else found)}?"


def leaves(key: Key, value: Any) -> Iterator[Key]:
    """Yield the keys of all single values at a key, some first ones of many, and of sections that OpenTAD has."""
    if isinstance(value, dict) and value and len(key) < MAX_LEVELS and not renamed(key):
        for name, inner in list(value.items())[:MAX_UNKNOWN]:
            yield from leaves((*key, name), inner)
    else:
        yield key


def meant(key: Key) -> list[str]:
    """Return the keys that somebody may have meant who wrote `key`, which doesn't exist, most likely ones first: as
    "optimizer.lr", or with a value where the word was for another kind of value, as "memory.policy=block"."""
    word, section = str(key[-1]), key[:-1]
    if len(word) > MAX_WORD:
        return []
    same = word.lower().replace("-", "_")
    here = fields_at(section)
    if same in here:
        return [dotted((*section, same))]
    if entry := renamed(key):
        inside = fields_at(tuple(entry.here.split("."))) if entry.there.endswith(".*") else {}
        if close := nearest(same, inside, SLIP):
            return [f"{entry.here}.{close}"]
        return [f"{entry.here}={entry.value}" if entry.said else entry.here]
    target = WORDS.get(same)
    if target:
        last = target.rpartition(".")[2]
        return [dotted((*section, last)) if last in here else target]
    elsewhere = [known for known in all_keys() if known.rpartition(".")[2] == same]
    if elsewhere:
        return sorted(elsewhere, key=lambda known: known.count("."))[:3]
    if close := nearest(word, here, SLIP):
        return [dotted((*section, close))]
    words = {known.rpartition(".")[2]: known for known in all_keys()}
    close = nearest(same, words, cutoff=0.8)
    return [words[close]] if close else []


@cache
def all_keys(section: Key = ()) -> tuple[str, ...]:
    """Every key of a spec that can be something else than a section, an entry of a list of sections as 0."""
    found: list[str] = []
    for name, field in fields_at(section).items():
        key = (*section, name)
        inside = fields_at(key)
        kinds = typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
        in_list = any(typing.get_origin(kind) is tuple for kind in kinds)
        if not inside or any(typing.get_origin(kind) is typing.Literal for kind in kinds):
            found.append(dotted(key))
        found += all_keys((*key, 0) if in_list else key) if inside else []
    return tuple(found)


def fields_at(key: Key) -> dict[str, Any]:
    """Return the fields of the section at a key; none if there is no section."""
    section: Any = Spec
    for part in key:
        if isinstance(part, int):
            continue
        section = _section_in(section.model_fields[part].annotation) if part in section.model_fields else None
        if section is None:
            return {}
    return section.model_fields


def kinds_at(key: Key) -> set[Any]:
    """Return what the value at a key can be: str, int, tuple, a section, ...; nothing for a key that doesn't exist."""
    kinds: set[Any] = {Spec}
    for part in key:
        inside: list[Any] = []
        for kind in kinds:
            origin = typing.get_origin(kind)
            if isinstance(part, int):
                inside += [item for item in typing.get_args(kind) if item is not ...] if origin is tuple else []
            elif isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
                inside.append(kind.model_fields[part].annotation)
        kinds = {branch for annotation in inside for branch in _branches(annotation)}
    return {typing.get_origin(kind) or kind for kind in kinds}


def _branches(annotation: Any) -> Iterator[Any]:
    """Yield the kinds of a union, and what Annotated says something about."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from _branches(typing.get_args(annotation)[0])
    elif _is_union(annotation):
        for branch in typing.get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation such as tuple[ParameterGroup, ...] or BackboneOptimizerSpec |
    None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType, tuple, typing.Annotated):
        return next((found for part in typing.get_args(annotation) if (found := _section_in(part))), None)
    return None


# One key, for its reader


def explain_key(name: str) -> str:
    """Return what a key of a spec means, as text: its type, default, docstring, and which shipped specs set it; of a
    section, the keys in it. A name that OpenTAD or other projects have is explained as the key it is here.

    Raises UserError for a name that is no key, with the nearest ones.
    """
    key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
    lines = []
    if not _is_key(key):
        near = meant(key)
        entry = renamed(key)
        if entry is None:
            # The words of a key whose section is wrong or left out.
            near += [known for known in all_keys() if known.rpartition(".")[2] == str(key[-1]) and known not in near]
            meant_by = f"did you mean {' or '.join(near[:MAX_UNKNOWN])}?" if near else ""
            raise UserError(f"{cut_key(name)}: no such key; {meant_by or 'a spec has ' + ', '.join(fields_at(()))}")
        lines.append(f"{cut_key(name)} is OpenTAD's name{f' ({entry.note})' if entry.note else ''}; here it is:")
        key = tuple(entry.here.split("."))
    lines.append(dotted(key))
    field = fields_at(key[:-1]).get(key[-1]) if isinstance(key[-1], str) else None
    inside, is_value = fields_at(key), dotted(key) in all_keys()
    if field is not None:
        default = "none, it must be given" if field.is_required() else _written(field.default)
        lines += [f"  type     {_type_text(field)}", *([f"  default  {default}"] if is_value else [])]
    text = (field.description if field is not None else None) or (_section_at(key).__doc__ if inside else None)
    if text:
        lines += ["", *textwrap.wrap(" ".join(text.split()), 96, initial_indent="  ", subsequent_indent="  ")]
    if inside:
        at = (*key, 0) if is_value else key
        lines += ["", *(f"  {dotted((*at, inner))}" for inner in inside)]
    if not is_value:
        return "\n".join(lines)
    if users := list(_shipped_values(key)):
        lines += ["", "  set by"]
        lines += [f"    {file}: {value}" for file, value in users[:MAX_SHIPPED]]
        lines += [f"    and {len(users) - MAX_SHIPPED} more"] if len(users) > MAX_SHIPPED else []
    else:
        lines += ["", "  set by no shipped spec"]
    return "\n".join(lines)


def _is_key(key: Key) -> bool:
    return bool(kinds_at(key)) or bool(isinstance(key[-1], str) and fields_at(key))


def _section_at(key: Key) -> type[BaseModel]:
    section: Any = Spec
    for part in key:
        section = section if isinstance(part, int) else _section_in(section.model_fields[part].annotation)
    return section


def _type_text(field: Any) -> str:
    """Return a field's type as a reader of YAML thinks of it: "number > 0, or null"."""
    bounds = _bounds(field.metadata)
    return ", or ".join(dict.fromkeys(text + bounds for text in _kinds(field.annotation)))


def _kinds(annotation: Any) -> Iterator[str]:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from (text + _bounds(inside[1:]) for text in _kinds(inside[0]))
    elif _is_union(annotation):
        for branch in inside:
            yield from _kinds(branch)
    elif origin is typing.Literal:
        yield " | ".join(map(str, inside))
    elif origin is tuple and inside[-1] is ...:
        yield f"list of {' or '.join(_kinds(inside[0]))}"
    elif origin is tuple:
        yield f"list [{', '.join(' or '.join(_kinds(item)) for item in inside)}]"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "section"
    elif annotation is not Any:
        yield TYPE_NAMES.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _bounds(metadata: Iterable[Any]) -> str:
    """Return the bounds among what Annotated says, as " >= 1, <= 10"."""
    nested = [part for item in metadata for part in getattr(item, "metadata", [item])]
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    found = [f"{sign} {getattr(item, name):g}" for item in nested for name, sign in signs if hasattr(item, name)]
    return f" {', '.join(found)}" if found else ""


def _written(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, ensure_ascii=False)


def _shipped_values(key: Key) -> Iterator[tuple[str, str]]:
    """Yield the shipped files whose own text sets a key, and the value; what they have from base files isn't theirs."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        try:
            value = yaml.load(path.read_text(encoding="utf-8"), SAFE_LOADER)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for part in key:
            if not holds(value, part):
                break
            value = value[part]
        else:
            yield f"configs/{path.relative_to(CONFIGS)}", _written(value)


ROUNDS = 8
"""What is left out may leave something else incomplete: an entry without its rate, a list without its entry."""


def validate_partly(values: dict[str, Any]) -> tuple[Spec | None, set[Key]]:
    """Return the spec that is left without its wrong keys and values, and the keys of which nobody knows what was
    meant."""
    values, invalid = copy.deepcopy(values), set()
    for _ in range(ROUNDS):
        try:
            return Spec.model_validate(values), invalid
        except ValidationError as caught:
            errors = caught.errors(include_url=False)
            if len(errors) > MAX_ERRORS:
                # That is no spec with a slip in it.
                return None, invalid
        # All places first: what is taken out below would move them.
        places = [place(error, values)[0] for error in errors]
        for error, key in zip(errors, places, strict=True):
            invalid.update(_leave_out(values, key, error["type"]))
    return None, invalid


def _leave_out(values: dict[str, Any], key: Key, kind: str) -> set[Key]:
    """Take a wrong value out, or put one in that is missing; returns the keys that are invalid then."""
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
    """Yield the keys that somebody may have meant who wrote `key`, which doesn't exist, and what stands in it."""
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
        if any(invalid[: len(key)] == key for invalid in self._invalid):
            raise InvalidKeyReadError
        return value
