"""Common parts of all readers of annotation files: options, and a file's labels, problems and notes as they are found.

A reader goes through its file once and tells a `Reading` every segment. What is wrong is collected, so that an error
lists all of it; what is left out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adatad.files import listed, shown
from adatad.labels.names import clean_label, media_name
from adatad.labels.problems import LabelError
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.values import MAX_FPS, MAX_SECONDS, brief, has_control_characters, is_visible, number

RATE_TOLERANCE = 0.001
"""Share by which two frame rates may differ and be the same: 29.97 is 30000/1001."""
MOMENTS = "moments, which last no time (give them a length: point_seconds)"
NO_LENGTH = "segments that end where they begin"
Rate = float | Callable[[str], float | None] | None


@dataclass(frozen=True)
class ReadOptions:
    """Facts that a file may not hold itself; the fields are the arguments of `read_labels`, which explains them."""

    fps: Rate = None
    video_fps: Callable[[str], float | None] | None = None
    point_seconds: float | None = None
    labels_from: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class Reading:
    """Labels of a file as they are found. problems: sentences, each with its place; notes: what was guessed."""

    def __init__(self, path: Path, options: ReadOptions):
        self.path, self.options = path, options
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._counted: dict[str, list[str]] = {}
        self._videos: dict[str, VideoLabels] = {}
        self._segments: dict[str, list[Segment]] = {}
        self._rates: dict[str, float | None] = {}

    def video(self, file: str, /, **facts: Any) -> str:
        """Note a video by its path, address or name, with facts of `VideoLabels` as far as they are known; return
        `file`. Facts that are None leave what was known."""
        known = {key: value for key, value in facts.items() if value is not None}
        if file not in self._videos:
            self._videos[file] = VideoLabels(known.pop("name", None) or media_name(file), file=file)
            self._segments[file] = []
        if known:
            self._videos[file] = replace(self._videos[file], **known)
        return file

    def add(self, file: str, where: str, label: Any, start: Any, end: Any, score: Any = None) -> None:
        """Add a segment of a video, in seconds, or a problem. where: its line, tier or id."""
        self.video(file)
        text, ends = self._label(where, label), [_seconds(start), _seconds(end)]
        if None in ends or not all(0 <= time <= MAX_SECONDS for time in ends):
            self.problems.append(
                f"{where}: expected a start and an end in seconds, from 0 to {MAX_SECONDS:g}, got {brief(start)} and "
                f"{brief(end)}"
            )
        elif ends[1] < ends[0]:
            self.problems.append(f"{where}: ends at {ends[1]:g} s, before it begins at {ends[0]:g} s")
        elif ends[1] == ends[0]:
            self.leave_out(NO_LENGTH, where)
        elif text:
            self._segments[file].append(Segment(text, *ends, self._score(where, score), where))

    def add_moment(self, file: str, where: str, label: Any, time: Any, score: Any = None) -> None:
        """Add a moment: as a segment around it if it is given a length, otherwise it is left out."""
        # Without a length even a wrong time is no problem: nothing is made of it.
        length, seconds = self.options.point_seconds, _seconds(time)
        if length is None or seconds is None:
            self.video(file)
            self.leave_out(MOMENTS, where)
        else:
            self.add(file, where, label, max(0.0, seconds - length / 2), seconds + length / 2, score)

    def add_frames(
        self, file: str, where: str, label: Any, frames: tuple[Any, Any], fps: Any, score: Any = None
    ) -> None:
        """Add a segment from the start of one frame to the start of another, counted from 0, at `rate`'s rate.

        fps: what the file says of the rate.
        """
        start, end = (number(frame) for frame in frames)
        if start is None or end is None or not (math.isfinite(start) and math.isfinite(end)):
            self.problems.append(f"{where}: expected numbers of frames, got {brief(frames[0])} and {brief(frames[1])}")
            return
        rate = self.rate(file, fps)
        if rate:
            self.add(file, where, label, start / rate, end / rate, score)

    def rate(self, file: str, fps: Any = None) -> float | None:
        """Return a video's frames a second: the one given, or the file's; None, and a problem once a video, if
        nobody knows it."""
        if file in self._rates:
            return self._rates[file]
        # Once a video: a file of 10,000 segments lacks one rate, not 10,000.
        name = self._videos[file].name if file in self._videos else media_name(file)
        given = self.known_rate(file)
        own = number(fps)
        rate = given if given is not None else own or self._video_rate(file)
        if rate is None or not 0 < rate <= MAX_FPS:
            self.problems.append(
                f"video {shown(name)!r}: its times are frames, and its frame rate isn't known; give it (fps, such as "
                "25), or the videos themselves"
            )
            rate = None
        elif given is not None and own and abs(own - given) > RATE_TOLERANCE * own:
            told = f"{name} (at {given:g} a second, the file says {own:g})"
            self.count("videos whose frames are taken at another rate than the file's", told)
        self._rates[file] = rate
        if rate:
            self.video(file, fps=float(rate))
        return rate

    def known_rate(self, file: str) -> float | None:
        """Return the frames a second that were given for a video; None if none were."""
        return self.options.fps(file) if callable(self.options.fps) else self.options.fps

    def _video_rate(self, file: str) -> float | None:
        ask = self.options.video_fps
        # An address that a tool has made up is no file, but the name in it may be.
        return (ask(file) or ask(self._videos[file].name)) if ask and file in self._videos else None

    def leave_out(self, why: str, where: str) -> None:
        """Count something that isn't read. why: a noun phrase in the plural."""
        self.count(f"left out: {why}", where)

    def count(self, what: str, where: str) -> None:
        """Count something that a note says once, with its first places."""
        self._counted.setdefault(what, []).append(where)

    def finish(self) -> list[VideoLabels]:
        """Return the videos, and append to `notes` what was counted. Raises LabelError with all problems."""
        moments = self._counted.get(f"left out: {MOMENTS}", ())
        if moments and not any(self._segments.values()) and not self.problems:
            self.problems.append(f"holds {len(moments)} {MOMENTS}, and no segments: {listed(moments)}")
        by_name: dict[str, list[str]] = {}
        for file, video in self._videos.items():
            by_name.setdefault(video.name, []).append(file)
        for name, files in by_name.items():
            if len(files) > 1:
                self.count("names that several videos have", f"{name} ({listed(files)})")
        if not any(self._segments.values()):
            self.notes.append("holds no segments")
        self.notes += [f"{len(places)} {what}: {listed(places)}" for what, places in self._counted.items()]
        if self.problems:
            raise LabelError(self.path, self.problems, self.notes)
        return [replace(video, segments=tuple(self._segments[file])) for file, video in self._videos.items()]

    def _label(self, where: str, label: Any) -> str:
        """Return a label as it is used; empty, and a problem, if it is none."""
        # A number, as a class without a name; pandas writes 1.0 where a column has gaps.
        value = None if isinstance(label, str) else number(label)
        if value is not None and value.is_integer():
            label = str(int(value))
        text = clean_label(label) if isinstance(label, str) else ""
        if not is_visible(text):
            self.problems.append(f"{where}: has no label" + (f", got {brief(label)}" if label else ""))
            return ""
        if has_control_characters(text):
            self.problems.append(f"{where}: the label {brief(text)} holds a control character")
            return ""
        return text

    def _score(self, where: str, score: Any) -> float | None:
        if score is None:
            return None
        value = number(score)
        if value is None or not 0 <= value <= 1:
            self.leave_out("scores that aren't numbers from 0 to 1", f"{where} {brief(score)}")
            return None
        return value


def _seconds(value: Any) -> float | None:
    """Return seconds from a number or a plain text; None for anything else, NaN among it."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None
