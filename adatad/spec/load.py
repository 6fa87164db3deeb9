"""Reading an experiment: YAML files, overrides, types, paths, and all that is wrong with it at once; and writing it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adatad.errors import UserError
from adatad.resources import here_or_resource
from adatad.spec.checks import cross_checks, file_checks
from adatad.spec.document import (
    FLOAT,
    INTEGER,
    MAX_CHARACTERS,
    MAX_DEPTH,
    OLD_KEYS,
    TAG,
    Document,
    DocumentError,
    Key,
    SyntaxDocumentError,
    holds,
    merge,
    near_file,
    parse_value,
    read_document,
    rename_old,
)
from adatad.spec.experiments import ExperimentError, experiment_of_reference, find_experiment
from adatad.spec.explain import dotted, explain, kinds_at, validate_partly
from adatad.spec.schema import PATHS, Spec
from adatad.spec.text import PathError, as_written, cut, cut_key, expand, forbidden_character, short

OVERRIDE = "--set"
PAIRS = ("[]", "{}")
MAX_PROBLEMS = 40
"""That are listed; the others are counted."""


class SpecError(UserError):
    """Everything that is wrong with a spec, a line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def load(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True, overlays: Sequence[str | Path] = ()
) -> Spec:
    """Return the experiment in a YAML file, under overlay files and "a.b.0.c=value" overrides. Raises SpecError, which
    lists all problems.

    check_files: whether annotation file, videos and weights must be there.
    """
    return load_with_sources(path, overrides, check_files, overlays)[0]


def load_with_sources(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True, overlays: Sequence[str | Path] = ()
) -> tuple[Spec, Document]:
    """Return the spec, and the document that knows where each value came from."""
    if not str(path):
        raise SpecError(["'': expected the name of a spec file, such as configs/demo/tia.yaml"])
    path = Path(path)
    document = _read(path, overlays)
    problems, invalid = [], set()
    for text in overrides:
        problem = _override(document, text)
        if problem:
            problems.append(problem)
            invalid.add(_override_key(text))
    document.renamed += [f"{OVERRIDE}: {line}" for line in rename_old(document.values, document.sources)]
    if document.renamed and os.environ.get("RANK", "0") == "0":
        print(f"note: names of an earlier version: {'; '.join(document.renamed)}", file=sys.stderr)
    document.values.setdefault("name", default_name(path))
    for key, problem in expand_paths(document):
        problems.append(f"{document.source(key)}: {dotted(key)}: {problem}")
        invalid.add(key)
    try:
        spec = Spec.model_validate(document.values)
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), document, path)
        spec, more = validate_partly(document.values)
        invalid |= more
    if ROOT in invalid:
        invalid |= {("data", name) for name in UNDER_ROOT}
    spec = under_root(spec) if spec else None
    given = {_override_key(text) for text in overrides}
    problems += _contradictions(spec, document, path, invalid, given, check_files) if spec else []
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"{cut(path)}: {len(problems) - MAX_PROBLEMS} more problems"]
    if problems:
        raise SpecError(problems)
    return spec, document


def _read(path: Path, overlays: Sequence[str | Path]) -> Document:
    """Return the file with its base files, under the overlays. Raises SpecError."""
    if path.suffix == ".py":
        raise SpecError([_answer_to_reference(path)])
    if not os.path.lexists(path):
        raise SpecError([f"{cut(path)}: no such file{_meant(path)}"])
    if path.is_dir() and (path / "spec.yaml").is_file():
        raise SpecError([f"{cut(path)}: is a folder; did you mean {cut(path / 'spec.yaml')}?"])
    try:
        document = read_document(path)
        for overlay in map(Path, overlays):
            if not os.path.lexists(overlay):
                raise DocumentError(f"{cut(overlay)}: no such file{near_file(overlay)}")
            merge(document, read_document(overlay))
    except DocumentError as error:
        raise SpecError([str(error)]) from error
    return document


def _answer_to_reference(path: Path) -> str:
    """Return what to say to someone who gives a configuration file of OpenTAD."""
    try:
        row = experiment_of_reference(path)
    except ExperimentError as error:
        return str(error)
    return f"{cut(path)}: is OpenTAD's name of this experiment; here it is {row.shown}"


