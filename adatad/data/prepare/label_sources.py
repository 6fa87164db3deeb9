"""Labels of own videos out of files of any form: a file, several, or folders of them, read into one list of videos."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from adatad.data.prepare.video_files import files_below
from adatad.data.video_index import Heartbeat, read_index
from adatad.errors import UserError
from adatad.files import parse_json, shown
from adatad.labels.content import read_content
from adatad.labels.forms import read_labels
from adatad.labels.instance_table import Instance, instances_in, line_of, recognizer
from adatad.labels.names import VIDEO_ENDINGS, media_path
from adatad.labels.problems import LabelError
from adatad.labels.recognize import form_of
from adatad.labels.records import VideoLabels
from adatad.labels.table import plain_text
from adatad.labels.text_table import table_of
from adatad.labels.values import SUBSETS

TABLE = "table"
OTHER_ENDINGS = VIDEO_ENDINGS | frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".pdf", ".zip", ".md", ".yaml", ".pfsx", ".wav", ".mp3", ".npy", ".npz", ".pth"}
)
"""Files in a folder of labels that hold none; .pfsx are ELAN's settings beside its documents."""


OPTIONS = {"labels_from=": "--labels-from ", "point_seconds": "--point-seconds S", "(fps, such as 25)": "(--fps 25)"}
"""How messages of readers call what can be given, and how the command calls it."""


class Row(NamedTuple):
    """An instance as it was labelled. place: where it stands, for messages; start, end: in `unit`, seconds or frames;
    fps: rate at which frames are counted, 0: that of the video; subset: of its video, empty if it doesn't say."""

    place: str
    start: float
    end: float
    label: str
    unit: str = "seconds"
    fps: float = 0.0
    subset: str = ""
    has_score: bool = False


class Labelled(NamedTuple):
    """A video as a file of labels names it. names: to look for, the likeliest first; source: number of the file;
    place: where it is named first, for messages; rows: in the order of the file."""

    names: tuple[str, ...]
    source: int
    place: str
    subset: str
    rows: list[Row]


@dataclass
class Sources:
    """Content of files of labels. notes: what was guessed or left out; wrong: problems, each with its file and
    place."""

    paths: list[Path]
    videos: list[Labelled] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def place(self, source: int, where: str) -> str:
        """Return a place within a file for messages: with the file's name where there are several."""
        return f"{shown(self.paths[source])}: {where}" if len(self.paths) > 1 else where

    def order_of(self, problem: str) -> tuple[int, int]:
        """Return a key that sorts problems by file and line; those that name no file come last."""
        for source in range(len(self.paths)):
            start = self.place(source, "")
            if problem.startswith(start):
                return source, line_of(problem[len(start) :])
        return len(self.paths), sys.maxsize


@dataclass(frozen=True)
class SourceOptions:
    """Options of reading sources. form: a key of `recognize.NAMES`, None: by content; the others as in
    `read_labels`."""

    form: str | None = None
    fps: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    point_seconds: float | None = None
    labels_from: str | None = None


def read_sources(
    paths: Sequence[Path],
    options: SourceOptions,
    find: Callable[[str], Path | None],
    outputs: Sequence[Path] = (),
) -> Sources:
    """Read files of labels, and all such files in folders. What is wrong with one doesn't keep the others from being
    read. find: returns the video file that a name means, to ask it for its frame rate. outputs: files that an import
    writes, which are no labels in a folder; one that `paths` names itself is read."""
    sources = Sources([])
    own = {output.resolve() for output in outputs}
    for path in paths:
        sources.paths += _files_of(path, own, sources.wrong)
    rates = _Rates(find)
    notes = [_read_source(sources, source, options, rates) for source in range(len(sources.paths))]
    sources.notes += _joined(sources, notes)
    if rates.asked:
        low, high = min(rates.asked.values()), max(rates.asked.values())
        each = f"{low:.4g}" if high - low < 0.01 * low else f"{low:.4g} to {high:.4g}"
        count = len(rates.asked)
        sources.notes.append(
            f"frames are counted at the rate of the video file, {each} a second, in {count} "
            f"video{'' if count == 1 else 's'} whose labels don't say it (--fps gives another)"
        )
    return sources


class _Rates:
    """Frame rates of video files; asked: those that were taken, by the name that asked for them."""

    def __init__(self, find: Callable[[str], Path | None]):
        self._find = find
        self.asked: dict[str, float] = {}

    def has_video(self, name: str) -> bool:
        """Return whether a name means one of the video files."""
        return self._find(name) is not None

    def __call__(self, name: str) -> float | None:
        """Return a video's frames a second; None if there is no such file, or it has no rate."""
        path = self._find(media_path(name))
        if path is None:
            return None
        try:
            rate = read_index(path, Heartbeat()).timeline.usual_fps
        except UserError:
            # The file is named as broken when it is looked at for its length.
            return None
        if rate:
            self.asked[name] = rate
        return rate or None


