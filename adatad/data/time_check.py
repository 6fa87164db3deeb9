"""Differences in time between video files and their annotations: found by the data check, logged by a run.

Under `data.time: presentation` labels still lie on the frames shown at their seconds, as far as the file goes; under
`count` they lie on other frames than were meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import av

from adatad.data.annotations import Video
from adatad.data.timeline import Timeline
from adatad.data.video_index import ZERO_START_CONTAINERS, open_container
from adatad.files import shown
from adatad.spec.data_sections import DataSpec, WindowSpec

ROUNDING_SECONDS = 0.01
"""Durations in annotations are given to hundredths of a second, rounded or cut."""
MAX_LOGGED_VIDEOS = 20
"""Videos that a run's log names one by one; the rest is counted."""
# Containers round lengths, count audio or leave an edit list out of them.
HEADER_SLACK_SECONDS, HEADER_SLACK = 1.0, 0.02
"""Seconds, or share of the length if that is more, by which a file's header may be wrong about its length."""
CHECK = "adatad data check names every such video"
COUNTED = "labels lie on other frames than they mean under data.time: count; set it to presentation, or transcode"
FOUND = "labels stay at their seconds (data.time: presentation)"


class TimeFacts(NamedTuple):
    """Times of a file.

    seconds: end of its last frame, 0 if unknown; fps: average from its first picture on; uneven_seconds: largest
    distance of a frame from an even spacing; usual_fps: rate of most frames; unreliable_because: fault of its times;
    slack_seconds: possible error of all this.
    """

    frames: int
    seconds: float
    fps: float
    first_seconds: float = 0.0
    uneven_seconds: float = 0.0
    usual_fps: float = 0.0
    unreliable_because: str = ""
    slack_seconds: float = 0.0


class TimeProblem(NamedTuple):
    """A difference. kind: "wrong length", "other rate", "variable rate", "starts late", "times jump" or "no times";
    off_seconds: largest shift of a label."""

    kind: str
    detail: str
    off_seconds: float


class TimeNote(NamedTuple):
    """A video and a line on how it and its annotation differ."""

    video: str
    line: str


def facts_of(timeline: Timeline) -> TimeFacts:
    """Return the times of a file whose packets were read."""
    if not timeline.has_times:
        return TimeFacts(timeline.frame_count, 0.0, 0.0, unreliable_because=timeline.unreliable_because)
    return TimeFacts(
        timeline.frame_count, timeline.duration_seconds, timeline.fps, timeline.first_seconds,
        timeline.unevenness_seconds, timeline.usual_fps, timeline.unreliable_because, timeline.last_step_seconds,
    )  # fmt: skip


def header_facts(path: Path) -> TimeFacts | None:
    """Return the times of a file from its header, which is cheap, and wrong where the rate changes; None if it gives no
    length. Raises VideoError."""
    with open_container(path) as container:
        stream = container.streams.best("video")
        tick, kind = float(stream.time_base or 0), container.format.name.split(",")[0]
        # Same rule as in the index (`video_index`), from the header alone.
        start = 0.0 if kind in ZERO_START_CONTAINERS else (container.start_time or 0) / av.time_base
        first = max(float(stream.start_time or 0) * tick - start, 0.0)
        whole = (container.duration or 0) / av.time_base
        seconds = first + stream.duration * tick if stream.duration else whole
        if seconds <= first:
            return None
        # FFmpeg only estimates the frame count of other containers, from their first frames.
        frames = stream.frames if kind in ("mov", "avi") else 0
        slack = max(HEADER_SLACK_SECONDS, HEADER_SLACK * seconds)
        # The average counts frames that an edit list cuts away, so the nominal rate is better where both nearly agree.
        usual, average = float(stream.base_rate or 0), frames / (seconds - first)
        rate = usual if abs(usual - average) < HEADER_SLACK * usual else average
        return TimeFacts(frames, seconds, rate, first, usual_fps=usual, slack_seconds=slack)


