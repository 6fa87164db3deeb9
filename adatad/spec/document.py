"""YAML files as plain values that remember where each one came from, merged along `base:`.

Everything here has bounds (MAX_...): a few hundred bytes of YAML can stand for more values than memory holds.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adatad.files import MAX_SPEC_BYTES, FileError, read_text, shown
from adatad.resources import here_or_resource
from adatad.spec.schema import Spec
from adatad.spec.text import PathError, cut, cut_key, expand, forbidden_character, nearest, short

Key = tuple[str | int, ...]
"""Place of a value: ("optimizer", "backbone", "custom", 0, "lr")."""
MAX_FILES = 64
"""Files of one spec: its base files and theirs, each as often as it is read."""
MAX_FILE_BYTES = 1 << 20
"""Bytes of one file: PyYAML takes two seconds for as many, whatever it holds."""
MAX_VALUES = 20_000
"""Keys and list entries of one spec, aliases followed: the longest published list of classes has some hundreds."""
MAX_DEPTH = 32
"""Levels of lists and sections: a spec has six."""
MAX_CHARACTERS = 4_096
"""Characters of one value or key."""
MAX_BITS = 64
"""Bits of a whole number."""
WORD = re.compile(r"[A-Za-z][\w.-]{0,40}", re.ASCII)
TAG = "tag:yaml.org,2002:"
# Tags of plain values; a spec that asks for others (!!python/..., !!set, !!binary) is refused.
SCALARS = {f"{TAG}{name}" for name in ("str", "int", "float", "bool", "null")}
REPLACED = {f"{TAG}{name}" for name in ("int", "float", "timestamp", "merge", "value")}
"""Types that YAML 1.1 reads from plain words in surprising ways: 010 is eight, 1:30 is ninety, 2001-01-01 no text."""
# As people read them: with underscores, hexadecimal or binary, but never octal by a leading zero.
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)$")
FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


# Saved runs outlive renamings: their spec.yaml is loaded again by resume, test and report.
OLD_KEYS: dict[Key, str] = {
    ("memory", "rows"): "saved_inputs",
    ("memory", "row_dtype"): "saved_input_dtype",
}
"""Keys of earlier versions, which specs and checkpoints may still have: the name in the same section today."""
OLD_VALUES: dict[Key, dict[str, str]] = {
    ("compat",): {"mended": "fixed"},
    ("memory", "recompute"): {"hold": "once", "rebuild": "twice"},
}
"""Values of earlier versions, and what they are called today."""


class DocumentError(Exception):
    """A file that can't be read; the message names it and the line."""


class SyntaxDocumentError(DocumentError):
    """Text that isn't YAML at all, rather than YAML that a spec doesn't take."""


@dataclass
class Document:
    """Plain values, and for each leaf "file:line" or "--set"."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, str] = field(default_factory=dict)
    renamed: list[str] = field(default_factory=list)
    """Spellings of earlier versions that were replaced: "memory.rows is memory.saved_inputs now"."""

    def source(self, key: Key) -> str | None:
        """Return where the value at `key`, or what it stands in, came from."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.sources:
                return self.sources[key[:length]]
        return next((source for known, source in self.sources.items() if known[: len(key)] == key), None)

    def forget(self, key: Key, value: Any) -> None:
        """Drop the sources of a value, which stood at `key`, and of all inside it."""
        self.sources.pop(key, None)
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for part, inner in inside:
            self.forget((*key, part), inner)


def rename_old(values: dict[str, Any], sources: dict[Key, str] | None = None) -> list[str]:
    """Replace spellings of earlier versions in plain values, keeping their order; returns what was replaced. A file
    that has both keeps the old one, so that it is reported as unknown."""
    lines, sources = [], {} if sources is None else sources
    for (*at, old), new in OLD_KEYS.items():
        section = section_at(values, tuple(at))
        if section is not None and old in section and new not in section:
            # Filled again in its order, which `renamed_yaml` promises to keep.
            items = [(new if name == old else name, value) for name, value in section.items()]
            section.clear()
            section.update(items)
            # What stands inside the key has sources by the old name, too.
            for key in [key for key in sources if key[: len(at) + 1] == (*at, old)]:
                sources[(*at, new, *key[len(at) + 1 :])] = sources.pop(key)
            lines.append(f"{'.'.join((*at, old))} is {'.'.join((*at, new))} now")
    for key, names in OLD_VALUES.items():
        section = section_at(values, key[:-1])
        value = None if section is None else section.get(key[-1])
        if isinstance(value, str) and value in names:
            section[key[-1]] = names[value]
            lines.append(f"{'.'.join(key)}: {value} is {names[value]} now")
    return lines


def section_at(values: Any, at: Key) -> dict[str, Any] | None:
    """Return the mapping at a key of plain values; None if there is none."""
    for part in at:
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else None


