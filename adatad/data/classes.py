"""The class list: names in the order of the model's outputs, and which of them an annotation means."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from adatad.data.annotation_file import AMBIGUOUS, AnnotationError, alike, folded, read_lines, told_apart
from adatad.data.entry import brief, has_control_characters, is_visible, label_of
from adatad.files import shown
from adatad.spec.data_sections import DataSpec

PLAIN_ID = re.compile(r"[0-9]{1,18}")
# In order: the first of these that a header has names the column.
ID_NAMES = ("id", "class_id", "label_id", "class id", "index", "idx", "number")
NAME_NAMES = ("name", "class_name", "label_name", "class name", "class", "label", "key", "verb", "noun", "action")
"""Headers under which a class list has its names."""
FORMS = "one name a line, one id and name a line (id<TAB>name), or a JSON list of names"


@dataclass(frozen=True)
class ClassList:
    """Classes of a data set. names: in the order of the model's outputs; numbers: class number by what annotations call
    it, a name or the integer that stands for it."""

    names: tuple[str, ...]
    numbers: dict[str | int, int]


def read_classes(spec: DataSpec, database: dict[str, dict[str, Any]], keep_ambiguous: bool = False) -> ClassList:
    """Return the class list: from the spec, from its text file, or the sorted labels of the whole annotation file.

    keep_ambiguous: a list taken from the annotation file includes "Ambiguous", as the reference's does.
    """
    if isinstance(spec.classes, str):
        # What annotations call their classes tells how a line of the file is to be read.
        labels = {label_of(item.get(spec.label_key)) for item in _items(database)}
        classes = read_class_file(spec.classes, labels)
    elif spec.classes is not None:
        classes = _named(tuple(spec.classes))
    else:
        classes = _from_labels(spec, database, keep_ambiguous)
    # The file to be mended; a list in the spec itself was checked with the spec.
    source = spec.classes if isinstance(spec.classes, str) else spec.annotations
    _check_names(source, classes.names)
    if spec.class_count not in (None, len(classes.names)):
        raise AnnotationError(
            f"{source}: {len(classes.names)} classes, but data.class_count expects {spec.class_count}; "
            "take the list that belongs to the annotation file, or change data.class_count"
        )
    return classes


def _named(names: tuple[str, ...]) -> ClassList:
    """Return the classes of annotations that use names."""
    return ClassList(names, {name: number for number, name in enumerate(names)})


def _check_names(source: str, names: tuple[str, ...]) -> None:
    """Raise AnnotationError for names that are empty, come twice, or can't be shown on a line."""
    for name in names:
        if not is_visible(name):
            raise AnnotationError(f"{source}: a class has an empty name; give it one")
        if has_control_characters(name):
            raise AnnotationError(
                f"{source}: class '{shown(name)}' holds a line break, a tab or another control character; write it "
                "without"
            )
    # Two equal names would be two outputs, of which the second one never has a positive.
    counts = Counter(names)
    if len(counts) < len(names):
        twice = next(name for name in names if counts[name] > 1)
        raise AnnotationError(f"{source}: names class {twice!r} twice")


def similar_labels(database: dict[str, dict[str, Any]], key: str, classes: tuple[str, ...]) -> list[str]:
    """Return a sentence for each group of labels or classes that differ in case, spaces or a plural alone: mostly one
    class that was written in several ways."""
    labels = (label_of(item.get(key)) for item in _items(database))
    counts = Counter(label for label in labels if isinstance(label, str))
    sentences = []
    for group in alike(dict.fromkeys((*classes, *counts))):
        pairs = zip(group, told_apart(group), strict=True)
        # A name that was written with escapes, to be told from its twin, has its quotes put around it here.
        quoted = [(shown(repr(name)) if name == seen else f"'{seen}'") + f" ({counts[name]})" for name, seen in pairs]
        sentences.append(f"{', '.join(quoted)} differ in case, blanks or a plural alone; are they one class?")
    return sentences


def nearest(label: str | int, classes: ClassList) -> str:
    """Return a hint at the class that an unknown label may mean; empty if there is none."""
    # First a name that differs in spelling alone; then a line that was read whole although it holds several fields.
    meant = next((name for name in classes.names if folded(name) == folded(str(label))), None)
    if meant is None:
        line = next((name for name in classes.names if str(label) in re.split(r"[,;|\t]", name)), None)
        return f"; a whole line is a class there, {shown(repr(line))} for one: expected {FORMS}" if line else ""
    here, there = told_apart([str(label), meant])
    if there == meant:
        return f"; the list has {shown(repr(meant))}"
    return f"; the list has '{there}', this is '{here}': write accents as one character (NFC) in both"


