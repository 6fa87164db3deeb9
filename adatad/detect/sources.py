"""The videos that the SOURCE arguments of `adatad detect` mean: files, folders, globs, and lists of these.

A folder stands for the videos in it and in its subfolders, known by their endings; hidden files are left out. A file
that is named outright is taken for a video whatever its ending, but for lists: text files that end in .txt, .lst or
.list, or have no ending. They hold one path a line (or ended by a NUL byte, as `find -print0` writes them), relative to
the list's folder, and `#` before comments. `-` is a list on the standard input, relative to the current folder.

Videos come in natural order of their absolute paths ("v2" before "v10"), each file once, in whatever order the sources
were named. Each has a name of its own, which its results are written under (`output_names`).
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from adatad.data.prepare.video_files import files_below
from adatad.errors import UserError
from adatad.files import UTF16_STARTS, listed, read_bytes, read_start, reason, shown
from adatad.labels.forms import FORMS
from adatad.labels.names import VIDEO_ENDINGS

LIST_ENDINGS = (".txt", ".lst", ".list")
MAX_LIST_BYTES = 64 << 20
"""Limit of a list: half a million long paths."""
SNIFFED_BYTES = 4096
MAX_NAME_BYTES = 160
"""Longest name of a result: file systems take 255 bytes, and forms' endings and those of unfinished files follow."""
HASH_DIGITS = 8
MAX_PATH_BYTES = 4095
"""Longest path that Linux takes: a longer line is no path, and would be a glob that takes for ever."""
MAX_SHOWN = 200
"""Characters of a path that an error repeats: a line of a list may be anything."""
LIKE_FORMS = tuple(ending.removesuffix(".json") for ending in FORMS.values() if ending.count(".") > 1)
"""Ends of names that would make a video's JSON another video's file in one of the forms."""
KNOWN_ENDINGS = " ".join(sorted(VIDEO_ENDINGS))


class SourceVideo(NamedTuple):
    """A video to detect in. name: of its results; file: its path as it was given; path: absolute; size_bytes: 0 for one
    that isn't there."""

    name: str
    file: str
    path: Path
    size_bytes: int


class Found(NamedTuple):
    """Videos in natural order, and lines on files that were named several times."""

    videos: tuple[SourceVideo, ...]
    notes: tuple[str, ...]


def find_videos(sources: Sequence[str], read_stdin: Callable[[], bytes] | None = None) -> Found:
    """Return the videos that the sources mean. read_stdin: returns what `-` stands for, by default all of the standard
    input. Raises UserError for a source that isn't there or holds no videos. A path of a list that isn't there is kept,
    so that one missing video of many is reported as a broken one is."""
    given: list[Path] = []
    for source in sources:
        if source == "-":
            content = (read_stdin or sys.stdin.buffer.read)()
            given += _of_list(content, "the standard input", Path())
        else:
            given += _of_source(source)
    return _distinct(given)


def _of_source(source: str) -> list[Path]:
    """Return the paths of one argument. Raises UserError."""
    if not source:
        raise UserError("SOURCE: expected a video, a folder, a glob or a list, got ''")
    _check_length(source, "SOURCE")
    if "://" in source:
        raise UserError(f"{shown(source, MAX_SHOWN)}: is an address; download the video, and name the file")
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir() or (path.exists() and (path.suffix.lower() in VIDEO_ENDINGS or not _is_list(path))):
            return _of_path(path)
        if path.exists():
            return _of_list(read_bytes(path, MAX_LIST_BYTES), str(path), path.parent)
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(source, MAX_SHOWN)}: can't be read: {reason(error)}") from error
    # After what is there: a[1].mp4 may be a file's own name.
    found = _of_glob(os.path.expanduser(source), Path())
    if found:
        return found
    if glob.has_magic(source):
        raise UserError(f"{shown(source, MAX_SHOWN)}: no video matches it; endings of videos are {KNOWN_ENDINGS}")
    raise UserError(
        f"{shown(source, MAX_SHOWN)}: isn't there; name a video, a folder, a glob in quotes, or a list of paths"
    )


def _of_path(path: Path) -> list[Path]:
    """Return a file itself, or the videos of a folder. Raises UserError for a folder without videos."""
    if not path.is_dir():
        return [path]
    files = files_below(path)
    videos = [file.path for file in files if file.is_video]
    if not videos:
        there = f"only {listed([file.relative for file in files])}" if files else "it is empty, but for hidden files"
        raise UserError(f"{shown(path)}: holds no videos, {there}; endings of videos are {KNOWN_ENDINGS}")
    return videos


def _of_glob(pattern: str, base: Path) -> list[Path]:
    """Return the videos, and those of the folders, that match a glob below a folder; none for other text."""
    if not glob.has_magic(pattern):
        return []
    # Not base / pattern: the list's own folder may be called a[1].
    matches = [base / found for found in glob.glob(pattern, root_dir=base, recursive=True)]
    # `**` matches a folder and all in it: files that come several times are sorted out later.
    below = [file.path for folder in matches if folder.is_dir() for file in files_below(folder) if file.is_video]
    return [path for path in matches if path.is_file() and path.suffix.lower() in VIDEO_ENDINGS] + below


