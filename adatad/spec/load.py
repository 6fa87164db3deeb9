"""Load an experiment: files and overlays, then overrides, then types, paths and checks, with all problems at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adatad.errors import UserError
from adatad.spec.checks import cross_checks, file_checks
from adatad.spec.document import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    OLD_KEYS,
    Document,
    DocumentError,
    Key,
    SyntaxDocumentError,
    merge,
    near_file,
    parse_value,
    read_document,
    rename_old,
)
from adatad.spec.experiments import ExperimentError, experiment_of_reference, find_experiment
from adatad.spec.feature_width import with_feature_width
from adatad.spec.keys import dotted, kinds_at
from adatad.spec.partial import validate_partly
from adatad.spec.paths import ROOT, UNDER_ROOT, expand_paths, under_root
from adatad.spec.schema import Spec
from adatad.spec.text import cut, cut_key, forbidden_character, short
from adatad.spec.validation_errors import error_lines

OVERRIDE = "--set"
PAIRS = ("[]", "{}")
"""Brackets of YAML's lists and mappings on one line."""
MAX_PROBLEMS = 40
"""Problems that are listed; the others are counted."""


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
    path: str | Path,
    overrides: Sequence[str] = (),
    check_files: bool = True,
    overlays: Sequence[str | Path] = (),
    unread: Sequence[Key] = (),
) -> tuple[Spec, Document]:
    """Return the spec, and the document that knows where each value came from. Arguments and errors are `load`'s.

    unread: keys whose files needn't be there even so, since the command doesn't read them.

    Every step goes on after a problem, without the values that are known to be wrong (`invalid`): what could be said
    of those would only repeat it.
    """
    if not str(path):
        raise SpecError(["'': expected the name of a spec file, such as configs/demo/tia.yaml"])
    path = Path(path)
    document = _read(path, overlays)
    problems: list[str] = []
    invalid: set[Key] = set()
    # Over the merged document, before types are checked: a bad value is then reported as one of a file is.
    for text in overrides:
        problem = _override(document, text)
        if problem:
            problems.append(problem)
            invalid.add(_override_key(text))
    # Files have been renamed as they were read; this is for values that overrides gave by their old names.
    document.renamed += [f"{OVERRIDE}: {line}" for line in rename_old(document.values, document.sources)]
    # Every rank loads the spec: one of them says it.
    if document.renamed and os.environ.get("RANK", "0") == "0":
        print(f"note: names of an earlier version: {'; '.join(document.renamed)}", file=sys.stderr)
    # Before validation: the schema has no default for a name.
    document.values.setdefault("name", default_name(path))
    for key, problem in expand_paths(document):
        problems.append(f"{document.source(key)}: {dotted(key)}: {problem}")
        invalid.add(key)
    try:
        spec = Spec.model_validate(document.values)
    except ValidationError as error:
        problems += error_lines(error.errors(include_url=False), document, path)
        # Checks of several keys still run on what is valid, so that one attempt shows all there is to fix.
        spec, more = validate_partly(document.values)
        invalid |= more
    # Below a root that is wrong, the files aren't where they would be looked for.
    if ROOT in invalid:
        invalid |= {("data", name) for name in UNDER_ROOT}
    spec = with_feature_width(under_root(spec)) if spec else None
    # A check proposes no change of what was given on this command line, where it can propose another.
    given = {_override_key(text) for text in overrides}
    if spec:
        checks = cross_checks(spec, invalid, given) + (file_checks(spec, invalid.union(unread)) if check_files else [])
        problems += [f"{document.source(key) or cut(path)}: {dotted(key)}: {text}" for key, text in checks]
    # A file of another kind can have hundreds, which say no more than the first ones.
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"{cut(path)}: {len(problems) - MAX_PROBLEMS} more problems"]
    if problems:
        raise SpecError(problems)
    return spec, document


