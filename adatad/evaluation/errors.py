"""False positives by type, what each type costs in average mAP, and which classes are taken for which.

The types are those of DETAD (Alwassel et al., ECCV 2018). A detection that finds no instance is compared with the
instance of its video, of any class, that it overlaps most; tIoU is the threshold that it is matched at:

    double detection   overlap >= tIoU, same class: another detection has found the instance
    wrong label        overlap >= tIoU, another class
    localization       0.1 <= overlap < tIoU, same class
    confusion          0.1 <= overlap < tIoU, another class
    background         overlap < 0.1, or a video without instances
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adatad.evaluation.bootstrap import Estimate, average_precision, mean, ratio
from adatad.evaluation.matches import ClassMatches, Nearest

ERRORS = ("double detection", "wrong label", "localization", "confusion", "background")
"""Types of a detection that finds nothing, numbered from 1; 0 is a true positive."""
MISSED = "missed"
"""Instances that no detection finds, as a row beside the types of `ERRORS`."""
LEAST_OVERLAP = 0.1
"""tIoU from which a detection is about an instance at all."""
SLICES = 10
"""Slices of the ranking that the profile has: each as many detections as there are instances (DETAD's G)."""
CONFUSED_TIOU = 0.5
"""Overlap from which a detection says what class an instance is taken for."""


class Costs(NamedTuple):
    """Average mAP, the gain in it by type of error without that error, and AP by class, mean over tIoUs."""

    average_map: Estimate
    gains: dict[str, Estimate]
    ap: dict[str, Estimate]


def error_kinds(own: ClassMatches, nearest: Nearest, label: int, tious: Sequence[float]) -> np.ndarray:
    """Return the type of each detection of a class at each tIoU, 0 for one that finds an instance: int64 [tIoU,
    detections]. label: the class's own number."""
    reached = nearest.overlap >= np.asarray(tious)[:, None]
    same = nearest.label == label
    near = np.where(same, 1, 2), np.where(same, 3, 4)
    kinds = np.where(reached, near[0], np.where(nearest.overlap >= LEAST_OVERLAP, near[1], 5))
    return np.where(own.instance >= 0, 0, kinds)


def costs(matches: Sequence[ClassMatches], kinds: Sequence[np.ndarray], videos: int) -> Costs:
    """Return average mAP and what each type of error costs: the gain if its detections are removed, and, for missed
    instances, if they aren't counted, nor classes of which nothing is found. kinds: of each class, from `error_kinds`;
    videos: how many there are."""
    ap = {own.label: mean(class_precision(own, videos)) for own in matches}
    average = mean(ap.values())
    without = {
        name: mean(
            _removed(own, kind, number, videos) for own, rows in zip(matches, kinds, strict=True) for kind in rows
        )
        for number, name in enumerate(ERRORS, 1)
    }
    without[MISSED] = mean(_counting_found(own, row, videos) for own in matches for row in own.instance)
    return Costs(average, {name: value.minus(average) for name, value in without.items()}, ap)


def _removed(own: ClassMatches, kind: np.ndarray, number: int, videos: int) -> Estimate:
    """Return AP at one tIoU without the errors of one type. kind: of each detection, int64 [detections]."""
    kept = kind != number
    return average_precision(kind[kept] == 0, own.found.video[kept], _instances(own, videos))


def _counting_found(own: ClassMatches, row: np.ndarray, videos: int) -> Estimate:
    """Return AP at one tIoU if nothing had to be found but what is found. row: of `ClassMatches.instance`."""
    found = np.bincount(own.found.video[row >= 0], minlength=videos).astype(np.float64)
    return average_precision(row >= 0, own.found.video, found)


def _instances(own: ClassMatches, videos: int) -> np.ndarray:
    """Return the number of instances in each video, float64 [videos]."""
    return np.bincount(own.instance_video, minlength=videos).astype(np.float64)


def class_precision(own: ClassMatches, videos: int) -> list[Estimate]:
    """Return the AP of a class at each tIoU."""
    instances = _instances(own, videos)
    return [average_precision(row >= 0, own.found.video, instances) for row in own.instance]


def average_map(matches: Sequence[ClassMatches], videos: int) -> Estimate:
    """Return average mAP."""
    return mean(mean(class_precision(own, videos)) for own in matches)


def error_profile(
    matches: Sequence[ClassMatches], kinds: Sequence[np.ndarray], videos: int
) -> list[dict[str, Estimate]]:
    """Return the shares of true positives and of each type of error, mean over tIoUs, in the first, second, ... tenth
    slice of every class's ranking; a class of n instances has n detections in each. Shorter where there are fewer."""
    counts = np.zeros((SLICES, len(ERRORS) + 1, videos))
    for own, kind in zip(matches, kinds, strict=True):
        rank = np.arange(kind.shape[1]) // len(own.segments)
        top = rank < SLICES
        for row in kind[:, top]:
            np.add.at(counts, (rank[top], row, own.found.video[top]), 1 / len(kind))
    return [
        {name: ratio(part, of_slice.sum(0)) for name, part in zip(("true positive", *ERRORS), of_slice, strict=True)}
        for of_slice in counts
        if of_slice.sum() > 0
    ]


def confusion(matches: Sequence[ClassMatches], nearest: Sequence[Nearest]) -> np.ndarray:
    """Return how often an instance's class (row) is detected as a class (column), among the n best detections of each
    class of n instances: int64 [classes, classes]. Counted is the instance with the largest overlap, from tIoU 0.5."""
    counts = np.zeros((len(matches), len(matches)), np.int64)
    for column, (own, near) in enumerate(zip(matches, nearest, strict=True)):
        top = slice(len(own.segments))
        rows = near.label[top][near.overlap[top] >= CONFUSED_TIOU]
        counts[:, column] = np.bincount(rows, minlength=len(matches))
    return counts


def confused_pairs(counts: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return which class is detected as which other one, most often first; share: of the detections with that label."""
    rows, columns = np.nonzero(counts - np.diag(np.diag(counts)))
    pairs = [
        {
            "instance": labels[row],
            "detected_as": labels[column],
            "count": int(counts[row, column]),
            "share": float(counts[row, column] / counts[:, column].sum()),
        }
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])
