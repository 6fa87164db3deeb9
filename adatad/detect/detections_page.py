"""The page of detections: one HTML file that plays videos with what was found in them on a timeline below.

The page needs no network: its style, scripts and data lie in it; only the videos are linked. What a browser does with
it is written in `page_files/`, in plain HTML, CSS and JavaScript, and in `adatad/report/page_files/` where other pages
share it; this module checks the data and puts all together.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from adatad.errors import UserError
from adatad.files import check_output, shown, write_text
from adatad.labels.records import Segment, VideoLabels
from adatad.report.html_file import page_file, policy_digest, script_data, scripts

FILES = Path(__file__).with_name("page_files")
SCRIPTS = ("store", "layout", "bars", "timeline", "player", "rows", "lists", "filters", "main")
"""Names of the scripts in the order in which they are joined: a class stands before those that extend it."""
SHARED_SCRIPTS = ("texts", "looks", "lanes", "tip")
"""Names of the scripts that other pages have too; they stand first."""
SCORE_DIGITS = 6
"""Decimals of scores and thresholds; rounding both alike keeps scores above their threshold."""
TIME_DIGITS = 3
MAX_SECONDS = 1e9
"""Limit of times, which is 30 years: more is a damaged file, and no axis could be drawn of it."""
ADDRESS = re.compile(r"(?:https?|file)://", re.IGNORECASE)
WHITE_SPACE_AND_CONTROLS = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True)
class PageVideo:
    """A video of the page: what was found in it, and what is annotated. truth: None where nobody annotated it; empty
    where someone did and found nothing."""

    detections: VideoLabels
    truth: Sequence[Segment] | None = None


def write_page(
    path: str | Path,
    videos: Sequence[PageVideo],
    *,
    title: str = "Detections",
    facts: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Write the page of some videos, atomically; return its path.

    videos: as they are listed; a relative path of a video's file is one from the current directory.
    facts: shown beside the title, such as {"model": "tia.safetensors"}.
    classes: in the order of their rows and colours; other labels that occur follow by name.
    thresholds: {label: score from which its segments are shown at first}; 0 for the others.
    Raises UserError for times and scores that aren't numbers, naming the video, and FileError if the page can't be
    written.
    """
    # Before the data are put together, which takes a while for thousands of videos.
    path = check_output(path)
    write_text(path, page_text(title, facts or {}, page_data(path, videos, classes, thresholds or {})))
    return path


def page_text(title: str, facts: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """Return the HTML of a page with the data that `page_data` returned."""
    script = "\n".join([scripts(SHARED_SCRIPTS), *(_file(f"{name}.js") for name in SCRIPTS)])
    # Names of videos and classes may be markup: what isn't marked as safe is escaped.
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_file("page.html"))
    return template.render(
        title=shown(title),
        facts={shown(name): shown(value) for name, value in facts.items()},
        style=Markup(page_file("base.css") + _file("page.css")),
        script=Markup(script),
        script_hash=policy_digest(script),
        data=Markup(script_data(data)),
    )


def page_data(
    path: Path, videos: Sequence[PageVideo], classes: Sequence[str], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Return what the scripts get: {"classes", "thresholds", "videos"}.

    Thresholds: one a class, None where none is known; None if there are none. Segments of videos, by start: [class,
    start seconds, end seconds, score or None]. path: of the page, from which videos are linked.
    Raises UserError for values that are no finite numbers.
    """
    labels = _labels(videos, classes)
    number = {label: index for index, label in enumerate(labels)}
    for label, value in thresholds.items():
        if not _is_score(value):
            raise UserError(f"threshold of {shown(label)!r}: expected a score from 0 to 1, got {value!r}")
    least = {label: round(float(value), SCORE_DIGITS) for label, value in thresholds.items()}
    rows = []
    for video in videos:
        found = video.detections
        duration = found.duration_seconds
        if duration is not None and not (_is_time(duration) and duration >= 0):
            raise UserError(f"video {shown(found.name)!r}: expected a duration in seconds, got {duration!r}")
        # Names as they can be shown: JSON takes no lone surrogates of broken file names.
        row = {
            "name": shown(found.name),
            "url": None if found.file is None else video_url(found.file, path.parent),
            "file": None if found.file is None else shown(found.file),
            "duration": None if duration is None else float(duration),
            "segments": [_row(found.name, segment, number) for segment in _by_start(found.segments)],
            "truth": None,
        }
        if video.truth is not None:
            # Three numbers: annotated segments have no score.
            row["truth"] = [_row(found.name, segment, number)[:3] for segment in _by_start(video.truth)]
        rows.append(row)
    return {
        "classes": [shown(label) for label in labels],
        "thresholds": [least.get(label) for label in labels] if thresholds else None,
        "videos": rows,
    }


def video_url(file: str | PurePath, folder: Path) -> str:
    """Return the address by which a page in `folder` plays a video: relative where both lie below one folder, so that
    they can be moved together, else absolute. Web addresses stay as they are.

    file: a path, from the current directory if relative, or an address that begins with http, https or file.
    """
    text = os.fspath(file)
    if ADDRESS.match(text):
        return WHITE_SPACE_AND_CONTROLS.sub(lambda found: quote(found[0]), text)
    # Without following links: a browser joins the address to that of the page as it was opened.
    video, page = Path(os.path.abspath(text)), Path(os.path.abspath(folder))
    if video.anchor != page.anchor or video.parts[:2] != page.parts[:2]:
        return video.as_uri()
    relative = Path(os.path.relpath(video, page)).as_posix()
    # Bytes: names that are no UTF-8 are quoted as they are on the disk. "./": a name may begin like "mailto:".
    return "./" + quote(os.fsencode(relative), safe="/")


def _labels(videos: Sequence[PageVideo], classes: Sequence[str]) -> list[str]:
    """Return all labels, once each: the given ones in their order, then others that occur, by name."""
    used = {s.label for video in videos for s in (*video.detections.segments, *(video.truth or ()))}
    # First those of the model, so that a class keeps its colour from page to page.
    return list(dict.fromkeys([*classes, *sorted(used)]))


def _by_start(segments: Iterable[Segment]) -> list[Segment]:
    """Return segments by start, then end. One that can't be compared is found by `_row`, which names its video."""
    segments = list(segments)
    if all(_is_time(s.start_seconds) and _is_time(s.end_seconds) for s in segments):
        segments.sort(key=lambda s: (s.start_seconds, s.end_seconds))
    return segments


def _row(video: str, segment: Segment, number: Mapping[str, int]) -> list[Any]:
    start, end, score = segment.start_seconds, segment.end_seconds, segment.score
    what = f"video {shown(video)!r}: a segment of {shown(segment.label)!r}"
    if not (_is_time(start) and _is_time(end) and start <= end):
        raise UserError(f"{what} goes from {start!r} to {end!r}; expected seconds, the end not before the start")
    if score is not None and not _is_score(score):
        raise UserError(f"{what} has the score {score!r}; expected a number from 0 to 1")
    # Digits that nobody sees would make the page twice as large.
    rounded = None if score is None else round(float(score), SCORE_DIGITS)
    return [number[segment.label], round(float(start), TIME_DIGITS), round(float(end), TIME_DIGITS), rounded]


def _is_time(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_SECONDS


def _is_score(value: Any) -> bool:
    # 32-bit products may end a little above 1.
    return _is_number(value) and -1e-6 <= value <= 1 + 1e-6


def _is_number(value: Any) -> bool:
    """Tell whether a value, of Python or numpy, is a finite number."""
    try:
        return not isinstance(value, (str, bytes, bool)) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _file(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")
