"""Labelled videos for tests of annotation files, by hand and by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from adatad.labels.names import clean_label, one_line
from adatad.labels.records import Segment, VideoLabels

TRICKY_LABELS = [
    "pour", "pour milk", "café", "日本語", "a --> b", "<b>bold</b>", "a & b", 'say "hi"', "it's", "=1+2", "-x", "@home",
    "'=quoted", "#one", "a,b;c|d", "emoji 🎬", "pour (2)", "WEBVTT", "12", "NOTE x", "]]>",
    "\N{RIGHT-TO-LEFT MARK}right",
]  # fmt: skip
"""Labels with what some form gives a meaning."""


def is_label(text: str) -> bool:
    """Return whether a text is a label as annotation files for training have it."""
    return bool(text) and clean_label(one_line(text)) == text and any(c.isprintable() and not c.isspace() for c in text)


labels = st.one_of(st.sampled_from(TRICKY_LABELS), st.text(min_size=1, max_size=12).filter(is_label))
scores = st.none() | st.integers(0, 10_000).map(lambda score: score / 10_000)
milliseconds = st.integers(0, 7_200_000)


@st.composite
def segments(draw: st.DrawFn, step_seconds: float = 0.001, with_scores: bool = True) -> tuple[Segment, ...]:
    """Draw segments whose ends are multiples of a step, overlapping ones of one label among them."""
    names = draw(st.lists(labels, min_size=1, max_size=3, unique=True))
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(names), milliseconds, st.integers(1, 90_000), scores), max_size=6, unique_by=repr
        )
    )
    return tuple(
        Segment(label, start * step_seconds, (start + length) * step_seconds, score if with_scores else None)
        for label, start, length, score in rows
    )


def close(found: VideoLabels, expected: VideoLabels, within_seconds: float = 1e-6) -> bool:
    """Return whether two videos have the same segments, to a time."""

    def key(segment: Segment) -> tuple:
        return (round(segment.start_seconds, 3), round(segment.end_seconds, 3), segment.label, segment.score or 0)

    pairs = zip(sorted(found.segments, key=key), sorted(expected.segments, key=key), strict=False)
    return len(found.segments) == len(expected.segments) and all(
        a.label == b.label
        and abs(a.start_seconds - b.start_seconds) <= within_seconds
        and abs(a.end_seconds - b.end_seconds) <= within_seconds
        and (a.score is None) == (b.score is None)
        and abs((a.score or 0) - (b.score or 0)) <= 5e-5
        for a, b in pairs
    )