def _read(path: Path, overlays: Sequence[str | Path]) -> Document:
    """Return the file with its base files, under the overlays. Raises SpecError."""
    if path.suffix == ".py":
        # A configuration file of OpenTAD: say what it is called here.
        try:
            experiment = experiment_of_reference(path)
        except ExperimentError as error:
            raise SpecError([str(error)]) from error
        raise SpecError([f"{cut(path)}: is OpenTAD's name of this experiment; here it is {experiment.shown}"])
    if not os.path.lexists(path):
        raise SpecError([f"{cut(path)}: no such file{_meant(path)}"])
    # A run directory, which has the resolved spec in it.
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


def _meant(path: Path) -> str:
    """Return the end of a message on a file that isn't there: which spec or published experiment was meant, if any."""
    if near := near_file(path):
        return near
    text = str(path)
    try:
        return f"; {cut(text)} is a row's name, here {find_experiment(text).shown}"
    except ExperimentError as error:
        hint = str(error).partition(": ")[2]
    return f", and {hint}" if path.suffix != ".yaml" else f" in {cut(Path.cwd())}" * (not path.is_absolute())


def default_name(path: Path) -> str:
    """Return the name of a spec that has none: demo/tia of configs/demo/tia.yaml; outside of a folder configs, the
    file's own name."""
    parts = Path(os.path.realpath(path)).with_suffix("").parts
    if "configs" in parts[:-1]:
        # The innermost one: a checkout may itself lie below a folder of that name.
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
            # Sections that are missing or null are made; lists must have the item.
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
    # What was known of a replaced section's lines would be shown beside values that came by --set.
    document.forget(key, place[key[-1]] if isinstance(place, list) else place.get(key[-1]))
    place[key[-1]] = value
    document.sources[key] = where
    return None


def _value_of(key: Key, text: str) -> Any:
    """Return the value of an override: YAML, or the text itself where that isn't YAML, as {name}.mp4, or where a key
    that is text would become a section, as {name}. Raises DocumentError."""
    kinds = kinds_at(key)
    # Where nothing but text fits, what YAML can't read is taken literally.
    is_text = str in kinds and kinds <= {str, type(None)}
    text = text.strip()
    try:
        value = parse_value(text)
    except DocumentError as error:
        # Quotes and block marks say that YAML was meant.
        if len(text) > MAX_CHARACTERS or text[:1] in ("'", '"', "|", ">"):
            raise
        broken = isinstance(error, SyntaxDocumentError)
        # An opening bracket without its end is a list that the shell has cut at a space.
        unfinished = text[:1] in ("[", "{") and (
            str not in kinds or any(text.count(a) > text.count(b) for a, b in PAIRS)
        )
        if is_text or (broken and not unfinished):
            return text
        raise
    return text if is_text and isinstance(value, dict) else value


def _quotes(name: str, text: str) -> str:
    """Return the end of a message about an override that isn't YAML: how to quote it."""
    if text.lstrip()[:1] in ("[", "{"):
        return (
            f"; quote the whole of it for the shell, as --set '{cut(name)}=[a, b]', text as --set '{cut(name)}=\"...\"'"
        )
    return f"; quote text as --set '{cut(name)}=\"...\"'"


def _override_key(text: str) -> Key:
    """Return the key that an override sets, by its name of today."""
    parts = text.partition("=")[0].split(".")
    # Nine digits: Python refuses to read numbers of thousands of digits, with an error of its own.
    key = tuple(int(part) if re.fullmatch(r"[0-9]{1,9}", part) else part for part in parts)
    return (*key[:-1], OLD_KEYS[key]) if key in OLD_KEYS else key


def _no_place(place: Any, key: Key) -> str:
    """Return why an override's key leads nowhere: `place`, which the key's last part isn't in."""
    if isinstance(place, list):
        item = cut_key(str(key[-1]))
        return f"{dotted(key[:-1])} is a list of {len(place)}, which has no item {item} (they count from 0)"
    return f"{dotted(key[:-1])} is a single value, {short(place)}, with nothing inside it"
