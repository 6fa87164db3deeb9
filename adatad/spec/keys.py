"""The keys of a spec, read off the schema: which there are, what they take, and which one a wrong word meant."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Union

from pydantic import BaseModel

from adatad.spec.document import Key
from adatad.spec.opentad import WORDS, renamed
from adatad.spec.schema import Spec
from adatad.spec.text import MAX_WORD, cut_key, nearest

# Of difflib's ratio. Lower ones propose keys that share nothing but an ending.
SLIP = 0.6
"""Likeness from which a word is taken for another that was mistyped."""
MAX_UNKNOWN = 5
"""Keys that don't exist of which each gets a line; more of them are counted."""
MAX_LEVELS = 8
"""Levels of an unknown section that are looked into."""


def dotted(key: Key) -> str:
    """Return a key as specs and --set write it: optimizer.backbone.custom.0.lr."""
    return ".".join(cut_key(str(part)) for part in key)


def fields_at(key: Key) -> dict[str, Any]:
    """Return the fields of the section at a key; none if there is no section."""
    section: Any = Spec
    for part in key:
        # Items of a list have no fields of their own: the class inside the list counts.
        if isinstance(part, int):
            continue
        section = section_in(section.model_fields[part].annotation) if part in section.model_fields else None
        if section is None:
            return {}
    return section.model_fields


def kinds_at(key: Key) -> set[Any]:
    """Return what the value at a key can be: str, int, tuple, a section, ...; nothing for a key that doesn't exist."""
    # A set, since a value may be one of several types at each level: a name or a list of sections.
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


@cache
def all_keys(section: Key = ()) -> tuple[str, ...]:
    """Return every key of a spec that can be something else than a section; an entry of a list of sections is 0."""
    found: list[str] = []
    for name, field in fields_at(section).items():
        key = (*section, name)
        inside = fields_at(key)
        kinds = typing.get_args(field.annotation) if is_union(field.annotation) else (field.annotation,)
        in_list = any(typing.get_origin(kind) is tuple for kind in kinds)
        # memory.policy is both: a word, and a list of sections.
        if not inside or any(typing.get_origin(kind) is typing.Literal for kind in kinds):
            found.append(dotted(key))
        found += all_keys((*key, 0) if in_list else key) if inside else []
    return tuple(found)


def meant(key: Key) -> list[str]:
    """Return the keys that somebody may have meant who wrote `key`, which doesn't exist, most likely ones first: as
    "optimizer.lr", or with a value where the word was for another kind of value, as "memory.policy=block"."""
    word, section = str(key[-1]), key[:-1]
    if len(word) > MAX_WORD:
        return []
    # From the surest to the vaguest: spelling, OpenTAD's name, another project's, the same word elsewhere, a slip.
    same = word.lower().replace("-", "_")
    here = fields_at(section)
    if same in here:
        return [dotted((*section, same))]
    if entry := renamed(key):
        # OpenTAD's section as a whole: the same word in ours, if it is one of ours.
        inside = fields_at(tuple(entry.here.split("."))) if entry.there.endswith(".*") else {}
        if close := nearest(same, inside, SLIP):
            return [f"{entry.here}.{close}"]
        return [f"{entry.here}={entry.value}" if entry.with_value else entry.here]
    target = WORDS.get(same)
    if target:
        last = target.rpartition(".")[2]
        return [dotted((*section, last)) if last in here else target]
    elsewhere = [known for known in all_keys() if known.rpartition(".")[2] == same]
    if elsewhere:
        return sorted(elsewhere, key=lambda known: known.count("."))[:3]
    if close := nearest(word, here, SLIP):
        return [dotted((*section, close))]
    # Over all sections a word must be nearer than within its own to be more than chance.
    words = {known.rpartition(".")[2]: known for known in all_keys()}
    close = nearest(same, words, cutoff=0.8)
    return [words[close]] if close else []


def leaves(key: Key, value: Any) -> Iterator[Key]:
    """Yield the keys of all single values at a key, some first ones of many, and of sections that OpenTAD has."""
    if isinstance(value, dict) and value and len(key) < MAX_LEVELS and not renamed(key):
        for name, inner in list(value.items())[:MAX_UNKNOWN]:
            yield from leaves((*key, name), inner)
    else:
        yield key


def _branches(annotation: Any) -> Iterator[Any]:
    """Yield the kinds of a union, and what Annotated says something about."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from _branches(typing.get_args(annotation)[0])
    elif is_union(annotation):
        for branch in typing.get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation


def is_union(annotation: Any) -> bool:
    """Return whether an annotation is a union, by either of Python's two ways to write one."""
    return typing.get_origin(annotation) in (Union, types.UnionType)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation such as tuple[ParameterGroup, ...] or BackboneOptimizerSpec |
    None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if is_union(annotation) or typing.get_origin(annotation) in (tuple, typing.Annotated):
        # The first is enough: no annotation has two different sections.
        return next((found for part in typing.get_args(annotation) if (found := section_in(part))), None)
    return None