def _files_of(path: Path, own: set[Path], wrong: list[str]) -> list[Path]:
    """Return a file, or those below a folder that may hold labels, without an import's own."""
    if not path.is_dir():
        return [path]
    try:
        below = files_below(path)
    except UserError as error:
        wrong.append(str(error))
        return []
    found = [file.path for file in below if file.path.suffix.lower() not in OTHER_ENDINGS]
    # Read again beside corrected labels, the earlier import would bring back what was deleted in them.
    found = [path for path in found if path.resolve() not in own]
    if not found:
        wrong.append(f"{path}: holds no files of labels; expected such as .csv, .eaf, .boris or .json")
    return found


def _joined(sources: Sources, notes: list[list[str]]) -> Iterator[str]:
    """Yield remarks on files: of those that begin alike, as on 60 documents of ELAN, the first with a count."""
    alike: dict[str, list[tuple[int, str]]] = {}
    for source, those in enumerate(notes):
        for note in map(_in_options, those):
            alike.setdefault(re.split("[,:(]", note, maxsplit=1)[0], []).append((source, note))
    for those in alike.values():
        files = len({source for source, _ in those})
        if files == 1:
            yield from (sources.place(source, note) for source, note in those)
        elif len({note for _, note in those}) == 1:
            yield f"{files} files: {those[0][1]}"
        else:
            yield f"{sources.place(*those[0])}; {files - 1} more file{'' if files == 2 else 's'} likewise"


def _in_options(text: str) -> str:
    """Return a message with the options of the command in place of those of the reader."""
    for name, option in OPTIONS.items():
        text = text.replace(name, option)
    return text


def _read_source(sources: Sources, source: int, options: SourceOptions, rates: _Rates) -> list[str]:
    """Read one file into `sources`; return remarks on it."""
    path, notes = sources.paths[source], []
    try:
        if (options.form or _form(path)) == TABLE:
            videos = list(_of_table(sources, source, options, rates, notes))
        else:
            found = read_labels(
                path, fps=options.fps, video_fps=rates, point_seconds=options.point_seconds,
                labels_from=options.labels_from, columns=options.columns, notes=notes, form=options.form,
            )  # fmt: skip
            videos = [_of_labels(sources, source, one, len(found) == 1) for one in found]
    except LabelError as error:
        sources.wrong += [sources.place(source, _in_options(shown(problem))) for problem in error.problems]
        return list(error.notes)
    except UserError as error:
        text = str(error)
        sources.wrong.append(text if text.startswith(f"{path}:") else sources.place(source, text))
    else:
        sources.videos += videos
    return notes


def _form(path: Path) -> str | None:
    text = read_content(path, [])
    content = parse_json(text, path) if text.lstrip().startswith(("{", "[")) else None
    return form_of(text, content)


def _of_table(
    sources: Sources, source: int, options: SourceOptions, rates: _Rates, notes: list[str]
) -> Iterator[Labelled]:
    """Yield the videos of a table. Its frames stay frames: those of the video's own are found by their time, whatever
    its rate."""
    path = sources.paths[source]
    table = table_of(read_content(path, notes), path, recognizer(options.columns))
    # Without a column of videos a table is of the video that is called as it, if there is one.
    video = path.stem if rates.has_video(path.stem) else ""
    found = instances_in(table, options.columns, video, lambda name: options.fps or rates(name))
    notes += found.notes
    sources.wrong += [sources.place(source, problem) for problem in found.wrong]
    by_name: dict[str, list[Instance]] = {}
    for instance in found.instances:
        by_name.setdefault(plain_text(instance.video), []).append(instance)
    for name, instances in by_name.items():
        rows = [
            Row(
                sources.place(source, f"line {one.line}"), one.start, one.end, plain_text(one.label), one.unit,
                one.fps or options.fps or 0.0, one.subset, bool(one.score),
            )
            for one in instances
        ]  # fmt: skip
        yield Labelled((name,), source, rows[0].place, "", rows)


def _of_labels(sources: Sources, source: int, video: VideoLabels, is_only: bool) -> Labelled:
    """Return a video of a file of any other form."""
    # In this order: a path may tell two files of one name apart, a name is what people typed, and a file of labels for
    # one video is often called as that.
    names = [media_path(video.file or video.name), video.name, *([sources.paths[source].stem] if is_only else [])]
    subset = (video.subset or "").strip()
    known = SUBSETS.get(subset.casefold(), "")
    if subset and not known:
        sources.wrong.append(
            sources.place(
                source, f"video {shown(video.name)!r}: subset is training, validation or test, got {subset!r}"
            )
        )
    rows = [
        Row(
            sources.place(source, one.place or f"video {shown(video.name)!r}"), one.start_seconds, one.end_seconds,
            one.label, subset=known, has_score=one.score is not None,
        )
        for one in video.segments
    ]  # fmt: skip
    where = sources.place(source, f"video {shown(video.name)!r}")
    return Labelled(tuple(dict.fromkeys(names)), source, where, known, rows)
