"""The meaning of one key of a spec, as text for its reader: `adatad spec --explain KEY`."""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from adatad.errors import UserError
from adatad.spec.document import Key, holds
from adatad.spec.experiments import CONFIGS
from adatad.spec.keys import MAX_UNKNOWN, all_keys, dotted, fields_at, is_union, kinds_at, meant, section_in
from adatad.spec.opentad import renamed
from adatad.spec.schema import Spec
from adatad.spec.text import cut_key

MAX_SHIPPED = 8
"""Shipped files that set the key; more of them are counted."""
TYPE_NAMES = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null"}
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's loader in C, where it was built: it reads all shipped specs in a tenth of the time."""


def explain_key(name: str) -> str:
    """Return what a key of a spec means, as text: its type, default, docstring, and which shipped specs set it; of a
    section, the keys in it. A name that OpenTAD or other projects have is explained as the key it is here.

    Raises UserError for a name that is no key, with the nearest ones.
    """
    key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
    lines = []
    # Neither a value nor a section of the schema.
    if not (kinds_at(key) or (isinstance(key[-1], str) and fields_at(key))):
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
    # An item of a list, as optimizer.backbone.custom.0, has no field of its own.
    field = fields_at(key[:-1]).get(key[-1]) if isinstance(key[-1], str) else None
    inside, is_value = fields_at(key), dotted(key) in all_keys()
    if field is not None:
        default = "none, it must be given" if field.is_required() else written(field.default)
        lines += [f"  type     {type_text(field)}", *([f"  default  {default}"] if is_value else [])]
    text = (field.description if field is not None else None) or (section_at(key).__doc__ if inside else None)
    if text:
        lines += ["", *textwrap.wrap(" ".join(text.split()), 96, initial_indent="  ", subsequent_indent="  ")]
    if inside:
        # A list of sections is a value; its keys are those of an item.
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


def section_at(key: Key) -> type[BaseModel]:
    """Return the class of the section at a key; items of a list have the list's."""
    section: Any = Spec
    for part in key:
        section = section if isinstance(part, int) else section_in(section.model_fields[part].annotation)
    return section


def type_text(field: Any) -> str:
    """Return a field's type as a reader of YAML thinks of it: "number > 0, or null"."""
    bounds = _bounds(field.metadata)
    # A dict keeps the order and drops doubles: two branches of a union may read alike.
    return ", or ".join(dict.fromkeys(text + bounds for text in _kinds(field.annotation)))


def _kinds(annotation: Any) -> Iterator[str]:
    """Yield the types that an annotation allows, in words."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from (text + _bounds(inside[1:]) for text in _kinds(inside[0]))
    elif is_union(annotation):
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
    # Bounds stand in the metadata itself, or one level down, in pydantic's FieldInfo.
    nested = [part for item in metadata for part in getattr(item, "metadata", [item])]
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    found = [f"{sign} {getattr(item, name):g}" for item in nested for name, sign in signs if hasattr(item, name)]
    return f" {', '.join(found)}" if found else ""


def written(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, ensure_ascii=False)


def _shipped_values(key: Key) -> Iterator[tuple[str, str]]:
    """Yield the shipped files whose own text sets a key, and the value; what they have from base files isn't theirs."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        try:
            # The plain file, without its bases: a key counts for the file that says it.
            value = yaml.load(path.read_text(encoding="utf-8"), SAFE_LOADER)
        except (OSError, ValueError, yaml.YAMLError):
            # A file of the user's own that is broken: it is none of those shipped.
            continue
        for part in key:
            if not holds(value, part):
                break
            value = value[part]
        else:
            yield f"configs/{path.relative_to(CONFIGS)}", written(value)
