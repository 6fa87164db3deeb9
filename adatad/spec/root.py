"""`data.root`: one folder that the paths of a data set start from, put into them once, when a spec is loaded."""

from __future__ import annotations

from pathlib import Path

from adatad.spec.schema import Spec

ROOT = ("data", "root")
UNDER_ROOT = ("annotations", "classes", "blocked_videos", "videos")
"""Keys of the data section whose relative paths start from the root."""


def under_root(spec: Spec) -> Spec:
    """The spec with the root in its paths and none left beside them: what reads a path needs to know no root, and a
    spec saved so loads back to itself."""
    root = spec.data.root
    if root is None:
        return spec
    paths = {name: getattr(spec.data, name) for name in UNDER_ROOT}
    joined = {name: _join(root, path) for name, path in paths.items() if isinstance(path, str)}
    return spec.model_copy(update={"data": spec.data.model_copy(update={**joined, "root": None})})


def _join(root: str, path: str) -> str:
    """A file called ~ stays one."""
    joined = str(Path(root) / path)
    return f"./{joined}" if joined.startswith("~") else joined
