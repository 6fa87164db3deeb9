"""The class list: names in the order of the model's outputs, and which of them an annotation means."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adatad.data.annotation_file import AMBIGUOUS, AnnotationError, alike, folded, read_lines, told_apart
from adatad.data.entry import brief, has_control_characters, is_visible, label_of
from adatad.files import shown
from adatad.spec.schema import DataSpec

PLAIN_ID = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class ClassList:
    """numbers: of a class by what annotations call it: its name, or the whole number that stands for it."""

    names: tuple[str, ...]
    numbers: dict[str | int, int]


def read_classes(spec: DataSpec, database: dict[str, dict[str, Any]], reference: bool = False) -> ClassList:
    """The class list: from the spec, from its text file, or the sorted labels of the whole annotation file.

    `reference`: a list that is taken from the annotation file has "Ambiguous", as the reference's has.
    """
    if isinstance(spec.classes, str):
        classes = _read_file(spec.classes)
    elif spec.classes is not None:
        classes = _named(tuple(spec.classes))
    else:
        classes = _found(spec, database, reference)
    source = spec.classes if isinstance(spec.classes, str) else spec.annotations
    _check_names(source, classes.names)
    if spec.class_count not in (None, len(classes.names)):
        raise AnnotationError(
            f"{source}: {len(classes.names)} classes, but data.class_count expects {spec.class_count}; "
            "take the list that belongs to the annotation file, or change data.class_count"
        )
    return classes


def _named(names: tuple[str, ...]) -> ClassList:
    return ClassList(names, {name: number for number, name in enumerate(names)})


def _check_names(source: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not is_visible(name):
            raise AnnotationError(f"{source}: a class has an empty name; give it one")
        if has_control_characters(name):
            raise AnnotationError(
                f"{source}: class '{shown(name)}' holds a line break, a tab or another control character; write it "
                "without"
            )
    counts = Counter(names)
    if len(counts) < len(names):
        twice = next(name for name in names if counts[name] > 1)
        raise AnnotationError(f"{source}: names class {twice!r} twice")


def similar_labels(database: dict[str, dict[str, Any]], key: str, classes: tuple[str, ...]) -> list[str]:
    """A sentence for each group of labels, or of classes, that differ in case, blanks or a plural alone: mostly one
    class that was written in several ways."""
    labels = (label_of(item.get(key)) for item in _items(database))
    counts = Counter(label for label in labels if isinstance(label, str))
    return [
        ", ".join(
            f"{_quoted(name, seen)} ({counts[name]})" for name, seen in zip(group, told_apart(group), strict=True)
        )
        + " differ in case, blanks or a plural alone; are they one class?"
        for group in alike(dict.fromkeys((*classes, *counts)))
    ]


def _quoted(name: str, seen: str) -> str:
    """seen: the name as `told_apart` gives it."""
    return shown(repr(name)) if name == seen else f"'{seen}'"


def nearest(label: str | int, classes: ClassList) -> str:
    """What to say of a class that a label may mean; empty if there is none."""
    meant = next((name for name in classes.names if folded(name) == folded(str(label))), None)
    if meant is None:
        return ""
    here, there = told_apart([str(label), meant])
    if there == meant:
        return f"; the list has {shown(repr(meant))}"
    return f"; the list has '{there}', this is '{here}': write accents as one character (NFC) in both"


def _read_file(path: str) -> ClassList:
    """One name a line, or one `id<TAB>name` a line for labels that are numbers, or a JSON list of names."""
    lines = read_lines(path)
    if not lines:
        raise AnnotationError(f"{path}: holds no class; expected one name a line")
    listed = _json_list(lines)
    if listed is not None:
        return _named(listed)
    pairs = [line.split("\t", 1) for line in lines]
    if not all(len(pair) == 2 and PLAIN_ID.fullmatch(pair[0].strip()) for pair in pairs):
        return _named(tuple(lines))
    classes = _named(tuple(name.strip() for _, name in pairs))
    ids = {int(key): number for number, (key, _) in enumerate(pairs)}
    if len(ids) < len(pairs):
        twice, _ = Counter(int(key) for key, _ in pairs).most_common(1)[0]
        raise AnnotationError(f"{path}: gives the id {twice} to two classes")
    return ClassList(classes.names, {**classes.numbers, **ids})


def _json_list(lines: list[str]) -> tuple[str, ...] | None:
    """Names of a JSON list; None for lines that are names themselves, and may begin with a bracket."""
    try:
        names = json.loads("\n".join(lines)) if lines[0].startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else None


def _found(spec: DataSpec, database: dict[str, dict[str, Any]], reference: bool) -> ClassList:
    values = [item[spec.label_key] for item in _items(database) if spec.label_key in item]
    labels = {label for label in map(label_of, values) if label is not None}
    if not labels:
        keys = sorted({key for item in _items(database) for key in item} - {"segment"})
        there = f"they have {', '.join(map(shown, keys))}" if keys else "they have no labels"
        if values:
            raise AnnotationError(
                f"{spec.annotations}: labels are names or whole numbers, got {brief(values[0])} as "
                f"{spec.label_key!r}; set data.label_key, or write names"
            )
        raise AnnotationError(
            f"{spec.annotations}: no annotation has a {spec.label_key!r}: {there}; set data.label_key or data.classes"
        )
    if all(isinstance(label, str) for label in labels):
        return _named(tuple(sorted(labels if reference else labels - {AMBIGUOUS})))
    names = labels - {AMBIGUOUS}
    if not all(isinstance(label, int) for label in names):
        name = next(label for label in values if isinstance(label, str))
        identifier = next(label for label in values if not isinstance(label, str))
        raise AnnotationError(
            f"{spec.annotations}: some labels are names and some numbers ({brief(name)} and {brief(identifier)}); give "
            "the classes in data.classes"
        )
    ids = sorted(names)
    return ClassList(tuple(map(str, ids)), {label: number for number, label in enumerate(ids)})


def _items(database: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in database.values():
        items = entry.get("annotations")
        yield from (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()