def time_problems(facts: TimeFacts, duration_seconds: float, fps: float, window: WindowSpec) -> list[TimeProblem]:
    """Return all differences of a file and its annotation above one position of the grid.

    duration_seconds, fps: of the annotation; fps 0 where it gives none.
    """
    position = position_seconds(duration_seconds, fps, window)
    # Up to one position of the grid a label stays where it was meant.
    most = position + ROUNDING_SECONDS + facts.slack_seconds
    meant = duration_seconds * fps
    if not facts.seconds:
        # Without times only counts can be compared.
        found = [TimeProblem("no times", f"{facts.unreliable_because}; its frames are counted; transcode it", 0.0)]
        if fps and abs(facts.frames - meant) / fps > most:
            detail = f"has {facts.frames} frames, annotations mean {meant:.9g}"
            found.append(TimeProblem("wrong length", detail, abs(facts.frames - meant) / fps))
        return found
    found = []
    off = abs(facts.seconds - duration_seconds)
    if off > most:
        detail = f"lasts {in_seconds(facts.seconds)}, annotations say {in_seconds(duration_seconds)}"
        found.append(TimeProblem("wrong length", detail, off))
    # The usual rate too: a pause lowers the average, and leaves labels where they are.
    drift = duration_seconds * min(abs(rate - fps) for rate in (facts.fps, facts.usual_fps or facts.fps))
    if fps and facts.frames and min(abs(facts.frames - meant), drift) / fps > most:
        detail = (
            f"has {facts.frames} frames, {facts.fps:.2f} a second; annotations mean {meant:.9g}, {fps:.9g} a second"
        )
        found.append(TimeProblem("other rate", detail, abs(facts.frames - meant) / fps))
    if facts.uneven_seconds > most:
        detail = (
            f"its frames come up to {in_seconds(facts.uneven_seconds)} off a constant rate of {facts.fps:.2f} a second"
        )
        found.append(TimeProblem("variable rate", detail, facts.uneven_seconds))
    if facts.first_seconds > most:
        detail = f"its first picture comes at {in_seconds(facts.first_seconds)}"
        found.append(TimeProblem("starts late", detail, facts.first_seconds))
    if facts.unreliable_because:
        found.append(
            TimeProblem("times jump", f"{facts.unreliable_because}; a jump is taken for one frame; transcode it", 0.0)
        )
    return found


def in_seconds(seconds: float) -> str:
    """Format seconds to hundredths; huge numbers short."""
    return f"{seconds:.2f} s" if abs(seconds) < 1e7 else f"{seconds:.4g} s"


def position_seconds(duration_seconds: float, fps: float, window: WindowSpec) -> float:
    """Return the time from one position of the grid to the next."""
    if window.kind == "resize" or not fps:
        return duration_seconds / window.size_grid
    return window.stride_frames / fps


class TimeNotes:
    """Notes on each video when it is first read, if its file and its annotation differ, or if its file was replaced
    since."""

    def __init__(self, spec: DataSpec):
        self._spec = spec
        self._seen: dict[str, tuple[int, ...]] = {}

    def notes(self, video: Video, timeline: Timeline, stamp: tuple[int, ...]) -> tuple[TimeNote, ...]:
        """Return notes on a video that is read now. stamp: of its file (`stamp_of`)."""
        # Called where a video is read, in a loader process: notes travel with the sample, to be logged once.
        before = self._seen.get(video.name)
        if before == stamp:
            return ()
        self._seen[video.name] = stamp
        found = time_problems(facts_of(timeline), video.duration_seconds, video.fps, self._spec.window)
        lines = [note_line(found, self._spec)] if found else []
        if before is not None:
            lines.append("its file has changed since this run first read it: what was learned is of both")
        return tuple(TimeNote(video.name, line) for line in lines)


class TimeLog:
    """Logs notes, each once, and counts those beyond `MAX_LOGGED_VIDEOS`. say: called with a line."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._known: set[TimeNote] = set()
        self._new: list[TimeNote] = []
        self._unsaid = 0

    def add(self, notes: Iterable[TimeNote]) -> None:
        """Log the notes that are new."""
        for note in notes:
            if note in self._known:
                continue
            self._known.add(note)
            self._new.append(note)
            # A data set that was encoded at another rate has a note for every video.
            if len(self._known) <= MAX_LOGGED_VIDEOS:
                self._say(shown(f"video {note.video}: {note.line}"))
            else:
                self._unsaid += 1

    def share(self, gather: Callable[[list[TimeNote]], list[list[TimeNote]]]) -> None:
        """Add what other ranks have found since; called on all ranks at once. gather: collects an object of every
        rank."""
        # Only what is new goes round: a run has many epochs, and few notes.
        new, self._new = self._new, []
        self.add(note for part in gather(new) for note in part)
        # What came from other ranks needn't go back to them.
        self._new = []
        if self._unsaid:
            self._say(f"{self._unsaid} more notes on times of videos; {CHECK}")
        self._unsaid = 0


def note_line(found: Iterable[TimeProblem], spec: DataSpec) -> str:
    """Return a log line on a video."""
    return "; ".join(f"{problem.kind}: {problem.detail}" for problem in found) + f"; {effect(spec)}"


def effect(spec: DataSpec) -> str:
    """Return the effect of such a difference on labels."""
    return COUNTED if spec.time == "count" else FOUND
