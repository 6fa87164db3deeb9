"""The class list: names in the order of the model's outputs, and which of them an annotation means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adatad.data.annotation_file import AMBIGUOUS, AnnotationError, read_lines
from adatad.spec.schema import DataSpec


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
    if len(set(classes.names)) < len(classes.names):
        twice = next(name for name in classes.names if classes.names.count(name) > 1)
        raise AnnotationError(f"{spec.classes}: names class {twice!r} twice")
    if spec.class_count not in (None, len(classes.names)):
        source = spec.classes if isinstance(spec.classes, str) else spec.annotations
        raise AnnotationError(
            f"{source}: {len(classes.names)} classes, but data.class_count expects {spec.class_count}; "
            "take the list that belongs to the annotation file, or mend data.class_count"
        )
    return classes


def _named(names: tuple[str, ...]) -> ClassList:
    return ClassList(names, {name: number for number, name in enumerate(names)})


def _read_file(path: str) -> ClassList:
    """One name a line, or one `id<TAB>name` a line for labels that are numbers."""
    lines = read_lines(path)
    if not lines:
        raise AnnotationError(f"{path}: holds no class; expected one name a line")
    pairs = [line.split("\t", 1) for line in lines]
    if not all(len(pair) == 2 and pair[0].strip().isdecimal() for pair in pairs):
        return _named(tuple(lines))
    classes = _named(tuple(name.strip() for _, name in pairs))
    ids = {int(key): number for number, (key, _) in enumerate(pairs)}
    return ClassList(classes.names, {**classes.numbers, **ids})


def _found(spec: DataSpec, database: dict[str, dict[str, Any]], reference: bool) -> ClassList:
    labels = {item[spec.label_key] for item in _items(database) if _is_label(item.get(spec.label_key))}
    if not labels:
        keys = sorted({key for item in _items(database) for key in item} - {"segment"})
        there = f"they have {', '.join(keys)}" if keys else "they have no labels"
        raise AnnotationError(
            f"{spec.annotations}: no annotation has a {spec.label_key!r}: {there}; set data.label_key or data.classes"
        )
    if all(isinstance(label, str) for label in labels):
        return _named(tuple(sorted(labels if reference else labels - {AMBIGUOUS})))
    if not all(isinstance(label, int) for label in labels):
        raise AnnotationError(
            f"{spec.annotations}: some labels are names and some numbers; give the classes in data.classes"
        )
    ids = sorted(labels)
    return ClassList(tuple(map(str, ids)), {label: number for number, label in enumerate(ids)})


def _items(database: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in database.values():
        items = entry.get("annotations")
        yield from (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)
