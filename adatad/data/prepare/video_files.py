"""Video files in a folder and its subfolders, and which of them the names in a table mean."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from adatad.files import listed, reason, shown
from adatad.labels.names import VIDEO_ENDINGS
from adatad.labels.text_table import TableError
from adatad.labels.values import has_control_characters

NOT_VIDEOS = ("__MACOSX", "@eaDir")
"""Folders that systems create beside videos, with files of the videos' names."""
PLAIN_ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}")


class VideoFile(NamedTuple):
    """A file. relative: path below the folder, with "/"; path: with the folder."""

    relative: str
    path: Path

    @property
    def is_video(self) -> bool:
        """True for a video, by its ending: subtitles and notes lie beside videos under their names."""
        return self.path.suffix.lower() in VIDEO_ENDINGS


class Folder:
    """Files of a folder, found by the names in a table."""

    def __init__(self, path: Path):
        """List the files. Raises TableError for a folder that holds no videos."""
        self.path = path
        if not path.is_dir():
            raise TableError(f"{path}: is {'a file' if path.exists() else 'no folder'}; expected the folder of videos")
        self.files = files_below(path)
        self.videos = [file for file in self.files if file.is_video]
        if not self.videos:
            there = f"only {listed([f.relative for f in self.files])}" if self.files else "it is empty"
            raise TableError(f"{path}: holds no videos, {there}; put the videos there, or name their folder")
        self._with_ending = _tails(self.files, lambda file: file.relative)
        self._without_ending = _tails(self.videos, lambda file: file.relative.removesuffix(file.path.suffix))

    def find(self, name: str) -> VideoFile:
        """Return the file that a name means. Raises TableError for none or several.

        A name is a file's path below the folder, or the last part of that, with or without its ending; or a longer path
        that ends so.
        """
        parts = _parts(name)
        exactly_here = name.startswith(("./", ".\\"))
        # Exact matches go before those that differ in case.
        for fold in (str, str.casefold):
            # The whole path first, then without its first folders: tables may come from another machine.
            for start in range(len(parts)):
                key = "/".join(parts[start:])
                found = self._called(key, fold)
                # "b/k0.mp4" must not find a/k0.mp4: folders in the table may lie above this folder, but not elsewhere.
                if start or exactly_here or "/" in key:
                    whole = [file for file in found if fold(key) in (fold(p) for p in _full_names(file))]
                    found = whole or ([] if start or exactly_here else found)
                if len(found) == 1:
                    return found[0]
                if found:
                    raise TableError(_several(name, found))
        raise TableError(f"video {shown(repr(name))}: no file of that name in {self.path}{self._hint(parts)}")

    def _called(self, key: str, fold: Callable[[str], str]) -> list[VideoFile]:
        """Return files whose paths end so: videos by their full name, then without their ending, then other files."""
        found = [file for file in self._with_ending.get(fold(key), ()) if _ends_so(file.relative, key, fold)]
        videos = [file for file in found if file.is_video]
        if videos:
            return videos
        stems = self._without_ending.get(fold(key), ())
        stems = [f for f in stems if _ends_so(f.relative.removesuffix(f.path.suffix), key, fold)]
        return stems or found

    def _hint(self, parts: list[str]) -> str:
        last = (parts or [""])[-1]
        others = [f.relative for f in self.files if f.path.stem in (last, PurePosixPath(last).stem)]
        if others:
            return f"; there is {listed(others)}"
        return f", which holds {listed([file.relative for file in self.videos])}"


def names_in_annotations(files: Iterable[VideoFile]) -> tuple[dict[VideoFile, str], str]:
    """Return the name of each file in annotations, and the `data.pattern` that goes with it: paths without their ending
    if all share one, else full paths."""
    files = list(files)
    # With one ending the names are those of other lists of the data set, which have none.
    endings = {file.path.suffix for file in files}
    ending = min(endings)
    if len(endings) == 1 and PLAIN_ENDING.fullmatch(ending):
        return {file: file.relative.removesuffix(ending) for file in files}, f"{{name}}{ending}"
    return {file: file.relative for file in files}, "{name}"


def files_below(folder: Path) -> list[VideoFile]:
    """Return all files, in order; links to folders are followed, but into no folder twice. Raises TableError."""

    def stop(error: OSError) -> None:
        """Raise TableError: os.walk would pass over a folder that can't be read."""
        raise TableError(f"{error.filename}: can't be read: {reason(error)}")

    found, seen = [], set()
    for where, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        # A link to a parent folder would be walked for ever.
        real = os.path.realpath(where)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in NOT_VIDEOS and real not in seen)
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            path = Path(where) / name
            # macOS, for one, hides files such as ._name.mp4 beside the videos.
            if not name.startswith(".") and path.is_file():
                found.append(VideoFile(path.relative_to(folder).as_posix(), path))
    return sorted(found)


def _tails(files: list[VideoFile], path: Callable[[VideoFile], str]) -> dict[str, list[VideoFile]]:
    """Index files by every tail of their path, as it is and without case."""
    found: dict[str, list[VideoFile]] = {}
    for file in files:
        parts = _composed(path(file)).split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for key in {tail, tail.casefold()}:
                found.setdefault(key, []).append(file)
    return found


def _ends_so(path: str, key: str, fold: Callable[[str], str]) -> bool:
    return f"/{fold(_composed(path))}".endswith(f"/{fold(key)}")


def _full_names(file: VideoFile) -> tuple[str, str]:
    """Return the path with and without its ending."""
    path = _composed(file.relative)
    return path, path.removesuffix(_composed(file.path.suffix))


def _parts(name: str) -> list[str]:
    """Split a path, written as on any system, or an address."""
    return [part for part in _composed(name).replace("\\", "/").split("/") if part not in ("", ".")]


def _composed(text: str) -> str:
    """Return text with accents as one character: file systems and spreadsheets differ there."""
    return unicodedata.normalize("NFC", text)


def _several(name: str, found: list[VideoFile]) -> str:
    paths = [file.relative if "/" in file.relative else f"./{file.relative}" for file in found]
    return f"video {shown(repr(name))}: {len(found)} files of that name: {listed(paths)}; write which of them is meant"


def unfit(file: VideoFile) -> str:
    """Return why a file's name can't be used in annotations and lists; empty if it can."""
    if has_control_characters(file.relative):
        return f"video '{shown(file.relative)}': its name holds a line break or another control character; rename it"
    return ""
