"""The keys of a spec that are paths, with `~` and variables filled in once, when a spec is loaded."""

from __future__ import annotations

from typing import Any

from adatad.resources import here_or_resource
from adatad.spec.document import Document, Key, holds
from adatad.spec.text import PathError, as_written, expand

PATHS: tuple[Key, ...] = (
    ("data", "root"),
    ("data", "annotations"),
    ("data", "classes"),
    ("data", "blocked_videos"),
    ("data", "videos"),
    ("model", "backbone", "weights"),
    ("parallel", "deepspeed"),
    ("postprocess", "classifier", "file"),
    ("evaluate", "blocked_videos"),
    ("run", "root"),
)
STAGE_TO: Key = ("data", "stage_to")
"""The one path that is filled in later, on the machine whose disk it names."""


def expand_paths(document: Document) -> list[tuple[Key, str]]:
    """Fill in `~` and variables in a document's paths; returns the keys where that can't be done, and why."""
    problems = []
    for key in PATHS:
        section = _section(document.values, key)
        if section is not None and isinstance(section[key[-1]], str):
            try:
                section[key[-1]] = here_or_resource(expand(section[key[-1]]))
            except PathError as error:
                problems.append((key, str(error)))
    return problems


def contract_paths(values: dict[str, Any]) -> None:
    """Undo that, as far as loading the values again needs it: a dollar sign is written $$."""
    for key in PATHS:
        section = _section(values, key)
        if section is not None and isinstance(section[key[-1]], str):
            section[key[-1]] = as_written(section[key[-1]])


def _section(values: Any, key: Key) -> dict[str, Any] | None:
    """The mapping that holds the last part of a key; None if there is no such value."""
    for part in key[:-1]:
        if not holds(values, part):
            return None
        values = values[part]
    return values if isinstance(values, dict) and key[-1] in values else None
