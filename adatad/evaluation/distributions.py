"""Distributions beside the score: durations of instances and detections, and how far scores are probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adatad.evaluation.bootstrap import Draws, ratio
from adatad.evaluation.matches import ClassMatches

DURATION_BINS = 12
SCORE_BINS = 10
LEAST_SECONDS = 0.01
"""Shortest duration of the first bin; the rest are of equal ratios."""


def duration_histogram(matches: Sequence[ClassMatches]) -> dict[str, list[float]]:
    """Return counts of instances, and of the n best detections of each class of n instances, by duration. edges:
    seconds, of equal ratios, one more than bins; what lies outside is in the outermost bins."""
    true = np.concatenate([np.diff(own.segments)[:, 0] for own in matches])
    found = np.concatenate([np.diff(own.found.segments[: len(own.segments)])[:, 0] for own in matches])
    both = np.maximum(np.concatenate([true, found]), LEAST_SECONDS)
    # A ratio of 1 would be bins without a width.
    edges = np.geomspace(both.min(), max(both.max(), both.min() * 1.01), DURATION_BINS + 1)
    counts = [
        np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(float).tolist() for values in (true, found)
    ]
    return {"edges_seconds": [float(f"{edge:.4g}") for edge in edges], "true": counts[0], "detected": counts[1]}


def calibration(matches: Sequence[ClassMatches], level: int, videos: int, draws: Draws) -> dict[str, Any]:
    """Return, for bins of scores, how many detections they have, their mean score, and the share that finds an
    instance; and the expected calibration error, the mean difference of the two.

    level: number of the tIoU that decides what is right.
    """
    scores = np.concatenate([own.found.scores for own in matches])
    right = np.concatenate([own.instance[level] >= 0 for own in matches]).astype(np.float64)
    video = np.concatenate([own.found.video for own in matches])
    if not len(scores):
        return {"bins": [], "error": None}
    # Scores of other programs may be logits: the bins then span what there is.
    edges = np.linspace(min(scores.min(), 0.0), max(scores.max(), 1.0), SCORE_BINS + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, SCORE_BINS - 1)
    rows, gaps = [], np.zeros(videos)
    for number in np.unique(place).tolist():
        inside = place == number
        counts = np.bincount(video[inside], minlength=videos).astype(np.float64)
        hits = np.bincount(video[inside], right[inside], videos)
        sums = np.bincount(video[inside], scores[inside], videos)
        # The bin's side, too sure or not sure enough, is that of all videos.
        gaps += np.sign(hits.sum() - sums.sum()) * (hits - sums)
        rows.append(
            {
                "from": float(edges[number]),
                "to": float(edges[number + 1]),
                "detections": int(inside.sum()),
                "mean_score": float(scores[inside].mean()),
                "right": draws.figure(ratio(hits, counts), 0, 1).as_json(),
            }
        )
    all_counts = np.bincount(video, minlength=videos).astype(np.float64)
    return {"bins": rows, "error": draws.figure(ratio(gaps, all_counts), least=0).as_json()}
