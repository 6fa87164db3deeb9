"""A resolved spec as YAML: as it is saved with a run, and with the source of every value."""

from __future__ import annotations

from typing import Any

import yaml

from adatad.spec.document import Document, Key
from adatad.spec.schema import Spec


def to_yaml(spec: Spec) -> str:
    """YAML that loads back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def annotated(spec: Spec, document: Document) -> str:
    """The same, with the file and line, "--set ..." or "default" beside every value."""
    lines = list(_lines(spec.model_dump(mode="json"), (), document))
    width = min(max(len(text) for text, _ in lines), 72)
    return "\n".join(f"{text:<{width}}  # {source}" if source else text for text, source in lines)


def _lines(values: dict[str, Any], at: Key, document: Document) -> Any:
    for name, value in values.items():
        key, indent = (*at, name), "  " * len(at)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _lines(value, key, document)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
            yield f"{indent}{name}: {text}", document.source(key) or "default"