def _meant(path: Path) -> str:
    """For the end of a message: the spec or row that somebody may have meant by a file that isn't there."""
    if near := near_file(path):
        return near
    text = str(path)
    try:
        return f"; {cut(text)} is a row's name, here {find_experiment(text).shown}"
    except ExperimentError as error:
        hint = str(error).partition(": ")[2]
    return f", and {hint}" if path.suffix != ".yaml" else f" in {cut(Path.cwd())}" * (not path.is_absolute())


def _contradictions(
    spec: Spec, document: Document, path: Path, invalid: set[Key], given: set[Key], check_files: bool
) -> list[str]:
    checks = cross_checks(spec, invalid, given) + (file_checks(spec, invalid) if check_files else [])
    return [f"{document.source(key) or cut(path)}: {dotted(key)}: {text}" for key, text in checks]


def default_name(path: Path) -> str:
    """configs/demo/tia.yaml is demo/tia; outside a configs folder the file's own name counts."""
    parts = Path(os.path.realpath(path)).with_suffix("").parts
    if "configs" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("configs")
        return "/".join(parts[last + 1 :])
    return parts[-1]


def _override(document: Document, text: str) -> str | None:
    """Put "a.b.0.c=value" into the document; returns what is wrong with it, if anything."""
    name, equals, value_text = text.partition("=")
    where = f"{OVERRIDE} {cut(text)}"
    if not equals or not all(name.split(".")):
        return f"{where}: expected KEY=VALUE, such as optimizer.lr=1e-4"
    if found := forbidden_character(text):
        return f"{where}: holds {found}; expected KEY=VALUE, such as optimizer.lr=1e-4"
    key = _override_key(text)
    if dotted(key) != name and tuple(name.split(".")) in OLD_KEYS:
        document.renamed.append(f"{OVERRIDE}: {name} is {dotted(key)} now")
    if len(key) > MAX_DEPTH:
        return f"{where}: is nested deeper than {MAX_DEPTH} levels"
    if key[0] == "base":
        return f"{where}: base belongs into a file; --overlay FILE lays another file over the spec"
    try:
        value = _value_of(key, value_text)
    except DocumentError as error:
        return f"{where}: {short(value_text)} isn't a YAML value that a spec takes: {error}{_quotes(name, value_text)}"
    place: Any = document.values
    for index, part in enumerate(key[:-1]):
        if isinstance(place, dict):
            if place.get(part) is None:
                document.forget(key[: index + 1], None)
                place[part] = {}
            place = place[part]
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        else:
            return f"{where}: {_no_place(place, key[: index + 1])}"
    if not isinstance(place, dict) and not (
        isinstance(place, list) and isinstance(key[-1], int) and key[-1] < len(place)
    ):
        return f"{where}: {_no_place(place, key)}"
    document.forget(key, place[key[-1]] if isinstance(place, list) else place.get(key[-1]))
    place[key[-1]] = value
    document.sources[key] = where
    return None


def _value_of(key: Key, text: str) -> Any:
    """Return the value of an override: YAML, or the text itself where that isn't YAML, as {name}.mp4, or where a key
    that is text would become a section, as {name}. Raises DocumentError."""
    kinds = kinds_at(key)
    is_text = str in kinds and kinds <= {str, type(None)}
    text = text.strip()
    try:
        value = parse_value(text)
    except DocumentError as error:
        if len(text) > MAX_CHARACTERS or text[:1] in ("'", '"', "|", ">"):
            raise
        broken = isinstance(error, SyntaxDocumentError)
        unfinished = text[:1] in ("[", "{") and (
            str not in kinds or any(text.count(a) > text.count(b) for a, b in PAIRS)
        )
        if is_text or (broken and not unfinished):
            return text
        raise
    return text if is_text and isinstance(value, dict) else value


def _quotes(name: str, text: str) -> str:
    """For the end of a message about an override that isn't YAML: how to quote it."""
    if text.lstrip()[:1] in ("[", "{"):
        return (
            f"; quote the whole of it for the shell, as --set '{cut(name)}=[a, b]', text as --set '{cut(name)}=\"...\"'"
        )
    return f"; quote text as --set '{cut(name)}=\"...\"'"


def _override_key(text: str) -> Key:
    """Return the key that an override sets, by its name of today."""
    parts = text.partition("=")[0].split(".")
    key = tuple(int(part) if re.fullmatch(r"[0-9]{1,9}", part) else part for part in parts)
    return (*key[:-1], OLD_KEYS[key]) if key in OLD_KEYS else key


def _no_place(place: Any, key: Key) -> str:
    if isinstance(place, list):
        item = cut_key(str(key[-1]))
        return f"{dotted(key[:-1])} is a list of {len(place)}, which has no item {item} (they count from 0)"
    return f"{dotted(key[:-1])} is a single value, {short(place)}, with nothing inside it"


