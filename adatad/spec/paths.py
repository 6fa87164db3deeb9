"""The paths of a spec: variables filled in when it is loaded, `data.root` put in front, and written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adatad.resources import here_or_resource
from adatad.spec.document import Document, Key, section_at
from adatad.spec.schema import PATHS, Spec
from adatad.spec.text import PathError, as_written, expand

ROOT = ("data", "root")
# Not weights or the run's root, which usually lie elsewhere.
UNDER_ROOT = ("annotations", "classes", "blocked_videos", "videos", "features")
"""Keys of the data section whose relative paths start from the root."""


def expand_paths(document: Document) -> list[tuple[Key, str]]:
    """Fill in `~` and variables in a document's paths; returns the keys where that can't be done, and why."""
    problems = []
    # Values that aren't text are left to validation.
    for key in PATHS:
        section = section_at(document.values, key[:-1])
        if section is not None and isinstance(section.get(key[-1]), str):
            try:
                section[key[-1]] = here_or_resource(expand(section[key[-1]]))
            except PathError as error:
                problems.append((key, str(error)))
    return problems


def contract_paths(values: dict[str, Any]) -> None:
    """Write paths so that loading them again leaves them as they are: a dollar sign is $$."""
    for key in PATHS:
        section = section_at(values, key[:-1])
        if section is not None and isinstance(section.get(key[-1]), str):
            section[key[-1]] = as_written(section[key[-1]])


def under_root(spec: Spec) -> Spec:
    """Return the spec with `data.root` in its paths, and null in its place.

    What reads a path then needs to know no root, and a spec that is saved so loads back to itself.
    """
    root = spec.data.root
    if root is None:
        return spec
    joined = {}
    for name in UNDER_ROOT:
        path = getattr(spec.data, name)
        # Lists of classes or names are no paths; an absolute path stays as it is.
        if isinstance(path, str):
            below = str(Path(root) / path)
            # A file called ~ stays one when the path is loaded again.
            joined[name] = f"./{below}" if below.startswith("~") else below
    return spec.model_copy(update={"data": spec.data.model_copy(update={**joined, "root": None})})
