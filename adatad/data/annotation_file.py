"""Annotation files and lists of names as they lie on disk, plain or gzip'd, and what can be wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from adatad.errors import UserError

GZIP_START = b"\x1f\x8b"
AMBIGUOUS = "Ambiguous"
"""THUMOS-14's label for parts that are neither action nor background."""


class AnnotationError(UserError):
    """An annotation file, class list or block list that can't be used; the message names the file, the video or the
    line, and what was expected."""


def load_database(path: str) -> dict[str, dict[str, Any]]:
    """The "database" of an annotation file (.json or .json.gz), by video name."""
    try:
        content = json.loads(read_text(path))
    except (OSError, EOFError, ValueError) as error:
        raise AnnotationError(f"{path}: not a readable JSON file: {error}") from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        raise AnnotationError(f'{path}: expected an object with a "database" of videos by name')
    return database


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file that hold something, without the blanks around them."""
    try:
        text = read_text(path)
    except (OSError, EOFError, ValueError) as error:
        raise AnnotationError(f"{path}: not a readable text file: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_names(source: str | Path | tuple[str, ...] | None) -> frozenset[str]:
    """Names out of a list, a text file with one a line, or a JSON file that is a list; None gives none."""
    if source is None or isinstance(source, tuple):
        return frozenset(source or ())
    lines = read_lines(source)
    if not lines or not lines[0].startswith(("[", "{")):
        return frozenset(lines)
    try:
        names = json.loads("\n".join(lines))
    except ValueError as error:
        raise AnnotationError(f"{source}: not a readable JSON file: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AnnotationError(f"{source}: expected a JSON list of names, or a text file with one name a line")
    return frozenset(names)


def read_text(path: str | Path) -> str:
    """A text file, plain or gzip'd. Raises OSError, EOFError or ValueError."""
    content = Path(path).read_bytes()
    # By its first bytes, whatever the file is called.
    return (gzip.decompress(content) if content.startswith(GZIP_START) else content).decode("utf-8-sig")
