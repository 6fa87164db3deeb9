"""Measures from outside of detection benchmarks: how many bouts a class has, and how long it lasts in all.

Detections above a threshold are bouts. The duration is that of the union of a video's segments, so that two detections
of one bout count once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adatad.evaluation.bootstrap import Estimate, Figure, ratio
from adatad.evaluation.matches import Content, by_video


class Bouts(NamedTuple):
    """A sum over videos, of true and of detected bouts: their number, or the seconds that they last. error_per_video:
    mean absolute error."""

    true: float
    detected: float
    ratio: Estimate
    error_per_video: float

    def as_json(self, ratio: Figure) -> dict[str, Any]:
        """Return the JSON form. ratio: of detected to true, with its interval."""
        return {**self._asdict(), "ratio": ratio.as_json()}


def bouts(content: Content, label: str, threshold: float) -> tuple[Bouts, Bouts]:
    """Return the number and the seconds of one class's bouts. threshold: lowest score of a bout."""
    true = {content.videos[video]: segments for video, segments in content.instances[label].items()}
    table = content.tables[label]
    found = dict(by_video(table[table[:, 3] >= threshold]))
    true_counts, true_seconds = _per_video(true, len(content.videos))
    counts, seconds = _per_video(found, len(content.videos))
    return _compared(counts, true_counts), _compared(seconds, true_seconds)


def _compared(found: np.ndarray, true: np.ndarray) -> Bouts:
    """Compare sums over videos. found, true: float64 [videos]."""
    error = float(np.abs(found - true).mean())
    return Bouts(float(true.sum()), float(found.sum()), ratio(found, true), error)


def _per_video(segments: dict[int, np.ndarray], videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of segments and the seconds of their union, float64 [videos] each."""
    counts, seconds = np.zeros(videos), np.zeros(videos)
    for video, own in segments.items():
        counts[video], seconds[video] = len(own), union_seconds(own)
    return counts, seconds


def union_seconds(segments: np.ndarray) -> float:
    """Return the seconds that at least one of the segments covers. segments: float64 [n, 2]."""
    if not len(segments):
        return 0.0
    ordered = segments[np.argsort(segments[:, 0])]
    # Each adds what lies beyond the ends of all before it.
    before = np.maximum.accumulate(np.append(-np.inf, ordered[:-1, 1]))
    return float(np.maximum(ordered[:, 1] - np.maximum(ordered[:, 0], before), 0).sum())