@dataclass
class _Count:
    """Amounts that have been read for one spec so far, over all its files."""

    files: int = 0
    characters: int = 0
    values: int = 0


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for numbers and dates: 1e-4 is a number; 010, 1:30 and 2001-01-01 are text. Bounded in nodes and
    depth while it is read, before anything is made of it."""

    def __init__(self, text: str):
        super().__init__(text)
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Count a node before PyYAML makes it; called for every value and key. Raises _TooMuchError."""
        line = self.peek_event().start_mark.line + 1
        self.nodes += 1
        # Before super(): it recurses, and Python's own limit would end it in the middle of PyYAML.
        self.depth += 1
        # A key is a node as well.
        if self.nodes > 2 * MAX_VALUES:
            raise _TooMuchError(line, f"holds more than {MAX_VALUES:,} values")
        if self.depth > MAX_DEPTH:
            raise _TooMuchError(line, f"is nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _TooMuchError(Exception):
    """More than a bound allows; its arguments are the line and what is too much."""


# A table of the class's own, from which YAML's forms of numbers and dates are left out: PyYAML shares its by default.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in REPLACED]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{TAG}int", INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


def parse_value(text: str) -> Any:
    """Return a YAML value on one line, as in an override. Raises DocumentError, without saying where;
    SyntaxDocumentError if it isn't YAML."""
    return _Reader("", Document(), _Count()).read(text)


def read_document(path: Path, chain: tuple[str, ...] = (), count: _Count | None = None) -> Document:
    """Return a file over its `base:` files. A list of bases merges in order; the file itself comes last. Raises
    DocumentError."""
    # One count for all files: many small bases add up as one large file would.
    count = count or _Count()
    count.files += 1
    if count.files > MAX_FILES:
        raise DocumentError(f"{shown(path)}: more than {MAX_FILES} base files, each counted as often as it is named")
    # By the real path: links to one file would hide a circle.
    place = os.path.realpath(path)
    if place in chain:
        names = " -> ".join(shown(part) for part in (*chain, path))
        raise DocumentError(f"{shown(path)}: its base files lead back to it: {names}")
    document = _read_file(path, count)
    where = document.source(("base",))
    bases = document.values.pop("base", [])
    document.forget(("base",), bases)
    # Bases first, in their order: what comes later is laid over what came before.
    merged = Document()
    bases = bases if isinstance(bases, list) else [bases]
    for base in bases:
        if not isinstance(base, str) or not base:
            raise DocumentError(f"{where}: base: expected a path or a list of paths, got {short(base)}")
        try:
            file = path.parent / expand(base)
            shipped = here_or_resource(base)
            # A copy of a shipped spec names its base as configs/..., wherever the copy lies.
            if not os.path.lexists(file) and shipped.startswith("/"):
                file = Path(shipped)
        except PathError as error:
            raise DocumentError(f"{where}: base: {error}") from error
        if not os.path.lexists(file):
            raise DocumentError(f"{where}: base: {cut(file)}: no such file{near_file(file)}")
        merge(merged, read_document(file, (*chain, place), count))
    merge(merged, document)
    return merged


def near_file(path: Path) -> str:
    """Return the end of a message about a spec that isn't there: the YAML file beside it whose name is nearest."""
    try:
        # Sorted, so that two names equally near give the same hint on every file system.
        beside = sorted(file.name for file in path.parent.glob("*.yaml"))[:MAX_VALUES]
    except (OSError, ValueError):
        return ""
    name = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    close = nearest(name, beside)
    return f"; did you mean {cut(path.parent / close)}?" if close else ""


def holds(values: Any, part: str | int) -> bool:
    """Return whether plain values have something under a name or at a place of a list."""
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def merge(under: Document, over: Document) -> None:
    """Lay `over` on `under`: mappings merge, everything else replaces."""
    _merge_values(under, under.values, over.values, ())
    under.sources.update(over.sources)
    under.renamed += over.renamed


def _merge_values(document: Document, under: dict[str, Any], over: dict[str, Any], at: Key) -> None:
    for name, value in over.items():
        key = (*at, name)
        if isinstance(value, dict) and isinstance(under.get(name), dict):
            _merge_values(document, under[name], value, key)
        else:
            # The whole value goes, and what is known of the places inside it.
            document.forget(key, under.get(name))
            under[name] = value


def _read_file(path: Path, count: _Count) -> Document:
    if not os.path.lexists(path):
        raise DocumentError(f"{cut(path)}: no such file")
    try:
        # At most this much is read: the name may lead to a video, or to a device without end.
        text = read_text(path, MAX_FILE_BYTES)
    except FileError as error:
        raise DocumentError(cut(error)) from error
    count.characters += len(text)
    if count.characters > MAX_SPEC_BYTES:
        raise DocumentError(f"{cut(path)}: more than {MAX_SPEC_BYTES:,} characters with the other base files")
    document = Document()
    values = _Reader(cut(path), document, count).read(text)
    if not isinstance(values, dict):
        raise DocumentError(f"{cut(path)}: expected a mapping of sections (data:, model:, ...)")
    if _is_foreign(values):
        raise DocumentError(
            f"{cut(path)}: is no spec: none of its {len(values)} keys is one of data, model, train, ..."
        )
    document.values = values
    # File by file: after merging, an old name in a base and the new one over it would be two keys.
    document.renamed = [f"{cut(path.name)}: {line}" for line in rename_old(values, document.sources)]
    return document


def _is_foreign(values: dict[str, Any]) -> bool:
    """Return whether a file is of another kind: what it holds must not reach a log as keys that a spec doesn't have."""
    known = values.keys() & {"base", *Spec.model_fields}
    return bool(values) and not known and (len(values) > 3 or not all(WORD.fullmatch(key) for key in values))


@dataclass
class _Reader:
    """A reader of YAML text into plain values. name: of the file, "" for an override; count: of the whole spec."""

    name: str
    document: Document
    count: _Count

    def read(self, text: str) -> Any:
        """Return the text's one value, None for an empty text. Raises DocumentError."""
        try:
            # Making a loader looks at the characters already.
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                return None if node is None else self._value(loader, node, (), ())
            finally:
                # A loader refers to itself by its states: without this the text stays until Python collects garbage.
                loader.dispose()
        except _TooMuchError as error:
            raise self._error(error.args[0], (), error.args[1]) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
            text = "holds a character that YAML doesn't allow"
            raise self._error(line, (), f"not valid YAML: {text}: {short(chr(error.character))}") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = error.problem or error.context or "can't be read"
            told = self._error(mark.line + 1 if mark else 1, (), f"not valid YAML: {cut_key(reason)}")
            raise SyntaxDocumentError(*told.args) from error
        except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
            # PyYAML's own: an escape beyond Unicode ("\UFFFFFFFF"), a %YAML directive of a thousand digits.
            raise self._error(1, (), f"not valid YAML: {cut_key(str(error).partition(chr(10))[0])}") from error

    def _error(self, line: int, at: Key, text: str) -> DocumentError:
        key = ".".join(cut_key(str(part)) for part in at)
        place = f"{self.name}:{line}" if self.name else ""
        return DocumentError(": ".join(part for part in (place, key, text) if part))

    def _value(self, loader: _Loader, node: yaml.Node, at: Key, inside: tuple[int, ...]) -> Any:
        """Return a node's plain values, and note the line of every leaf. A key that stands twice is an error.

        inside: ids of the nodes around this one, since an alias may lead back to one of them.
        """
        line = node.start_mark.line + 1
        self.count.values += 1
        if self.count.values > MAX_VALUES:
            raise self._error(line, at[:2], f"holds more than {MAX_VALUES:,} values, with its base files and aliases")
        if id(node) in inside:
            raise self._error(line, at[:2], "holds itself, by an alias")
        # By aliases, a value can be deeper than the text.
        if len(at) > MAX_DEPTH:
            raise self._error(line, at[:2], f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            self.document.sources[at] = f"{self.name}:{line}"
            return self._scalar(loader, node, at)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"{TAG}{kind}":
            raise self._error(line, at, f"is marked as {cut_key(node.tag.removeprefix(TAG))}; leave that out")
        inside = (*inside, id(node))
        if kind == "seq":
            self.document.sources[at] = f"{self.name}:{line}"
            return [self._value(loader, item, (*at, index), inside) for index, item in enumerate(node.value)]
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = self._key(loader, key_node, at)
            if name in values:
                raise self._error(key_node.start_mark.line + 1, at, f"{cut_key(name)} stands twice; keep one")
            values[name] = self._value(loader, value_node, (*at, name), inside)
        # An empty mapping has no leaf to carry the line, so it does itself.
        if not values:
            self.document.sources[at] = f"{self.name}:{line}"
        return values

    def _key(self, loader: _Loader, node: yaml.Node, at: Key) -> str:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(line, at, "expected a name as key, got a list or a section")
        # By the rules of values: `on`, `1` and `null` are no text as keys either.
        name = self._scalar(loader, node, at)
        if not isinstance(name, str):
            raise self._error(line, at, f"expected a name as key, got {short(name)}; quote it if it is one")
        return name

    def _scalar(self, loader: _Loader, node: yaml.ScalarNode, at: Key) -> Any:
        line, kind = node.start_mark.line + 1, node.tag.removeprefix(TAG)
        if len(node.value) > MAX_CHARACTERS:
            raise self._error(line, at, f"has {len(node.value):,} characters; at most {MAX_CHARACTERS:,} are read")
        if node.tag not in SCALARS:
            raise self._error(
                line, at, f"is marked as {cut_key(kind)}; expected text, a number, true or false, or null"
            )
        try:
            value = loader.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            raise self._error(line, at, f"{short(node.value)} can't be read as {kind}") from error
        # Python's integers have no end; writing a long one takes quadratic time.
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise self._error(line, at, f"{short(node.value)} is larger than any number of a spec")
        if isinstance(value, str) and (found := forbidden_character(value)):
            raise self._error(line, at, f"holds {found}; leave it out")
        return value