def expand_paths(document: Document) -> list[tuple[Key, str]]:
    """Fill in `~` and variables in a document's paths; returns the keys where that can't be done, and why."""
    problems = []
    for key in PATHS:
        section = _section(document.values, key)
        if section is not None and isinstance(section[key[-1]], str):
            try:
                section[key[-1]] = here_or_resource(expand(section[key[-1]]))
            except PathError as error:
                problems.append((key, str(error)))
    return problems


def contract_paths(values: dict[str, Any]) -> None:
    """Undo that, as far as loading the values again needs it: a dollar sign is written $$."""
    for key in PATHS:
        section = _section(values, key)
        if section is not None and isinstance(section[key[-1]], str):
            section[key[-1]] = as_written(section[key[-1]])


def _section(values: Any, key: Key) -> dict[str, Any] | None:
    """Return the mapping that holds the last part of a key; None if there is no such value."""
    for part in key[:-1]:
        if not holds(values, part):
            return None
        values = values[part]
    return values if isinstance(values, dict) and key[-1] in values else None


ROOT = ("data", "root")
UNDER_ROOT = ("annotations", "classes", "blocked_videos", "videos")
"""Keys of the data section whose relative paths start from the root."""


def under_root(spec: Spec) -> Spec:
    """Return the spec with the root in its paths and none left beside them: what reads a path needs to know no root,
    and a spec saved so loads back to itself."""
    root = spec.data.root
    if root is None:
        return spec
    paths = {name: getattr(spec.data, name) for name in UNDER_ROOT}
    joined = {name: _join(root, path) for name, path in paths.items() if isinstance(path, str)}
    return spec.model_copy(update={"data": spec.data.model_copy(update={**joined, "root": None})})


def _join(root: str, path: str) -> str:
    """Return a file called ~ stays one."""
    joined = str(Path(root) / path)
    return f"./{joined}" if joined.startswith("~") else joined


Line = tuple[str, str]
"""YAML text, and the source of its value ("" where it has none of its own)."""


class _Dumper(yaml.SafeDumper):
    """Quotes also what our own reader would take for a number: 1e5 as a name."""


for _tag, _form in ((f"{TAG}int", INTEGER), (f"{TAG}float", FLOAT)):
    _Dumper.add_implicit_resolver(_tag, _form, list("-+.0123456789"))


def to_yaml(spec: Spec) -> str:
    """YAML that loads back to an equal spec."""
    values = spec.model_dump(mode="json")
    contract_paths(values)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def renamed_yaml(text: str) -> str:
    """Return a saved spec's text with today's names of keys and values; any other text as it is."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if not isinstance(values, dict) or not rename_old(values):
        return text
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def annotated(spec: Spec, document: Document) -> str:
    """Return the same, with the file and line, "--set ..." or "default" beside every value."""
    values = spec.model_dump(mode="json")
    contract_paths(values)
    lines = list(_lines(values, (), document, ""))
    width = min(max(len(text) for text, _ in lines), 72)
    return "\n".join(f"{text:<{width}}  # {source}" if source else text for text, source in lines)


def _lines(values: dict[str, Any], at: Key, document: Document, indent: str) -> Iterator[Line]:
    for name, value in values.items():
        key = (*at, name)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _lines(value, key, document, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"{indent}{name}:", ""
            for index, item in enumerate(value):
                (text, source), *rest = _lines(item, (*key, index), document, indent + "    ")
                yield f"{indent}  - {text.lstrip()}", source
                yield from rest
        else:
            text = (
                yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000, allow_unicode=True)
                .removesuffix("\n")
                .removesuffix("\n...")
            )
            yield f"{indent}{name}: {text}", ", ".join(_sources(key, document))


def _sources(key: Key, document: Document) -> list[str]:
    """Return where a value came from; of a list, also where single items were set since."""
    if not _is_in(document.values, key):
        return ["default"]
    first = document.source(key) or "default"
    items = [source for known, source in document.sources.items() if known[: len(key)] == key and known != key]
    # A list in a file has a source a line; only what replaces one of its items is worth saying.
    return [first, *(source for source in dict.fromkeys(items) if source.startswith("--set") and source != first)]


def _is_in(values: Any, key: Key) -> bool:
    for part in key:
        if not holds(values, part):
            return False
        values = values[part]
    return True
