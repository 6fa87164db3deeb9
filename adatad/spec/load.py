"""Reading an experiment: YAML files, overrides, types, and all that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adatad.errors import UserError
from adatad.spec.checks import cross_checks, file_checks
from adatad.spec.document import Document, DocumentError, Key, merge, parse_value, read_document
from adatad.spec.explain import dotted, explain
from adatad.spec.root import ROOT, UNDER_ROOT, under_root
from adatad.spec.rows import RowError, row_of_reference
from adatad.spec.salvage import salvage
from adatad.spec.schema import Spec

OVERRIDE = "--set"


class SpecError(UserError):
    """Everything that is wrong with a spec, a line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def load(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True, overlays: Sequence[str | Path] = ()
) -> Spec:
    """The experiment in a YAML file, under overlay files and "a.b.0.c=value" overrides. Raises SpecError, which lists
    all problems.

    check_files: whether annotation file, videos and weights must be there.
    """
    return load_with_sources(path, overrides, check_files, overlays)[0]


def load_with_sources(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True, overlays: Sequence[str | Path] = ()
) -> tuple[Spec, Document]:
    """The spec, and the document that knows where each value came from."""
    path = Path(path)
    if path.suffix == ".py":
        raise SpecError([_answer_to_reference(path)])
    try:
        document = read_document(path)
        for overlay in overlays:
            merge(document, read_document(Path(overlay)))
    except DocumentError as error:
        raise SpecError([str(error)]) from error
    problems, doubtful = [], set()
    for text in overrides:
        problem = _override(document, text)
        if problem:
            problems.append(problem)
            doubtful.add(_override_key(text))
    document.values.setdefault("name", default_name(path))
    try:
        spec = Spec.model_validate(document.values)
    except ValidationError as error:
        problems += explain(error.errors(), document, path)
        spec, more = salvage(document.values)
        doubtful |= more
    if ROOT in doubtful:
        doubtful |= {("data", name) for name in UNDER_ROOT}
    spec = under_root(spec) if spec else None
    problems += _contradictions(spec, document, path, doubtful, check_files) if spec else []
    if problems:
        raise SpecError(problems)
    return spec, document


def _answer_to_reference(path: Path) -> str:
    """What to say to someone who gives a configuration file of OpenTAD."""
    try:
        row = row_of_reference(path)
    except RowError as error:
        return str(error)
    return f"{path}: is OpenTAD's name of this experiment; here it is {row.shown}"


def _contradictions(spec: Spec, document: Document, path: Path, doubtful: set[Key], check_files: bool) -> list[str]:
    checks = cross_checks(spec, doubtful) + (file_checks(spec, doubtful) if check_files else [])
    return [f"{document.source(key) or path}: {dotted(key)}: {text}" for key, text in checks]


def default_name(path: Path) -> str:
    """configs/demo/tia.yaml is demo/tia; outside a configs folder the file's own name counts."""
    parts = path.resolve().with_suffix("").parts
    if "configs" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("configs")
        return "/".join(parts[last + 1 :])
    return parts[-1]


def _override(document: Document, text: str) -> str | None:
    """Put "a.b.0.c=value" into the document; returns what is wrong with it, if anything."""
    name, equals, value_text = text.partition("=")
    if not equals or not name:
        return f"{OVERRIDE} {text}: expected KEY=VALUE, such as optimizer.lr=1e-4"
    try:
        value = parse_value(value_text)
    except yaml.YAMLError:
        return f"{OVERRIDE} {text}: {value_text!r} isn't a YAML value"
    key = _override_key(text)
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


def _override_key(text: str) -> Key:
    return tuple(int(part) if part.isdigit() else part for part in text.partition("=")[0].split("."))


def _no_place(place: Any, key: Key) -> str:
    if isinstance(place, list):
        return f"{dotted(key[:-1])} is a list of {len(place)}, which has no item {key[-1]} (they count from 0)"
    return f"{dotted(key[:-1])} is a single value, {place!r}, with nothing inside it"
