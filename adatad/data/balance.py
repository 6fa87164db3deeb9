"""Repeat factors of rare classes: videos that hold one come more than once in an epoch (`train.class_balance`).

After Gupta et al., LVIS (CVPR 2019): a class in a share f of the training videos has the factor max(1, sqrt(t / f)),
and a video that of its rarest class. There t is a constant of that data set; here it is the share of the median class,
so that nothing has to be tuned, and balanced classes repeat nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adatad.data.annotations import Video
from adatad.data.rng import generator

NONE = "none"
ONE = 1 << 40
"""Once, in the whole numbers of factors: sums of floats could miss a whole number by their last bit."""


@dataclass(frozen=True)
class Repeats:
    """Epochs of so many windows. factors: how often each video comes in an epoch, on average, in units of 1 / ONE,
    int64 [videos] >= ONE; their sum is that of `windows`."""

    factors: np.ndarray
    windows: int

    @property
    def copies(self) -> np.ndarray:
        """Numbers of videos, int64: each once, in order, then once for each further time that an epoch may hold it.

        A sample's random draws are of its place here: a video that comes twice in an epoch gives two windows.
        """
        videos = np.arange(len(self.factors))
        return np.concatenate([videos, np.repeat(videos, self._further)])

    @property
    def _further(self) -> np.ndarray:
        """Return how often an epoch may hold each video beyond the first time."""
        return -(-self.factors // ONE) - 1

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the places in `copies` that an epoch visits, in its order: int64 [windows]. Every video is among them,
        as often as its factor says, rounded down or up."""
        rng = generator(seed, epoch, 0, "repeats")
        # Systematic sampling: rounding each factor by itself would make epochs of different lengths.
        edges = np.concatenate([[0], np.cumsum(self.factors)]) + rng.integers(ONE)
        times = np.diff(edges // ONE)
        firsts = len(times) + np.cumsum(self._further) - self._further
        further = [start + np.arange(count - 1) for start, count in zip(firsts, times, strict=True)]
        return rng.permutation(np.concatenate([np.arange(len(times)), *further]))


def repeats_of(balance: str, videos: Sequence[Video]) -> Repeats | None:
    """Return the repeats of training videos, each with at least one instance, by `train.class_balance`; None for
    none."""
    if balance == NONE or not videos:
        return None
    by_class = class_factors(videos)
    wanted = np.array([max(by_class[label] for label in video.labels.tolist()) for video in videos])
    # A whole number of windows, for which all factors rise by a trifle; the largest takes what rounding leaves.
    windows = math.ceil(wanted.sum())
    factors = np.round(wanted * (windows / wanted.sum()) * ONE).astype(np.int64)
    factors[factors.argmax()] += windows * ONE - int(factors.sum())
    return Repeats(factors, windows)


def class_factors(videos: Sequence[Video]) -> dict[int, float]:
    """Return the factor of each class, by its number, of those that the videos hold."""
    held = [set(video.labels.tolist()) for video in videos]
    shares = {label: sum(label in own for own in held) / len(held) for label in sorted(set().union(*held))}
    usual = float(np.median(list(shares.values())))
    return {label: max(1.0, math.sqrt(usual / share)) for label, share in shares.items()}


def windows_of_epoch(balance: str, videos: Sequence[Video]) -> int:
    """Return the windows of an epoch: one of each video, and those that are repeated."""
    repeats = repeats_of(balance, videos)
    return repeats.windows if repeats else len(videos)


def balance_lines(balance: str, videos: Sequence[Video], classes: Sequence[str]) -> list[str]:
    """Return a line for the log on what is repeated; none where nothing is asked for."""
    repeats = repeats_of(balance, videos)
    if repeats is None:
        return []
    rare = [(factor, classes[label]) for label, factor in class_factors(videos).items() if factor > 1]
    rare.sort(reverse=True)
    listed = ", ".join(f"{name} x {factor:.2f}" for factor, name in rare[:5])
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    what = f"rare are {listed}{more}" if rare else "no class is rare"
    return [f"class balance: {repeats.windows} windows of {len(videos)} videos an epoch; {what}"]