def _is_list(path: Path) -> bool:
    """Return whether a file is a list, by its ending; without one, as text. Raises FileError if it can't be read."""
    if path.suffix:
        return path.suffix.lower() in LIST_ENDINGS
    start = read_start(path, SNIFFED_BYTES)
    if start.startswith(UTF16_STARTS):
        return True
    try:
        # Not final: a character may be cut where the piece ends.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def _of_list(content: bytes, where: str, base: Path) -> list[Path]:
    """Return the paths of a list. where: names it in errors. Raises UserError if it holds none, or none that is
    there."""
    paths: list[Path] = []
    lines = _lines(content)
    for line in lines:
        paths += _of_line(line, where, base)
    if not lines:
        raise UserError(f"{shown(where)}: holds no paths; expected the path of a video on each line")
    if not any(os.path.lexists(path) for path in paths):
        raise UserError(
            f"{shown(where)}: none of its {len(paths)} paths is there, such as {shown(paths[0], MAX_SHOWN)}; they are "
            f"relative to {shown(base.absolute())}"
        )
    return paths


def _lines(content: bytes) -> list[str]:
    """Return the paths of a list as text, without comments and empty lines. Bytes that are no text stay as Python has
    them in names of files."""
    if content.startswith(UTF16_STARTS):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
    # What ends paths by NUL bytes has line breaks in their names, and no comments.
    if "\0" in text:
        return [path for path in text.split("\0") if path]
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _of_line(line: str, where: str, base: Path) -> list[Path]:
    """Return the paths that a line of a list means. Raises UserError."""
    _check_length(line, where)
    try:
        # Blanks around a path are meant only if there is such a file.
        for text in dict.fromkeys((line, line.strip())):
            path = base / os.path.expanduser(text)
            if os.path.lexists(path):
                return _of_path(path)
            if found := _of_glob(os.path.expanduser(text), base):
                return found
        return [path]
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(where)}: {shown(line, MAX_SHOWN)}: can't be read: {reason(error)}") from error


def _check_length(text: str, where: str) -> None:
    """Raise UserError for a text that is no path of this system."""
    if len(os.fsencode(text)) > MAX_PATH_BYTES:
        raise UserError(f"{shown(where)}: {shown(text, MAX_SHOWN)} is no path: it has more than {MAX_PATH_BYTES} bytes")


def _distinct(given: Iterable[Path]) -> Found:
    """Return each file once, under the first of its names in natural order."""
    # Links aren't resolved: the name that was given names the results. Of several ways to write it the first stays.
    paths = {os.path.abspath(path): path for path in reversed(list(given))}
    kept: dict[object, str] = {}
    sizes: dict[str, int] = {}
    notes = []
    for absolute in sorted(paths, key=natural_key):
        try:
            facts = os.stat(absolute)
            # Disks without such numbers give 0 to all files.
            identity = (facts.st_dev, facts.st_ino) if facts.st_ino else absolute
            size = facts.st_size
        except OSError:
            identity, size = absolute, 0
        if identity in kept:
            same = shown(paths[kept[identity]])
            notes.append(f"{shown(paths[absolute])}: is the same file as {same}, and isn't done again")
        else:
            kept[identity], sizes[absolute] = absolute, size
    names = output_names(list(sizes))
    videos = (SourceVideo(names[path], str(paths[path]), Path(path), size) for path, size in sizes.items())
    return Found(tuple(videos), tuple(notes))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers in texts by their value, and else without regard to case."""
    parts: list[str | int] = [*re.split(r"(\d+)", text.casefold())]
    # Every second part is a number, so that parts of one kind are compared.
    parts[1::2] = map(int, parts[1::2])
    return parts, text


def output_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the name of each video's results, by its absolute path.

    It is the file's name without its ending. Where videos share that, whether or not in upper case, it is the whole
    file name, else as many folders before the name as tell them apart, with "_" between: cam1_a and cam2_a. Names that
    would still be equal, too long ones, and those that end as a form's file does, end in digits that stand for the
    path. The names depend on the set of the paths alone.
    """
    same: dict[str, list[str]] = {}
    for path in paths:
        same.setdefault(_folded(Path(path).stem), []).append(path)
    names: dict[str, str] = {}
    for group in same.values():
        names |= _told_apart(group)
    for path, name in names.items():
        if name.casefold().endswith(LIKE_FORMS):
            names[path] = f"{name}-{_digits(path)}"
        # "ignore": a character of several bytes may be cut.
        if len(os.fsencode(name)) > MAX_NAME_BYTES:
            start = os.fsencode(name)[: MAX_NAME_BYTES - HASH_DIGITS - 1].decode("utf-8", errors="ignore")
            names[path] = f"{start}-{_digits(path)}"
    taken = Counter(map(_folded, names.values()))
    return {path: name if taken[_folded(name)] == 1 else f"{name}-{_digits(path)}" for path, name in names.items()}


def _told_apart(group: list[str]) -> dict[str, str]:
    """Return the names of videos that share a stem."""
    if len(group) == 1:
        return {group[0]: Path(group[0]).stem}
    # From the shortest names on. Paths that differ in case alone stay equal in all ways, and get digits.
    ways: list[Callable[[Path], str]] = [lambda path: path.name]
    depth = max(len(Path(path).parts) for path in group)
    for ending in (False, True):
        for folders in range(1, depth):
            ways.append(lambda path, folders=folders, ending=ending: _with_folders(path, folders, ending))
    for way in ways:
        names = {path: way(Path(path)) for path in group}
        if len(set(map(_folded, names.values()))) == len(group):
            break
    return names


def _with_folders(path: Path, folders: int, ending: bool) -> str:
    """Return a name with so many folders before it."""
    # The first part is the root.
    return "_".join([*path.parts[1:-1][-folders:], path.name if ending else path.stem])


def _folded(name: str) -> str:
    """Return a name as file systems compare it that know no case, and one form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _digits(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:HASH_DIGITS]
