"""Detections of a video's windows as arrays, 14 bytes each: hours of video have millions of them before NMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adatad.evaluation.nms import apply_nms
from adatad.evaluation.postprocess import Detection
from adatad.spec.schema import PostprocessSpec

MAX_LABELS = 1 << 16


class PackedWindow(NamedTuple):
    """Detections of a window, rounded as `window_detections` rounds them: seconds float32 [k, 2], scores float32 [k],
    numbers of labels uint16 [k]."""

    seconds: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class PackedDetections:
    """Detections of the windows of one video, in order; lists made of them equal those of `join_windows`.

    names: labels by number; sliding: NMS over the windows is still to come, otherwise it has been.
    """

    def __init__(self, names: Sequence[str], spec: PostprocessSpec, sliding: bool):
        if len(names) > MAX_LABELS:
            raise ValueError(f"{len(names)} labels are more than {MAX_LABELS}")
        self._names, self._spec, self._sliding = names, spec, sliding
        self._windows: list[PackedWindow] = []

    def __len__(self) -> int:
        return len(self._windows)

    def add(self, seconds: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add what is found in the next window: float [k, 2] and [k], before rounding, and numbers of labels [k]."""
        rounded = rounded_floats(seconds, 2), rounded_floats(scores, 4)
        self._windows.append(PackedWindow(*rounded, np.asarray(labels, np.uint16)))

    def detections(self, numbers: range) -> list[Detection]:
        """Return the detections of these windows as one list, after NMS, best first."""
        windows = self._windows[numbers.start : numbers.stop]
        if not windows:
            return []
        seconds, scores, labels = (np.concatenate(parts) for parts in zip(*windows, strict=True))
        names = self._names
        if self._sliding and self._spec.nms is not None:
            labels, names = by_appearance(labels, names)
            seconds, scores, labels = apply_nms(seconds, scores, labels, self._spec.nms)
        return [
            {"segment": [round(start, 2), round(end, 2)], "label": names[label], "score": round(score, 4)}
            for (start, end), score, label in zip(seconds.tolist(), scores.tolist(), labels.tolist(), strict=True)
        ]


def by_appearance(labels: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Number labels in the order in which they first appear: NMS ranks equal scores of two classes by their numbers."""
    found, first = np.unique(labels, return_index=True)
    order = np.argsort(first)
    ranks = np.zeros(len(names), np.uint16)
    ranks[found[order]] = np.arange(len(found))
    return ranks[labels], [names[number] for number in found[order]]


def rounded_floats(numbers: np.ndarray, decimals: int) -> np.ndarray:
    """Round float32 to decimals as `round` does one at a time, to float32.

    In float64 a product of a float32 and a small power of ten is exact, and so is which of two sides it is nearer to.
    """
    return np.round(np.asarray(numbers, np.float64), decimals).astype(np.float32)
