"""YAML files as plain values that remember where each one came from, merged along `base:`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Key = tuple[str | int, ...]
"""Where a value stands: ("optimizer", "backbone", "custom", 0, "lr")."""


class DocumentError(Exception):
    """A file that can't be read; the message names it and the line."""


@dataclass
class Document:
    """Plain values, and for each leaf "file:line" or "--set"."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, str] = field(default_factory=dict)

    def source(self, key: Key) -> str | None:
        """Where the value at `key`, or what it stands in, came from."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.sources:
                return self.sources[key[:length]]
        return next((source for known, source in self.sources.items() if known[: len(key)] == key), None)

    def forget(self, key: Key) -> None:
        """Drop the sources of a value and of all inside it."""
        for known in [known for known in self.sources if known[: len(key)] == key]:
            del self.sources[known]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for numbers: 1e-4 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """A YAML value on one line, as in an override."""
    return yaml.load(text, Loader=_Loader)


def read_document(path: Path, chain: tuple[Path, ...] = ()) -> Document:
    """A file over its `base:` files. A list of bases merges in order; the file itself comes last."""
    if path.resolve() in chain:
        names = " -> ".join(str(part) for part in (*chain, path))
        raise DocumentError(f"{path}: its base files lead back to it: {names}")
    document = _read_file(path)
    where = document.source(("base",))
    bases = document.values.pop("base", [])
    document.forget(("base",))
    merged = Document()
    bases = bases if isinstance(bases, list) else [bases]
    for base in bases:
        if not isinstance(base, str):
            raise DocumentError(f"{where}: base: expected a path or a list of paths, got {base!r}")
        merge(merged, read_document(path.parent / base, (*chain, path.resolve())))
    merge(merged, document)
    return merged


def holds(values: Any, part: str | int) -> bool:
    """Whether plain values have something under a name or at a place of a list."""
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def merge(under: Document, over: Document) -> None:
    """Lay `over` on `under`: mappings merge, everything else replaces."""
    _merge_values(under, under.values, over.values, ())
    under.sources.update(over.sources)


def _merge_values(document: Document, under: dict[str, Any], over: dict[str, Any], at: Key) -> None:
    for name, value in over.items():
        key = (*at, name)
        if isinstance(value, dict) and isinstance(under.get(name), dict):
            _merge_values(document, under[name], value, key)
        else:
            document.forget(key)
            under[name] = value


def _read_file(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DocumentError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path}: can't be read as UTF-8 text: {error}") from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise DocumentError(f"{path}: expected a mapping of sections (data:, model:, ...)")
        document = Document()
        document.values = _construct(loader, node, document, path, ())
        return document
    except yaml.YAMLError as error:
        raise DocumentError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node, document: Document, path: Path, at: Key) -> Any:
    """Plain values of a node; notes the line of every leaf; a key that stands twice is an error."""
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(name, str):
                raise DocumentError(f"{path}:{line}: expected a name as key, got {name!r}; quote it if it is one")
            if name in values:
                raise DocumentError(f"{path}:{line}: {'.'.join(map(str, (*at, name)))} stands twice")
            values[name] = _construct(loader, value_node, document, path, (*at, name))
        if not values:
            document.sources[at] = f"{path}:{node.start_mark.line + 1}"
        return values
    document.sources[at] = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, document, path, (*at, index)) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)
