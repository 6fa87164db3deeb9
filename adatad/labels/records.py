"""Labelled segments of videos, as every form of annotation file is read into and written from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Segment:
    """An action, from one time of a video to another. score: of a detection, from 0 to 1; None: labelled by hand.
    place: line, tier or id in the file that it was read from, for messages; no part of what makes segments equal."""

    label: str
    start_seconds: float
    end_seconds: float
    score: float | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class VideoLabels:
    """Segments of one video, in any order, with what annotation tools want to know of it.

    name: as annotations call it, a file's name without its ending; file: path or address of the video, as it was given;
    fps: frames a second, and frame_count, as the file has them; None where nobody looked into it. subset: what the
    video is for, as the file calls it ("training"); None where it doesn't say.
    """

    name: str
    segments: tuple[Segment, ...] = ()
    file: str | None = None
    duration_seconds: float | None = None
    fps: float | None = None
    frame_count: int | None = None
    subset: str | None = None
