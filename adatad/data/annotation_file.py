"""Annotation files and lists of names as they lie on disk, plain or gzip'd, and what can be wrong with them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adatad import files
from adatad.errors import UserError
from adatad.files import FileError, StandsTwiceError, shown

AMBIGUOUS = "Ambiguous"
"""THUMOS-14's label for parts that are neither action nor background."""
SUBSETS = {
    "training": "training", "train": "training", "trn": "training", "tr": "training",
    "validation": "validation", "val": "validation", "valid": "validation", "validate": "validation",
    "dev": "validation",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""Names of subsets in annotation files and tables, and the name that is used here."""
MAX_LISTED = 5
"""Names that a warning lists; it counts the rest."""
LINE_BREAKS = re.compile(r"\r\n|\r|\n")
LIST_STARTS = ("[", "{")
ES_PLURAL = re.compile(r"(?<=[sxz])es$|(?<=[cs]h)es$")


class AnnotationError(UserError):
    """An annotation file, class list or block list that can't be used; the message names the file, the video or the
    line, and what was expected."""


def load_database(path: str) -> dict[str, dict[str, Any]]:
    """The "database" of an annotation file (.json or .json.gz), by video name. Raises AnnotationError, also for a video
    that stands twice."""
    try:
        content = files.read_json(path)
    except StandsTwiceError as error:
        what = "video " if isinstance(error.value, dict) and error.key != "database" else ""
        raise AnnotationError(
            f"{path}: {what}{shown(repr(error.key))} stands twice in the file; keep one of the two, or join them"
        ) from error
    except FileError as error:
        raise AnnotationError(str(error)) from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        raise AnnotationError(f'{path}: expected an object with a "database" of videos by name')
    return database


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file that hold something, without the blanks around them. Raises AnnotationError."""
    # Only what editors break lines at: a name may hold other breaks, which its reader then refuses by name.
    return [line.strip() for line in LINE_BREAKS.split(read_text(path)) if line.strip()]


def read_names(source: str | Path | tuple[str, ...] | None) -> frozenset[str]:
    """Names out of a list, a text file with one a line, or a JSON file that is a list; None gives none."""
    if source is None or isinstance(source, tuple):
        return frozenset(source or ())
    text = read_text(source)
    if not text.lstrip().startswith(LIST_STARTS):
        return frozenset(line.strip() for line in LINE_BREAKS.split(text) if line.strip())
    try:
        names = files.parse_json(text, source)
    except FileError as error:
        raise AnnotationError(str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AnnotationError(f"{source}: expected a JSON list of names, or a text file with one name a line")
    return frozenset(names)


def names_text(names: Iterable[str]) -> str:
    """A text that `read_names` reads back as these names: one a line, or a JSON list where a line can't hold one."""
    names = list(names)
    fit = all(name == name.strip() and name and not LINE_BREAKS.search(name) for name in names)
    if fit and not (names and names[0].startswith(LIST_STARTS)):
        return "".join(f"{name}\n" for name in names)
    return json.dumps(names, indent=1) + "\n"


def read_text(path: str | Path) -> str:
    """A text file, plain or gzip'd. Raises AnnotationError."""
    try:
        return files.read_text(path)
    except FileError as error:
        raise AnnotationError(str(error)) from error


def folded(name: str) -> str:
    """What is left of a name when case, blanks, dashes, invisible characters and plural endings don't count."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    words = re.split(r"[\W_]+", visible.casefold())
    return " ".join(_singular(word) for word in words if word) or visible.strip()


def _singular(word: str) -> str:
    if len(word) <= 3 or word.endswith("ss") or word.isdecimal():
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return ES_PLURAL.sub("", word) if ES_PLURAL.search(word) else word.removesuffix("s")


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in no more than `folded` forgives."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def told_apart(names: Sequence[str]) -> list[str]:
    """The names; where two look the same, since accents are one character or two, these as escapes."""
    looks = [unicodedata.normalize("NFC", name) for name in names]
    return [
        ascii(name)[1:-1] if looks.count(look) > 1 and not name.isascii() else name
        for name, look in zip(names, looks, strict=True)
    ]


def listed(names: Sequence[str], most: int = MAX_LISTED) -> str:
    """A few names, as they can be printed, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