def read_class_file(path: str, labels: Container[str | int] = ()) -> ClassList:
    """Read a class file: one name a line, one id and name a line (where labels are numbers), or a JSON list of names.

    Id and name are divided by a tab; or by a space or a comma, unless `labels`, those of the annotations, contain whole
    lines. Raises AnnotationError.
    """
    lines = read_lines(path)
    if not lines:
        raise AnnotationError(f"{path}: holds no class; expected {FORMS}")
    listed = _json_list(path, lines)
    if listed is not None:
        return _named(listed)
    pairs = _pairs(lines, labels)
    if pairs is None:
        return _named(tuple(lines))
    classes = _named(tuple(name for _, name in pairs))
    # Ids may have gaps and any order: the model's output is the place in the list.
    ids = {int(key): number for number, (key, _) in enumerate(pairs)}
    if len(ids) < len(pairs):
        twice, _ = Counter(int(key) for key, _ in pairs).most_common(1)[0]
        raise AnnotationError(f"{path}: gives the id {twice} to two classes")
    return ClassList(classes.names, {**classes.numbers, **ids})


def _pairs(lines: list[str], labels: Container[str | int]) -> list[tuple[str, str]] | None:
    """Return (id, name) of each line; None where the lines are names."""
    rows = [[field.strip() for field in line.split("\t", 1)] for line in lines]
    if all(_is_pair(row) for row in rows):
        return [(key, name) for key, name in rows]
    # A name may begin with a number and hold commas, so a line that is itself a label is a name.
    if any(line in labels for line in lines):
        return None
    try:
        # A class list published as CSV, such as EPIC's, with a header that names the columns.
        header, *rows = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",", skipinitialspace=True)
    except csv.Error:
        return None
    header = [name.strip().casefold() for name in header]
    places = [next((header.index(name) for name in names if name in header), None) for names in (ID_NAMES, NAME_NAMES)]
    if rows and None not in places:
        rows = [[row[place].strip() for place in places if place < len(row)] for row in rows]
        return [(key, name) for key, name in rows] if all(_is_pair(row) for row in rows) else None
    # None: any run of spaces.
    for delimiter in (",", None):
        rows = [[field.strip() for field in line.split(delimiter, 1)] for line in lines]
        if all(_is_pair(row) for row in rows):
            return [(key, name) for key, name in rows]
    return None


def _is_pair(fields: list[str]) -> bool:
    return len(fields) == 2 and PLAIN_ID.fullmatch(fields[0]) is not None and bool(fields[1])


def _json_list(path: str, lines: list[str]) -> tuple[str, ...] | None:
    """Return the names of a JSON list; None for lines that are names, which may begin with a bracket. Raises
    AnnotationError for JSON of another form."""
    try:
        names = json.loads("\n".join(lines)) if lines[0].startswith(("[", "{")) else None
    # No JSON after all: class names may begin with a bracket.
    except (ValueError, RecursionError):
        return None
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        what = "object" if isinstance(names, dict) else "list of something else than names"
        raise AnnotationError(f"{path}: is a JSON {what}; expected {FORMS}")
    return tuple(names)


def _from_labels(spec: DataSpec, database: dict[str, dict[str, Any]], keep_ambiguous: bool) -> ClassList:
    """Return the classes that occur, of all subsets: sorted names, or ids in their order. Raises AnnotationError."""
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
        return _named(tuple(sorted(labels if keep_ambiguous else labels - {AMBIGUOUS})))
    names = labels - {AMBIGUOUS}
    if not all(isinstance(label, int) for label in names):
        name = next(label for label in values if isinstance(label, str))
        identifier = next(label for label in values if not isinstance(label, str))
        raise AnnotationError(
            f"{spec.annotations}: some labels are names and some numbers ({brief(name)} and {brief(identifier)}); give "
            "the classes in data.classes"
        )
    # In ascending order, as published class lists have them, whatever order they occur in.
    ids = sorted(names)
    return ClassList(tuple(map(str, ids)), {label: number for number, label in enumerate(ids)})


def _items(database: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the annotations of all videos that have the form of one; others are refused when they are read."""
    for entry in database.values():
        items = entry.get("annotations")
        yield from (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()
