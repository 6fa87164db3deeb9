"""Specs written as YAML: to be loaded again, or with the source of every value beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from adatad.spec.document import FLOAT, INTEGER, TAG, Document, Key, holds, rename_old
from adatad.spec.paths import contract_paths
from adatad.spec.schema import Spec

Line = tuple[str, str]
"""YAML text, and the source of its value ("" where it has none of its own)."""
MAX_COLUMN = 72
"""Characters of YAML beside which sources are lined up; longer lines have theirs at their end."""


class _Dumper(yaml.SafeDumper):
    """Quotes also what our own reader would take for a number: 1e5 as a name."""


for _tag, _form in ((f"{TAG}int", INTEGER), (f"{TAG}float", FLOAT)):
    _Dumper.add_implicit_resolver(_tag, _form, list("-+.0123456789"))


def to_yaml(spec: Spec) -> str:
    """Return YAML that loads back to an equal spec."""
    # All values, defaults too: a saved run means the same under a version with other defaults.
    values = spec.model_dump(mode="json")
    contract_paths(values)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def renamed_yaml(text: str) -> str:
    """Return a saved spec's text with today's names of keys and values; any other text as it is.

    The order of keys stays, so that two saved specs can be compared as text.
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if not isinstance(values, dict) or not rename_old(values):
        return text
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def annotated(spec: Spec, document: Document) -> str:
    """Return a spec's YAML with "file:line", "--set ..." or "default" beside every value."""
    values = spec.model_dump(mode="json")
    contract_paths(values)
    lines = list(_lines(values, (), document, ""))
    width = min(max(len(text) for text, _ in lines), MAX_COLUMN)
    return "\n".join(f"{text:<{width}}  # {source}" if source else text for text, source in lines)


def _lines(values: dict[str, Any], at: Key, document: Document, indent: str) -> Iterator[Line]:
    for name, value in values.items():
        key = (*at, name)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _lines(value, key, document, indent + "  ")
        # Lists of sections have a line a key; other lists one line in all.
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"{indent}{name}:", ""
            for index, item in enumerate(value):
                (text, source), *rest = _lines(item, (*key, index), document, indent + "    ")
                yield f"{indent}  - {text.lstrip()}", source
                yield from rest
        else:
            # A scalar alone ends in YAML's document mark.
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
