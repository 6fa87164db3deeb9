"""Figures with their bootstrap intervals over videos: videos are drawn anew, with repetition, and count as often.

Videos, not instances, are drawn: detections of one video succeed or fail together. Every figure comes with its
influence, the derivative by the number of times that each video counts. A draw then costs a product of two vectors
(the infinitesimal jackknife), and lies about the figure: rescored draws lie above it, since AP takes the best precision
at each recall and a video that is drawn twice hits twice in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 1_000
"""Draws of an interval."""
SHARE = 0.95
"""Share of the draws that lie in an interval."""
AT_A_TIME = 100
"""Figures whose draws are held at once."""


class Figure(NamedTuple):
    """A figure and the interval that holds 95 % of the draws. NaN where it isn't defined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return the JSON form, with null for NaN."""
        return {name: None if np.isnan(number) else round(number, 6) for name, number in self._asdict().items()}


class Estimate(NamedTuple):
    """A value, and how much it changes if a video counts once more: float64 [videos]. NaN if it isn't defined."""

    value: float
    influence: np.ndarray

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference, on the same videos."""
        return Estimate(self.value - other.value, self.influence - other.influence)

    def times(self, factor: float) -> Estimate:
        """Return the product with a number that doesn't depend on the videos."""
        return Estimate(self.value * factor, self.influence * factor)


class Draws:
    """Draws of videos, the same for all figures, so that differences of figures are drawn in pairs."""

    def __init__(self, videos: int, draws: int = DRAWS, seed: int = 0):
        random = np.random.default_rng(seed)
        # How often each video counts beyond once, float32 [draws, videos].
        self._beyond_once = np.empty((draws, videos), np.float32)
        for row in self._beyond_once:
            row[:] = np.bincount(random.integers(0, videos, videos), minlength=videos) - 1

    def figure(self, estimate: Estimate, least: float = -np.inf, most: float = np.inf) -> Figure:
        """Return a value and its interval, which doesn't leave `least` to `most`."""
        return self.figures([estimate], least, most)[0]

    def figures(self, estimates: Sequence[Estimate], least: float = -np.inf, most: float = np.inf) -> list[Figure]:
        """Return values and their intervals, as `figure` does."""
        found = []
        for begin in range(0, len(estimates), AT_A_TIME):
            part = estimates[begin : begin + AT_A_TIME]
            influence = np.stack([estimate.influence for estimate in part]).astype(np.float32)
            drawn = self._beyond_once @ influence.T
            ends = np.quantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)
            for (value, _), low, high in zip(part, *ends.tolist(), strict=True):
                found.append(Figure(value, *np.clip([value + low, value + high], least, most).tolist()))
        return found

    def shares_above_zero(self, estimates: Sequence[Estimate]) -> list[float]:
        """Return the share of the draws in which each value is above 0; draws of exactly 0 count half."""
        shares = []
        for begin in range(0, len(estimates), AT_A_TIME):
            part = estimates[begin : begin + AT_A_TIME]
            influence = np.stack([estimate.influence for estimate in part]).astype(np.float32)
            drawn = self._beyond_once @ influence.T + np.array([estimate.value for estimate in part])
            shares += ((drawn > 0).mean(0) + (drawn == 0).mean(0) / 2).tolist()
        return shares


def undefined(videos: int) -> Estimate:
    """Return the estimate of what isn't defined, such as the AP of no instance."""
    return Estimate(np.nan, np.zeros(videos))


def mean(estimates: Iterable[Estimate]) -> Estimate:
    """Return the mean of those that are defined."""
    value, influence, count = 0.0, np.zeros(1), 0
    # One at a time: each holds a number for every video, and there is one for each class and tIoU.
    for estimate in estimates:
        if np.isnan(estimate.value):
            influence = influence if count else np.zeros(len(estimate.influence))
            continue
        value, influence, count = value + estimate.value, influence + estimate.influence, count + 1
    return Estimate(value / count, influence / count) if count else Estimate(np.nan, influence)


def ratio(part: np.ndarray, whole: np.ndarray) -> Estimate:
    """Return sum(part) / sum(whole). part, whole: float64 [videos]."""
    total = whole.sum()
    if total == 0:
        return undefined(len(whole))
    value = float(part.sum() / total)
    return Estimate(value, (part - value * whole) / total)


def average_precision(
    hits: np.ndarray, video: np.ndarray, instances: np.ndarray, normal: float | None = None
) -> Estimate:
    """Return interpolated AP. hits: whether each detection finds an instance, bool [detections], by descending score;
    video: int64 [detections]; instances: number in each video, float64 [videos]; normal: number of instances that
    precision is computed for (DETAD's N), that of `instances` by default.
    """
    total = instances.sum()
    if total == 0:
        return undefined(len(instances))
    # What is ranked below the last hit changes no area.
    end = int(hits.nonzero()[0][-1]) + 1 if hits.any() else 0
    hits, video = hits[:end], video[:end]
    at = np.flatnonzero(hits)
    scale = 1.0 if normal is None else normal / total
    true = np.arange(1, len(at) + 1, dtype=np.float64)
    false = at + 1 - true
    precision = scale * true / (scale * true + false)
    # The best precision at this recall or a higher one, and the hit that has it.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    best = len(at) - 1 - _last_rise(precision[::-1])[::-1]
    area = float(envelope.sum() / total)
    # d precision / d(true, false), summed over the hits whose envelope it is.
    used = np.bincount(best, minlength=len(at)) / (scale * true + false) ** 2
    by_true = np.cumsum((used * scale * false)[::-1])[::-1]
    by_false = np.cumsum((used * scale * true)[::-1])[::-1]
    # A hit counts in all precisions from its own on, an error in those of the hits behind it.
    change = np.zeros(end)
    change[at] = envelope + by_true
    wrong = np.flatnonzero(~hits)
    change[wrong] = -by_false[np.searchsorted(at, wrong)]
    by_instance = area
    if normal is not None:
        by_instance += float((used * scale * true * false).sum() / total)
    influence = np.bincount(video, change, len(instances)) - by_instance * instances
    return Estimate(area, influence / total)


def _last_rise(values: np.ndarray) -> np.ndarray:
    """Return, for each place, the place of the largest value so far: int64 [n]."""
    rises = values >= np.maximum.accumulate(values)
    return np.maximum.accumulate(np.where(rises, np.arange(len(values)), 0))
