"""Annotation files and name lists as they lie on disk, plain or gzip'd, and how names are compared."""

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
LINE_BREAKS = re.compile(r"\r\n|\r|\n")
LIST_STARTS = ("[", "{")
ES_PLURAL = re.compile(r"(?<=[sxz])es$|(?<=[cs]h)es$")


class AnnotationError(UserError):
    """Raised for an unusable annotation file, class list or block list; the message names the file, the video or line,
    and what was expected."""


def load_database(path: str) -> dict[str, dict[str, Any]]:
    """Read the "database" of an annotation file (.json or .json.gz), by video name. Raises AnnotationError, also for a
    video that appears twice."""
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
    """Return the lines of a text file that aren't blank, without surrounding spaces. Raises AnnotationError."""
    # Split only where editors do: str.splitlines also splits at rare characters, which a name may hold. Its reader then
    # refuses the name with a better message.
    return [line.strip() for line in LINE_BREAKS.split(read_text(path)) if line.strip()]


def read_names(source: str | Path | tuple[str, ...] | None) -> frozenset[str]:
    """Read names from a tuple, a text file with one name a line, or a JSON list; None gives none. Raises
    AnnotationError."""
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
    """Return a text that `read_names` reads back as these names: one a line, or a JSON list where a line can't hold
    one."""
    names = list(names)
    # A first name that begins like JSON would make `read_names` parse the text as JSON.
    fit = all(name == name.strip() and name and not LINE_BREAKS.search(name) for name in names)
    if fit and not (names and names[0].startswith(LIST_STARTS)):
        return "".join(f"{name}\n" for name in names)
    return json.dumps(names, indent=1) + "\n"


def read_text(path: str | Path) -> str:
    """Read a text file, plain or gzip'd. Raises AnnotationError."""
    try:
        return files.read_text(path)
    except FileError as error:
        raise AnnotationError(str(error)) from error


def folded(name: str) -> str:
    """Return a name without case, spaces, punctuation, invisible characters and plural endings."""
    # Cf: invisible characters, such as a zero-width space that was copied with a name.
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    words = re.split(r"[\W_]+", visible.casefold())
    return " ".join(_singular(word) for word in words if word) or visible.strip()


def _singular(word: str) -> str:
    """Return an English word without its plural ending, roughly: names are only compared by it, never shown."""
    if len(word) <= 3 or word.endswith("ss") or word.isdecimal():
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return ES_PLURAL.sub("", word) if ES_PLURAL.search(word) else word.removesuffix("s")


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return groups of names that are equal once `folded`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def told_apart(names: Sequence[str]) -> list[str]:
    """Return the names; those that only look the same, since accents are one character or two, with escapes."""
    looks = [unicodedata.normalize("NFC", name) for name in names]
    return [
        ascii(name)[1:-1] if looks.count(look) > 1 and not name.isascii() else name
        for name, look in zip(names, looks, strict=True)
    ]
