"""Times in the whole numbers that annotation files count in, milliseconds or frames, and overlapping segments apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adatad.labels.names import one_line
from adatad.labels.problems import LabelError
from adatad.labels.records import Segment, VideoLabels


def in_ticks(segment: Segment, per_second: float) -> tuple[int, int]:
    """Return start and end in ticks, the nearest ones; the end is at least a tick after the start.

    What lies before 0 is cut off.
    """
    # At least a tick: tools drop what lasts no time, or refuse the file.
    start = max(0, round(segment.start_seconds * per_second))
    return start, max(start + 1, round(segment.end_seconds * per_second))


def seconds_text(segment: Segment) -> tuple[str, str]:
    """Return start and end in seconds, to a microsecond, without needless zeros: ("3.2", "7")."""
    start, end = (f"{ticks // 1_000_000}.{ticks % 1_000_000:06d}" for ticks in in_ticks(segment, 1e6))
    return start.rstrip("0").rstrip("."), end.rstrip("0").rstrip(".")


def seconds_rounded(segment: Segment) -> tuple[float, float]:
    """Return start and end in seconds as numbers, to a microsecond."""
    start, end = in_ticks(segment, 1e6)
    return start / 1e6, end / 1e6


def in_order(segments: Iterable[Segment]) -> list[Segment]:
    """Return segments by their start; equal ones by end, label and score, so that a file is the same every time."""
    return sorted(segments, key=lambda s: (s.start_seconds, s.end_seconds, s.label, -(s.score or 0.0)))


def by_label(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    """Return segments by their label as it is written, labels in order."""
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        found.setdefault(one_line(segment.label), []).append(segment)
    return dict(sorted(found.items()))


def rate_of(video: VideoLabels, form: str) -> float:
    """Return a video's frames a second, for a form that counts frames. Raises LabelError where nobody knows it."""
    if not video.fps or not video.fps > 0:
        raise LabelError(
            form,
            [f"video {video.name!r}: this form counts frames, and the video's frame rate isn't known; give it (fps)"],
        )
    return video.fps


def in_tracks(segments: Sequence[Segment], per_second: float) -> list[list[Segment]]:
    """Spread segments over as few lists as are needed for none of a list to overlap, in ticks, with another of it.

    The first list holds all that fits, so that without overlaps there is one.
    """
    # The first free list, in order of starts: no more lists than segments overlap at any time.
    tracks: list[list[Segment]] = []
    ends: list[int] = []
    for segment in in_order(segments):
        start, end = in_ticks(segment, per_second)
        free = next((number for number, last in enumerate(ends) if last <= start), len(tracks))
        if free == len(tracks):
            tracks.append([])
            ends.append(0)
        tracks[free].append(segment)
        ends[free] = end
    return tracks
