"""Reading an experiment: YAML files, overrides, types, and all that is wrong with them at once."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import yaml
from pydantic import BaseModel, ValidationError

from adatad.errors import UserError
from adatad.spec.checks import cross_checks, file_checks
from adatad.spec.document import Document, DocumentError, Key, parse_value, read_document
from adatad.spec.schema import Spec

OVERRIDE = "--set"


class SpecError(UserError):
    """Everything that is wrong with a spec, a line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def load(path: str | Path, overrides: Sequence[str] = (), check_files: bool = True) -> Spec:
    """The experiment in a YAML file, with "a.b.0.c=value" overrides. Raises SpecError, which lists all problems.

    check_files: whether annotation file, videos and weights must be there.
    """
    return load_with_sources(path, overrides, check_files)[0]


def load_with_sources(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True
) -> tuple[Spec, Document]:
    """The spec, and the document that knows where each value came from."""
    path = Path(path)
    try:
        document = read_document(path)
    except DocumentError as error:
        raise SpecError([str(error)]) from error
    problems = [problem for text in overrides if (problem := _override(document, text))]
    document.values.setdefault("name", default_name(path))
    try:
        spec = Spec.model_validate(document.values)
    except ValidationError as error:
        raise SpecError(problems + [_explain(item, document, path) for item in error.errors()]) from error
    checks = cross_checks(spec) + (file_checks(spec) if check_files else [])
    problems += [f"{document.source(key) or path}: {dotted(key)}: {text}" for key, text in checks]
    if problems:
        raise SpecError(problems)
    return spec, document


def default_name(path: Path) -> str:
    """configs/demo/tia.yaml is demo/tia; outside a configs folder the file's own name counts."""
    parts = path.resolve().with_suffix("").parts
    if "configs" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("configs")
        return "/".join(parts[last + 1 :])
    return parts[-1]


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _override(document: Document, text: str) -> str | None:
    """Put "a.b.0.c=value" into the document; returns what is wrong with it, if anything."""
    name, equals, value_text = text.partition("=")
    if not equals or not name:
        return f"{OVERRIDE} {text}: expected KEY=VALUE, such as optimizer.lr=1e-4"
    try:
        value = parse_value(value_text)
    except yaml.YAMLError:
        return f"{OVERRIDE} {text}: {value_text!r} isn't a YAML value"
    key: Key = tuple(int(part) if part.isdigit() else part for part in name.split("."))
    place: Any = document.values
    for index, part in enumerate(key[:-1]):
        if isinstance(place, dict):
            if place.get(part) is None:
                document.forget(key[: index + 1])
                place[part] = {}
            place = place[part]
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        else:
            return f"{OVERRIDE} {text}: {_no_place(place, key[: index + 1])}"
    if not isinstance(place, dict) and not (
        isinstance(place, list) and isinstance(key[-1], int) and key[-1] < len(place)
    ):
        return f"{OVERRIDE} {text}: {_no_place(place, key)}"
    document.forget(key)
    place[key[-1]] = value
    document.sources[key] = f"{OVERRIDE} {text}"
    return None


def _no_place(place: Any, key: Key) -> str:
    if isinstance(place, list):
        return f"{dotted(key[:-1])} is a list of {len(place)}, which has no item {key[-1]} (they count from 0)"
    return f"{dotted(key[:-1])} is a single value, {place!r}, with nothing inside it"


def _explain(error: dict[str, Any], document: Document, path: Path) -> str:
    """One of pydantic's errors as a line: where it came from, the key, what was expected, the nearest right one."""
    key = tuple(part for part in error["loc"] if _is_part_of_key(part))
    # Unions report each branch under a name of its own, which is no part of the key.
    key = _known_part(key, document.values)
    where = document.source(key) or str(path)
    match error["type"]:
        case "extra_forbidden":
            near = _nearest(str(key[-1]), list(_fields_at(key[:-1])))
            return f"{where}: {dotted(key)}: no such key{near}"
        case "missing":
            return f"{where}: {dotted(error['loc'])}: is missing and has no default"
        case "literal_error":
            allowed = error["ctx"]["expected"]
            near = _nearest(
                str(error["input"]), [word.strip("'") for word in allowed.replace(" or ", ", ").split(", ")]
            )
            return f"{where}: {dotted(key)}: expected {allowed}, got {error['input']!r}{near}"
        case _:
            return f"{where}: {dotted(key)}: {error['msg']}, got {error['input']!r}"


def _is_part_of_key(part: str | int) -> bool:
    return isinstance(part, int) or part.isidentifier()


def _known_part(key: Key, values: Any) -> Key:
    """The part of a key that stands in the document."""
    known: list[str | int] = []
    for part in key:
        if (isinstance(values, dict) and part in values) or (
            isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
        else:
            break
        known.append(part)
    return tuple(known)


def _nearest(word: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(choices)}" if choices else ""


def _fields_at(key: Key) -> dict[str, Any]:
    """The fields of the section at a key."""
    section: Any = Spec
    for part in key:
        if isinstance(part, int):
            continue
        section = _section_in(section.model_fields[part].annotation)
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
