"""Text of a spec: which characters it may hold, how messages show it, and how it becomes a path or file name."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable

from adatad.files import shown

LINE_BREAKS = "\n\r\x0b\x0c\x85\u2028\u2029"
MAX_PART_BYTES = 255
"""Bytes of one part of a path, as file systems take it."""
MAX_PATH_BYTES = 2_000
"""Bytes of a path: half of what Linux takes, for what a run puts below it."""
MAX_SHOWN = 80
"""Characters of a value or key in a message."""
MAX_WORD = 100
"""Letters of a word for which a near one is looked for."""
NOT_IN_PROJECT = "/\\#?%:"
MAX_PROJECT_CHARACTERS = 128
VARIABLE = re.compile(r"\$(?:\$|(\w+)|\{([^{}]*)\})", re.ASCII)

# reprlib stops at its bounds; repr() would write the whole value before anything is cut.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = MAX_SHOWN
_REPR.maxlevel = 3


def short(value: object) -> str:
    """Return the value as Python writes it, of bounded length and depth."""
    return shown(_REPR.repr(value))


def cut(text: object) -> str:
    """Return a name or path for a message: printable, and not endless."""
    return shown(text, 3 * MAX_SHOWN)


def cut_key(name: str) -> str:
    """Return a key's part for a message: printable, and no longer than any word."""
    return shown(name, MAX_SHOWN)


def forbidden_character(text: str) -> str | None:
    """Return, in words, the first character that no path, shell line or terminal may get; None if there is none."""
    for character in text:
        if character in LINE_BREAKS:
            return f"a line break ({shown(character)})"
        kind = unicodedata.category(character)
        if kind == "Cc":
            return f"the control character {shown(character)}"
        # A lone surrogate, which can't be written as UTF-8.
        if kind == "Cs":
            return f"half of a character ({shown(character)})"
    return None


def path_problem(path: str) -> str | None:
    """Return what keeps a text from being a path at all; None if it can be one."""
    if not path:
        return "is empty; expected a path"
    if found := forbidden_character(path):
        return f"holds {found}; a path has none"
    # In bytes, as file systems count: a name of 100 Chinese characters is 300 long.
    if any(len(part.encode()) > MAX_PART_BYTES for part in path.split("/")):
        return f"has a part of more than {MAX_PART_BYTES} bytes between two slashes, which no file system takes"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    return None


def name_problem(name: str) -> str | None:
    """Return what keeps a text from being the name of a spec, which becomes a folder below run.root and the name of a
    job; None if it can be one."""
    if found := forbidden_character(name):
        return f"holds {found}; expected words, / and -"
    if not name.isprintable():
        return f"{shown(name)!r} holds characters that can't be seen; expected words, / and -"
    parts = name.split("/")
    # A name becomes folders below run.root, and must stay below it.
    if any(part in ("", ".", "..") or not part.strip() for part in parts):
        return (
            f"{cut(name)!r} isn't a folder below run.root; expected a name such as demo/tia, without empty parts and .."
        )
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts) or len(name.encode()) > MAX_PATH_BYTES // 2:
        return f"is too long: at most {MAX_PART_BYTES} bytes between two slashes, {MAX_PATH_BYTES // 2} in all"
    return None


def project_problem(project: str) -> str | None:
    """Return what keeps a text from being a project of Weights & Biases; None if it can be one."""
    if not project.strip():
        return "is empty; expected the name of a project, or null for none"
    if found := forbidden_character(project):
        return f"holds {found}; expected the name of a project"
    if found := next((character for character in project if character in NOT_IN_PROJECT), None):
        return f"holds {found!r}; Weights & Biases takes none of {' '.join(NOT_IN_PROJECT)} in a project's name"
    if len(project) > MAX_PROJECT_CHARACTERS:
        return f"is longer than the {MAX_PROJECT_CHARACTERS} characters that Weights & Biases takes"
    return None


class PathError(ValueError):
    """A `~` or variable in a path that stands for nothing here; the message says which."""


def expand(path: str) -> str:
    """Return a path with `~`, `~user`, `$NAME` and `${NAME}` filled in; `$$` is a dollar sign. Raises PathError."""
    # expanduser leaves a user that it doesn't know as text.
    home = os.path.expanduser(path)
    if path.startswith("~") and home == path:
        user = path.partition("/")[0]
        raise PathError(f"{cut(user)} is no user's home here; write ./{cut(user)} for a file of that name")
    # Variables are filled in only in what the user wrote: a dollar sign in the home's own path stays.
    start = home[: len(home) - len(path.lstrip("~"))] if path == "~" or path.startswith("~/") else ""
    return start + VARIABLE.sub(_value, home[len(start) :])


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if found[0] == "$$":
        return "$"
    # Empty counts as unset: "$DATA/videos" would become the root's /videos.
    value = os.environ.get(name, "") if name and "\0" not in name and "=" not in name else ""
    if not value:
        raise PathError(
            f"the variable {cut(found[0])} isn't set; set it (export {cut(name or 'NAME')}=...), or write $$ for a "
            "dollar sign"
        )
    return value


def as_written(path: str) -> str:
    """Return the text that `expand` turns into this path."""
    path = path.replace("$", "$$")
    # There is no escape for a tilde, but only a leading one has a meaning.
    return f"./{path}" if path.startswith("~") else path


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the choice that a mistyped word is most like; None if none is near."""
    # difflib takes time by the product of lengths.
    if len(word) > MAX_WORD:
        return None
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return close[0] if close else None


NAME = "{name}"
"""Placeholder of `data.pattern` for a video's name."""


def pattern_problem(pattern: str) -> str | None:
    """Return what is wrong with a pattern; None if a name can be filled in."""
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
    """Return the file name of a video, relative to data.videos."""
    return pattern.replace(NAME, name)


def file_name_problem(pattern: str, name: str) -> str | None:
    """Return why a name can't be that of a file below the folder of videos, as the rest of a sentence; None if it
    can."""
    if not name:
        return "has no name"
    file = fill(pattern, name)
    if leaves_folder(file):
        return "leaves the folder of videos; a name has no .. and doesn't begin with a slash"
    return path_problem(file)


def leaves_folder(path: str) -> bool:
    """Return whether a relative path could lead out of the folder that it is joined to."""
    # Names come from annotation files, which may be anybody's: none may point outside the folder of videos.
    return path.startswith("/") or ".." in path.split("/")
