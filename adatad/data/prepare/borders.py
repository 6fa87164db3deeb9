"""Labels held against pixels: at the borders of an instance something begins or ends, so a video changes more there
than elsewhere. Where it doesn't, labels may be shifted, or of another video.

A change is the difference between the second before a moment and the second after it, in what is seen (the mean frame)
and in what moves (the mean difference of neighbouring frames). It is ranked among those of all moments of its video, so
that cameras and scenes of any kind can be held against one bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

RATE_FPS = 8.0
"""Frames a second that are looked at."""
SIDE_SECONDS = 1.0
"""Time before and after a moment that is compared."""
TOLERANCE_SECONDS = 0.25
"""Distance of a change from the border that it counts for: annotators miss a border by about that much."""
# Chance is 0.5. Borders of the built-in videos rank at 0.64 to 0.77 on average in each (the hard ones, under a moving
# camera and with two actors at once, at 0.52 to 0.70), and those that are 1 to 3 seconds off at 0.35 to 0.61.
LEAST_MEAN_RANK, DOUBTFUL_MEAN_RANK = 0.5, 0.6
"""Mean rank of a video's borders below which its labels are suspicious: by itself, and where a shift fits better."""
LEAST_RANK = 0.5
"""Rank that one border of an instance must reach, in a suspicious video, not to be listed."""
MAX_SHIFT_SECONDS = 5.0
"""Longest shift that is tried."""
SHIFT_GAIN = 0.2
"""Gain in mean rank above which a shift is named: one of forty shifts gains half of it by chance."""
NOISE_SHARE = 0.25
"""Share of a video's large changes below which one counts as none."""
FLAT = 0.05
"""Change in grey levels below which a video stands still: nothing can be said of its labels."""


class Suspicion(NamedTuple):
    """An instance at neither border of which the video changes. better_shift_seconds: by which all labels of the video
    would fit better; 0 if none is clearly better."""

    start_seconds: float
    end_seconds: float
    better_shift_seconds: float


def suspicious_instances(
    seconds: np.ndarray, cells: np.ndarray, instances: Sequence[tuple[float, float]]
) -> list[Suspicion]:
    """Return the suspicious ones among a video's instances, given as (start, end) in seconds.

    seconds: float64 [n], ascending times of frames; cells: float32 [n, c], their grey cells. Borders too near to an end
    of the video for a second on both sides aren't judged.
    """
    ranks = ranks_of_changes(seconds, cells)
    if ranks is None:
        return []
    judged = [(*instance, [r for b in instance if not np.isnan(r := ranks.at(b))]) for instance in instances]
    every = [rank for *_, own in judged for rank in own]
    if not every or (mean := float(np.mean(every))) >= DOUBTFUL_MEAN_RANK:
        return []
    shift = _better_shift(ranks, [border for instance in instances for border in instance], mean)
    if mean >= LEAST_MEAN_RANK and not shift:
        return []
    # The best border decides, so that an instance that is cut into or joined with another at one end isn't listed.
    listed = [(start, end) for start, end, own in judged if own and max(own) < LEAST_RANK]
    if not listed:
        listed = [min((item for item in judged if item[2]), key=lambda item: max(item[2]))[:2]]
    return [Suspicion(start, end, shift) for start, end in listed]


def frames_for_borders(seconds: np.ndarray) -> np.ndarray:
    """Return the frames that `suspicious_instances` needs, at most RATE_FPS a second: int64. seconds: of all frames."""
    return np.unique(np.floor(seconds * RATE_FPS + 1e-6), return_index=True)[1]


class Ranks(NamedTuple):
    """Ranks of a video's changes on an even grid of RATE_FPS from second `first`: float64 [n], 0 to 1, NaN near the
    ends."""

    first: float
    values: np.ndarray

    def at(self, second: float) -> float:
        """Return the rank at a time; NaN outside."""
        # Bounds first: huge or infinite times have no integer.
        place = (second - self.first) * RATE_FPS
        return float(self.values[round(place)]) if 0 <= place <= len(self.values) - 1 else float("nan")


def ranks_of_changes(seconds: np.ndarray, cells: np.ndarray) -> Ranks | None:
    """Return the rank of each moment's change among all of its video; None for one that stands still or is shorter than
    two of its sides."""
    side = round(SIDE_SECONDS * RATE_FPS)
    if len(seconds) < 2 or not (seconds[-1] - seconds[0]) * RATE_FPS >= 3 * side:
        return None
    # On an even grid, whatever the rate: the frame on the screen at each of its moments.
    grid = np.arange(seconds[0], seconds[-1], 1 / RATE_FPS)
    even = cells[np.clip(np.searchsorted(seconds, grid + 1e-6, side="right") - 1, 0, len(cells) - 1)]
    moving = np.abs(np.diff(even, axis=0, append=even[-1:]))
    parts = []
    for values in (even, moving):
        change = _change(values, side)
        # In units of the usual change of this video, so that the two can be added.
        usual = float(np.median(change))
        parts += [change / usual] if usual > FLAT else [change / max(float(change.max()), FLAT)]
        if values is even and change.max() <= FLAT:
            return None
    change = sum(parts)
    # The largest one within the tolerance stands for each moment.
    reach = round(TOLERANCE_SECONDS * RATE_FPS)
    padded = np.pad(change, reach, constant_values=-1.0)
    near = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(1)
    # Noise has an order, too, which would give quiet moments of a still scene any rank: they are made equal.
    near[near < NOISE_SHARE * np.quantile(near, 0.95)] = 0.0
    ordered = np.sort(near)
    ranks = np.full(len(even) + 1, np.nan)
    # Of equal changes half count as smaller: in a video that mostly stands still, standing still is the middle rank.
    ranks[side : side + len(near)] = (
        np.searchsorted(ordered, near, "left") + np.searchsorted(ordered, near, "right")
    ) / (2 * len(ordered))
    return Ranks(float(seconds[0]), ranks)


def _change(values: np.ndarray, side: int) -> np.ndarray:
    """Return the mean absolute difference between the means of `side` rows before and after: float32 [n, c] -> float64
    [n - 2 side + 1], from row `side` on."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    before, after = sums[side:-side] - sums[: -2 * side], sums[2 * side :] - sums[side:-side]
    return np.abs(after - before).mean(1) / side


def _better_shift(ranks: Ranks, borders: Sequence[float], mean: float) -> float:
    """Return the shift in seconds at which borders rank best, if that is clearly better than where they are; else 0."""
    best, shift = mean + SHIFT_GAIN, 0.0
    for moved in _shifts():
        there = [rank for border in borders if not np.isnan(rank := ranks.at(border + moved))]
        # As many as before, nearly: a few borders that are left inside have a high mean by chance.
        if len(there) > 0.8 * len(borders) and np.mean(there) > best:
            best, shift = float(np.mean(there)), moved
    return shift


def _shifts() -> Iterator[float]:
    steps = round(MAX_SHIFT_SECONDS / TOLERANCE_SECONDS)
    yield from (step * TOLERANCE_SECONDS for step in range(-steps, steps + 1) if step)
