"""A resolved spec as YAML: as it is saved with a run, and with the source of every value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from adatad.spec.document import Document, Key, holds
from adatad.spec.schema import Spec

Line = tuple[str, str]
"""YAML text, and the source of its value ("" where it has none of its own)."""


def to_yaml(spec: Spec) -> str:
    """YAML that loads back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def annotated(spec: Spec, document: Document) -> str:
    """The same, with the file and line, "--set ..." or "default" beside every value."""
    lines = list(_lines(spec.model_dump(mode="json"), (), document, ""))
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
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
            yield f"{indent}{name}: {text}", ", ".join(_sources(key, document))


def _sources(key: Key, document: Document) -> list[str]:
    """Where a value came from; of a list, also where single items were set since."""
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
