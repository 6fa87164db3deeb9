"""The forms of annotation files: which there are, and the two functions that write and read any of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from adatad.files import FileError, parse_json, shown
from adatad.labels.activitynet import read_activitynet, write_activitynet
from adatad.labels.boris import read_boris, write_boris
from adatad.labels.boris_export import read_boris_export
from adatad.labels.content import read_content
from adatad.labels.cvat import read_cvat, read_datumaro, write_cvat
from adatad.labels.elan import read_elan, write_elan
from adatad.labels.fiftyone import read_fiftyone, write_fiftyone
from adatad.labels.label_studio import read_label_studio, write_label_studio
from adatad.labels.names import one_line
from adatad.labels.osl import read_osl
from adatad.labels.problems import LabelError
from adatad.labels.reading import Rate, Reading, ReadOptions
from adatad.labels.recognize import NAMES, NOT_RECOGNIZED, form_of
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.roboflow import read_roboflow, write_roboflow
from adatad.labels.subtitles import read_subtitles, write_srt, write_vtt
from adatad.labels.table import read_table_text, write_table
from adatad.labels.text_table import TableError
from adatad.labels.values import MAX_SECONDS
from adatad.labels.via import read_via, read_via_table, write_via

FORMS = {
    "activitynet": ".json", "csv": ".csv", "tsv": ".tsv", "srt": ".srt", "vtt": ".vtt", "eaf": ".eaf",
    "labelstudio": ".labelstudio.json", "via": ".via.json", "boris": ".boris", "fiftyone": ".fiftyone.json",
    "roboflow": ".roboflow.json", "cvat": ".cvat.xml",
}  # fmt: skip
"""Forms that can be written, and how their files end."""
OF_ONE_VIDEO = frozenset({"srt", "vtt", "eaf", "cvat"})
"""Forms whose file holds one video."""
OBJECTS = frozenset({"activitynet", "via", "boris", "datumaro", "fiftyone", "osl"})
"""Forms that are read from a JSON object."""
LISTS = frozenset({"labelstudio", "roboflow"})
"""Forms that are read from a JSON object or list."""
COUNTED_IN_FRAMES = frozenset({"labelstudio", "roboflow", "cvat"})
"""Forms that can't be written without a video's frame rate."""


def write_labels(form: str, videos: Sequence[VideoLabels]) -> str:
    """Return the text of one file, to be saved in UTF-8.

    form: a key of FORMS. Raises LabelError for an unknown form, for several videos where the form holds one, for a
    frame rate that the form wants and nobody knows, and for times that are none.
    """
    if form not in FORMS:
        raise LabelError(form, [f"no form of annotation files; there are {', '.join(FORMS)}"])
    if form in OF_ONE_VIDEO and len(videos) != 1:
        raise LabelError(form, [f"a file holds the labels of one video, got {len(videos)}; write one file a video"])
    _check(form, videos)
    match form:
        case "activitynet":
            return write_activitynet(videos)
        case "csv":
            return write_table(videos)
        case "tsv":
            return write_table(videos, "\t")
        case "srt":
            return write_srt(videos[0])
        case "vtt":
            return write_vtt(videos[0])
        case "eaf":
            return write_elan(videos[0])
        case "labelstudio":
            return write_label_studio(videos)
        case "via":
            return write_via(videos)
        case "boris":
            return write_boris(videos)
        case "fiftyone":
            return write_fiftyone(videos)
        case "roboflow":
            return write_roboflow(videos)
        case "cvat":
            return write_cvat(videos[0])
    raise AssertionError(form)


def read_labels(
    path: str | Path,
    *,
    fps: Rate = None,
    video_fps: Callable[[str], float | None] | None = None,
    point_seconds: float | None = None,
    labels_from: str | None = None,
    columns: Mapping[str, str] | None = None,
    notes: list[str] | None = None,
    form: str | None = None,
) -> list[VideoLabels]:
    """Read an annotation file of any form, which its content tells, not its name.

    fps: frames a second of the videos, or a function that returns that of a video by its file or name; goes before what
    the file says. video_fps: a function likewise, asked where neither that nor the file says it. point_seconds: length
    of the segment around a moment; without it moments are left out. labels_from: where labels stand: "tiers" or
    "values" in ELAN, the name of an attribute in VIA; None guesses. columns: names of a table's columns by role, as in
    `columns_of`. notes: gets sentences about the form, about what was guessed, and about what was left out, with
    counts. form: a key of NAMES, where the content isn't to decide. Raises LabelError with everything that is wrong
    with the file, or with what was looked for in a file of no known form.
    """
    reading = Reading(Path(path), ReadOptions(fps, video_fps, point_seconds, labels_from, columns or {}))
    try:
        text = read_content(reading.path, reading.notes)
        _read(reading, text, form)
    except (TableError, FileError) as error:
        problem = str(error).removeprefix(f"{reading.path}: ")
        raise LabelError(reading.path, [*reading.problems, problem], reading.notes) from error
    videos = reading.finish()
    if notes is not None:
        notes += map(shown, reading.notes)
    return videos


def _read(reading: Reading, text: str, form: str | None) -> None:
    """Tell a reading everything in a text, by the form that it has, or the one that is given."""
    content = parse_json(text, reading.path) if text.lstrip().startswith(("{", "[")) else None
    form = form or form_of(text, content)
    if form is None:
        raise LabelError(reading.path, [NOT_RECOGNIZED])
    # A form that is recognized has its content; one that was given may not.
    if (form in OBJECTS and not isinstance(content, dict)) or (form in LISTS and content is None):
        raise LabelError(reading.path, [f"is not {NAMES[form]}: it holds no JSON of that form"])
    # First of all notes, errors' too: a form that isn't the user's explains every problem below.
    reading.notes.insert(0, f"read as {NAMES[form]}")
    match form:
        case "activitynet":
            read_activitynet(reading, content)
        case "table":
            read_table_text(reading, text)
        case "boris table":
            read_boris_export(reading, text)
        case "subtitles":
            read_subtitles(reading, text)
        case "eaf":
            read_elan(reading, text)
        case "labelstudio":
            read_label_studio(reading, content)
        case "via":
            read_via(reading, content)
        case "via table":
            read_via_table(reading, text)
        case "boris":
            read_boris(reading, content)
        case "cvat":
            read_cvat(reading, text)
        case "datumaro":
            read_datumaro(reading, content)
        case "fiftyone":
            read_fiftyone(reading, content)
        case "roboflow":
            read_roboflow(reading, content)
        case "osl":
            read_osl(reading, content)


def _check(form: str, videos: Sequence[VideoLabels]) -> None:
    """Raise LabelError with every video and segment that no file can hold."""
    problems = []
    names = Counter(one_line(video.name) for video in videos)
    problems += [f"{count} videos are called {name!r}" for name, count in names.items() if count > 1]
    for video in videos:
        facts = (video.duration_seconds, video.fps)
        if not all(fact is None or (math.isfinite(fact) and fact >= 0) for fact in facts):
            problems.append(f"video {video.name!r}: duration and frame rate are {facts[0]} and {facts[1]}")
        problems += [
            f"video {video.name!r}: {s.label!r} from {s.start_seconds:g} to {s.end_seconds:g} s {text}"
            for s in video.segments
            if (text := _problem_of(s, form))
        ]
    if problems:
        raise LabelError(form, problems)


def _problem_of(segment: Segment, form: str) -> str:
    """Return what is wrong with a segment; empty if nothing is."""
    start, end = segment.start_seconds, segment.end_seconds
    if not -MAX_SECONDS <= start <= end <= MAX_SECONDS:
        return f"has no such times: expected the first before the second, both of at most {MAX_SECONDS:g} s"
    if end <= 0 and form != "activitynet":
        return "lies before the video's start, where this form has no time"
    if segment.score is not None and not 0 <= segment.score <= 1:
        return f"has the score {segment.score}, expected one from 0 to 1"
    return "" if one_line(segment.label).strip() else "has no label"
