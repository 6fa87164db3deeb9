"""The folder of results: what of a list is done there, and how a result is written beside its further forms.

A result appears under its name only when it is whole, and names its further forms before they are written. So whenever
a run is killed, the next one finds what is missing, and tells its own files from those of others, which it never
replaces.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from adatad.detect.result_file import MadeBy, VideoResult, is_changed, read_result, result_path, stamp_of, write_result
from adatad.detect.selection import Selection
from adatad.detect.sources import SourceVideo
from adatad.errors import UserError
from adatad.files import read_start, shown, write_text
from adatad.labels.forms import FORMS, write_labels

FURTHER_FORMS = {form: ending for form, ending in FORMS.items() if form != "activitynet"}
"""Forms that can be written beside the JSON file, and how their files end."""
UNFINISHED = re.compile(r"\.(.+)\.\d+\.unfinished(\.\w+)?", re.DOTALL)
PAGE = "detections.html"
PAGE_MARK = b'<meta name="generator" content="adatad">'
"""By which a page of ours is known; it stands among its first lines."""
PAGE_START_BYTES = 4096
STALE_SECONDS = 3600
"""Age of an unfinished file that no process can be at work on any more."""


@dataclass
class FolderPlan:
    """Work that is left in a folder. todo: videos that a model must look at; renew: results that another selection or
    further forms are to be written of; done: results that stay; notes: lines on what is done anew."""

    todo: list[SourceVideo] = field(default_factory=list)
    renew: list[VideoResult] = field(default_factory=list)
    done: list[VideoResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(
    videos: Sequence[SourceVideo], folder: Path, made: MadeBy, selection: Selection, formats: Sequence[str],
    force: bool = False,
) -> FolderPlan:  # fmt: skip
    """Return what is left to do in a folder.

    made, selection, formats: what the results are to be. force: do all anew. Raises UserError for results of another
    model or another video, and, forced or not, where a file of somebody else's would be replaced.
    """
    found, refused = FolderPlan(), []
    for video in videos:
        # Before the question whether it is done: forced, too, files of others stay.
        result = read_result(folder, video.name)
        _refuse_foreign(folder, video.name, result.formats if result else (), formats)
        if result is None or force:
            found.todo.append(video)
            continue
        if problem := _made_otherwise(result, made) or _of_another_video(result, video):
            refused.append(f"{shown(result_path(folder, video.name))}: {problem}")
        elif is_changed(result, video):
            found.notes.append(f"{shown(video.file)}: has changed since its result was written, and is done anew")
            found.todo.append(video)
        elif result.selection.as_json() != selection.as_json() or _missing(folder, result, formats):
            # A video that was moved is named by its new place.
            here = result.video._replace(file=video.file)
            found.renew.append(replace(result, selection=selection, video=here))
        else:
            found.done.append(result)
    if refused:
        more = f" ({len(refused)} such results)" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{more}; name another folder, or do all anew with --force")
    return found


def _refuse_foreign(folder: Path, name: str, ours: Collection[str], formats: Sequence[str]) -> None:
    """Raise UserError if a further form would replace a file that isn't ours, such as subtitles beside a video."""
    for form in set(formats) - set(ours):
        path = folder / f"{name}{FURTHER_FORMS[form]}"
        if os.path.lexists(path):
            raise UserError(
                f"{shown(path)}: wasn't written by adatad detect, and --formats {form} would replace it: name another "
                "folder"
            )


def refuse_foreign_page(folder: Path) -> None:
    """Raise UserError if the page would replace one that isn't ours."""
    page = folder / PAGE
    if page.is_file() and PAGE_MARK not in read_start(page, PAGE_START_BYTES):
        raise UserError(f"{shown(page)}: wasn't written by adatad detect: name another folder, or --no-page")


def _made_otherwise(result: VideoResult, made: MadeBy) -> str:
    """Return how a result was made otherwise; empty if it wasn't."""
    if result.made.fingerprint != made.fingerprint:
        return f"was made by another model, {shown(result.made.model)}"
    if result.made.windows != made.windows:
        return f"was made {'with' if result.made.windows else 'without'} --windows"
    return ""


def _of_another_video(result: VideoResult, video: SourceVideo) -> str:
    """Return which other video a result is of; empty if it is of this one, or of this one before it was moved."""
    # Size and time of change go with a file that is moved, or copied with them.
    same_place = Path(result.video.file).absolute() == video.path
    if same_place or stamp_of(video) == (result.video.size_bytes, result.video.modified_ns):
        return ""
    return f"is of another video, {shown(result.video.file)}"


def _missing(folder: Path, result: VideoResult, formats: Sequence[str]) -> bool:
    """Return whether further forms of a result are to be written."""
    named = {*result.formats, *formats}
    return not all((folder / f"{result.name}{FURTHER_FORMS[form]}").exists() for form in named if form in FURTHER_FORMS)


def save(folder: Path, result: VideoResult, formats: Sequence[str]) -> VideoResult:
    """Write a result with its further forms, those that it had before among them; return it as it was written.

    Raises FileError, and LabelError for detections that a form can't hold; the JSON file is written then.
    """
    before = read_result(folder, result.name)
    named = dict.fromkeys([*(before.formats if before else ()), *formats])
    result = replace(result, formats=tuple(form for form in named if form in FURTHER_FORMS))
    # Forms of an earlier run are kept up to date, too: old ones would belie the JSON file.
    paths = {form: folder / f"{result.name}{FURTHER_FORMS[form]}" for form in result.formats}
    if before:
        # So that no form of the old detections is taken for one of the new ones after a kill.
        for form in before.formats:
            if form in paths:
                paths[form].unlink(missing_ok=True)
    # Before the other forms, as it names them: without it they would be files of somebody else.
    write_result(folder, result)
    labels = result.labels(result.detections)
    for form, path in paths.items():
        write_text(path, write_labels(form, [labels]))
    return result


def remove_unfinished(
    folder: Path, videos: Sequence[SourceVideo], now_seconds: float | None = None,
    endings: Collection[str] = tuple(FORMS.values()),
) -> None:  # fmt: skip
    """Remove what a process that was killed while it wrote has left of these videos' files. now_seconds: since 1970;
    endings: of such files."""
    now = time.time() if now_seconds is None else now_seconds
    # Of this list alone: the folder may be another program's, too.
    names = {f"{video.name}{ending}" for video in videos for ending in endings}
    for entry in os.scandir(folder):
        part = UNFINISHED.fullmatch(entry.name)
        # Younger ones may be those of another process, which is at work on the same list.
        with suppress(OSError):
            if part and part[1] in names and now - entry.stat().st_mtime > STALE_SECONDS:
                os.unlink(entry.path)
