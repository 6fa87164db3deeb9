"""`data.pattern`: the file name of a video, with the video's name in it once."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from adatad.spec.text import cut, path_problem

NAME = "{name}"


def pattern_problem(pattern: str) -> str | None:
    """What is wrong with a pattern; None if a name can be filled in."""
    shown = repr(cut(pattern))
    if NAME not in pattern:
        return f"{shown} doesn't hold {NAME}, the video's name"
    if pattern.count(NAME) > 1:
        return f"{shown} holds {NAME} {pattern.count(NAME)} times; expected once"
    rest = pattern.replace(NAME, "")
    if "{" in rest or "}" in rest:
        other = re.search(r"\{[^{}]*\}|[{}]", rest)
        return f"{shown} holds {cut(other[0])}; expected {NAME} once, and nothing else in braces"
    if leaves_folder(pattern):
        return f"{shown} leaves data.videos; expected a file name below that folder"
    return path_problem(pattern)


def fill(pattern: str, name: str) -> str:
    """The file name of a video, relative to data.videos."""
    return pattern.replace(NAME, name)


def file_name_problem(pattern: str, name: str) -> str | None:
    """Why a name can't be that of a file below the folder of videos, as the rest of a sentence; None if it can."""
    if not name:
        return "has no name"
    file = fill(pattern, name)
    if leaves_folder(file):
        return "leaves the folder of videos; a name has no .. and doesn't begin with a slash"
    return path_problem(file)


def leaves_folder(path: str) -> bool:
    """Whether a relative path could lead out of the folder that it is joined to."""
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts
