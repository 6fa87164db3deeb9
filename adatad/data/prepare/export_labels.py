"""Annotations and detections of videos as files of annotation tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adatad.data.prepare.official import write
from adatad.data.prepare.video_files import Folder, files_below
from adatad.data.video_index import Heartbeat, read_index
from adatad.errors import UserError
from adatad.files import FileError, check_output_folder, files_to_write, listed, shown
from adatad.labels.forms import COUNTED_IN_FRAMES, FORMS, OF_ONE_VIDEO, read_labels, write_labels
from adatad.labels.problems import LabelError
from adatad.labels.records import VideoLabels
from adatad.labels.text_table import TableError, counted

NOT_IN_FILES = re.compile(r"[^\w.+ -]+")
"""Characters of a video's name that its files of labels don't have."""
MAX_NAME = 180
"""Bytes of a video's name that is part of a file's name."""
MAX_LISTED = 20
OTHER_JSON = tuple(ending for ending in FORMS.values() if ending.endswith(".json") and ending != ".json")
"""Endings of JSON files in other forms than ActivityNet's."""


class ExportError(UserError):
    """Labels that can't be written in the forms that are asked for; the message lists all that is wrong."""


@dataclass(frozen=True)
class ExportOptions:
    """threshold: least score of a detection; videos: folder of the files, for their rates, lengths and places; fps:
    frames a second of all videos; subset: of an annotation file; force: replace files that are there."""

    threshold: float | None = None
    videos: Path | None = None
    fps: float | None = None
    subset: str | None = None
    force: bool = False


def export_labels(
    source: Path,
    forms: Sequence[str],
    output: Path,
    options: ExportOptions = ExportOptions(),
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write the labels of a file, or of the files of a folder, in other forms; return the written paths.

    forms: keys of FORMS. One file a form holds all videos, or each its own where the form holds one. Raises
    ExportError, LabelError or FileError before anything is written.
    """
    videos = _read(source, say)
    videos = _chosen(videos, options, say)
    if options.videos is not None:
        videos = _with_facts(videos, Folder(options.videos), say)
    if options.fps is not None:
        videos = [replace(video, fps=options.fps) for video in videos]
    unknown = [video.name for video in videos if not video.fps]
    frames = sorted(set(forms) & COUNTED_IN_FRAMES)
    if unknown and frames:
        raise ExportError(
            f"{source}: times of {' and '.join(frames)} are frames, and the rate of {counted(len(unknown), 'video')} "
            f"isn't known: {listed(unknown)}; give --videos FOLDER or --fps N"
        )
    stem = source.stem if source.is_file() else source.resolve().name or "labels"
    texts = _texts(videos, forms, _plain(stem), output)
    there = [path for path in texts if path.exists()]
    if there and not options.force:
        raise ExportError(
            f"{output}: {counted(len(there), 'file')} there already: {listed([path.name for path in there])}; name "
            "another folder, or replace them with --force"
        )
    inputs = [source] if source.is_file() else []
    if output.exists():
        check_output_folder(output)
    with files_to_write(list(texts), inputs):
        write(texts)
    return list(texts)


def _read(source: Path, say: Callable[[str], None]) -> list[VideoLabels]:
    """Return the labels in a file, or in all JSON files of a folder. Raises ExportError."""
    paths = [source]
    if source.is_dir():
        paths = [file.path for file in files_below(source) if file.path.suffix.lower() == ".json"]
        # `adatad detect` writes further forms of the same detections beside its own files.
        paths = [path for path in paths if not path.name.endswith(OTHER_JSON)]
        if not paths:
            raise ExportError(f"{source}: holds no JSON files; expected annotations, or detections of adatad detect")
    videos: list[VideoLabels] = []
    wrong: list[str] = []
    for path in paths:
        notes: list[str] = []
        try:
            videos += read_labels(path, notes=notes)
        except LabelError as error:
            wrong += [f"{path}: {problem}" for problem in error.problems]
        for note in notes[1:]:
            say(f"{path}: {note}")
    if wrong:
        lines = "\n  ".join(["", listed(wrong, MAX_LISTED, "\n  ")])
        raise ExportError(f"{source}: {counted(len(wrong), 'problem')}; nothing was written:{lines}")
    twice = [name for name, count in Counter(video.name for video in videos).items() if count > 1]
    if twice:
        raise ExportError(f"{source}: several files hold labels of {listed(twice)}; name one of them")
    return videos


def _chosen(videos: list[VideoLabels], options: ExportOptions, say: Callable[[str], None]) -> list[VideoLabels]:
    """Return the videos of the subset, with the segments from the threshold on."""
    if options.subset is not None:
        there = sorted({video.subset or "none" for video in videos})
        videos = [video for video in videos if video.subset == options.subset]
        if not videos:
            raise ExportError(f"--subset {options.subset}: no video is of it; there are {listed(there)}")
    if options.threshold is None:
        return videos
    if not any(segment.score is not None for video in videos for segment in video.segments):
        raise ExportError("--threshold: these labels have no scores, as annotations haven't; leave it out")
    # Labels by hand among detections have no score, and are sure.
    kept = [
        replace(video, segments=tuple(s for s in video.segments if s.score is None or s.score >= options.threshold))
        for video in videos
    ]
    before, after = (sum(len(video.segments) for video in some) for some in (videos, kept))
    say(f"{after} of {before} segments have a score of {options.threshold:g} or more")
    return kept


def _with_facts(videos: list[VideoLabels], folder: Folder, say: Callable[[str], None]) -> list[VideoLabels]:
    """Return videos with the place, rate and length of their files."""
    found, missing = [], []
    for video in videos:
        path = None
        for name in dict.fromkeys(filter(None, (video.file, video.name))):
            with suppress(TableError):
                path = path or folder.find(name).path
        if path is None:
            missing.append(video.name)
            found.append(video)
            continue
        timeline = read_index(path, Heartbeat()).timeline
        # Whole, so that a tool finds the file from wherever its labels lie.
        found.append(
            replace(
                video, file=str(path.resolve()), duration_seconds=timeline.duration_seconds or video.duration_seconds,
                fps=timeline.usual_fps or video.fps, frame_count=timeline.frame_count,
            )
        )  # fmt: skip
    if missing:
        say(f"{counted(len(missing), 'video')} without a file in {folder.path}: {listed([shown(m) for m in missing])}")
    return found


def _texts(videos: list[VideoLabels], forms: Sequence[str], stem: str, output: Path) -> dict[Path, str]:
    """Return the text of each file."""
    texts: dict[Path, str] = {}
    for form in forms:
        if form not in OF_ONE_VIDEO:
            texts[output / f"{stem}{FORMS[form]}"] = write_labels(form, videos)
            continue
        for video in videos:
            # Folders become part of the name: of two videos called alike each has its own file.
            path = output / f"{_plain(video.name)}{FORMS[form]}"
            if path in texts:
                raise ExportError(f"{path.name}: is the name of several videos' labels; rename one of the videos")
            texts[path] = write_labels(form, [video])
    return texts


def _plain(name: str) -> str:
    """Return a name that any file system takes."""
    text = NOT_IN_FILES.sub("_", name).strip(". ")
    if len(text.encode()) > MAX_NAME:
        raise FileError(f"{shown(name, 40)}: is too long for the name of a file; rename the video")
    return text or "labels"
