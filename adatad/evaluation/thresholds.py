"""Precision, recall and F1 of detections as their scores fall, and the threshold of each class with the best F1.

Detections are matched as for mAP at one tIoU: by descending score, each takes the best instance of its class and video
that is still free. So what a threshold keeps is matched as if nothing else had been found. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adatad.errors import UserError
from adatad.evaluation.detection_map import Subset, candidates, ground_truth_segments, group_by_class, match

TIOU = 0.5
"""tIoU from which a detection counts as right, unless another is asked for."""


@dataclass(frozen=True)
class ScoreCurve:
    """Detections that remain above each score.

    scores: distinct scores, descending, float64 [n]; kept: detections that score at least as much, int64 [n]; hits:
    those of them that find an instance, int64 [n]; instances: how many there are.
    """

    scores: np.ndarray
    kept: np.ndarray
    hits: np.ndarray
    instances: int

    @property
    def precision(self) -> np.ndarray:
        """Share of what is kept that is right, float64 [n]."""
        return self.hits / self.kept

    @property
    def recall(self) -> np.ndarray:
        """Share of the instances that are found, float64 [n]; 0 where there are none."""
        return self.hits / max(self.instances, 1)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, float64 [n]."""
        return 2 * self.hits / (self.kept + self.instances)


@dataclass(frozen=True)
class Curves:
    """Curves at one tIoU: by_class, of each annotated class; overall, of all of these classes together."""

    tiou: float
    overall: ScoreCurve
    by_class: dict[str, ScoreCurve]


@dataclass(frozen=True)
class Threshold:
    """A threshold, and what is kept by `score >= threshold` on the data that it was chosen on."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassThresholds:
    """Thresholds with the best F1 at one tIoU. by_class: of every class; from_overall: the classes that have the
    overall one, because nothing of them is annotated, or found, in the validation videos."""

    tiou: float
    overall: Threshold
    by_class: dict[str, Threshold]
    from_overall: tuple[str, ...]


def score_curves(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    tiou: float = TIOU,
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
) -> Curves:
    """Return the curves of a detections file's content against an annotation file's.

    What counts is what `adatad.evaluation.detection_map.evaluate` counts, with the same arguments: detections in videos
    without an instance of their class are wrong, and labels that the subset doesn't have are left out. Raises UserError
    for a tIoU that isn't above 0 and up to 1.
    """
    if not 0 < tiou <= 1:
        raise UserError(f"tIoU {tiou!r}: expected a number above 0 and up to 1")
    instances = ground_truth_segments(ground_truth, subset, blocked_videos, keep_ambiguous)
    found = group_by_class(detections, instances, blocked_videos, lambda item: item["label"])
    by_class, scores, hits = {}, [np.zeros(0)], [np.zeros(0, bool)]
    for label, by_video in instances.items():
        own, pairs, _, total = candidates(by_video, found, label, tiou)
        (right,) = match(pairs, len(own.scores), total, (tiou,))
        by_class[label] = score_curve(own.scores, right, total)
        scores.append(own.scores)
        hits.append(right)
    total = sum(curve.instances for curve in by_class.values())
    return Curves(tiou, score_curve(np.concatenate(scores), np.concatenate(hits), total), by_class)


def score_curve(scores: np.ndarray, hits: np.ndarray, instances: int) -> ScoreCurve:
    """Return the curve of detections. scores: float64 [detections], in any order; hits: whether each finds an instance,
    bool [detections]."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    # A threshold keeps all detections of equal score or none: a point for the last of each.
    last = np.flatnonzero(np.diff(descending, append=-np.inf))
    return ScoreCurve(descending[last], last + 1, np.cumsum(hits[order])[last], instances)


def best_threshold(curve: ScoreCurve) -> Threshold | None:
    """Return the threshold with the best F1, of several the highest; None if no detection is right."""
    f1 = curve.f1
    if not f1.any():
        return None
    place = int(f1.argmax())
    kept, lower = curve.scores[place], curve.scores[place + 1] if place + 1 < len(f1) else curve.scores[place]
    # Halfway to the next score, so that rounding on another device doesn't drop the last detection that is kept.
    middle = (kept + lower) / 2
    threshold = middle if middle > lower else kept
    return Threshold(float(threshold), float(curve.precision[place]), float(curve.recall[place]), float(f1[place]))


def best_thresholds(curves: Curves, classes: Sequence[str]) -> ClassThresholds | None:
    """Return the thresholds with the best F1 of these classes, which may be more than are annotated; None if no
    detection is right."""
    overall = best_threshold(curves.overall)
    if overall is None:
        return None
    own = {label: best for label, curve in curves.by_class.items() if (best := best_threshold(curve))}
    without = tuple(label for label in classes if label not in own)
    return ClassThresholds(curves.tiou, overall, {label: own.get(label, overall) for label in classes}, without)
