"""Non-maximum suppression of segments, soft and hard, in float32 as the reference computes it.

Soft NMS multiplies the scores of segments that overlap a chosen one by a factor. Order matters where scores are equal,
so the reference's way of swapping entries is kept. The loops are compiled by numba: no compiler is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import numba
import numpy as np

from adatad.spec.schema import NmsSpec

F = TypeVar("F", bound=Callable)


def compiled(function: F) -> F:
    """Compile a function of numbers and arrays with numba, on first use.

    The machine code is kept beside the package, else in the user's cache directory (or where NUMBA_CACHE_DIR says).
    Where neither can be written it is compiled anew in each process, which takes about a second.
    """
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError as error:
        # numba raises a plain RuntimeError when it finds no writable cache folder.
        if "locator" not in str(error):
            raise
        return numba.njit(function)


LENGTH_EPSILON = np.float32(1e-6)
"""Added to the length of every segment, as in the reference."""
ZERO, ONE = np.float32(0), np.float32(1)

Detections = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Segments float32 [n, 2], scores float32 [n], labels int64 [n]."""
Method = Literal["vanilla", "linear", "gaussian", "improved_gaussian"]
METHODS = get_args(Method)
VANILLA, LINEAR, GAUSSIAN, IMPROVED_GAUSSIAN = range(len(METHODS))


def apply_nms(segments: np.ndarray, scores: np.ndarray, labels: np.ndarray, spec: NmsSpec) -> Detections:
    """Suppress overlapping segments, within each class or (`multiclass: false`) across all of them.

    At most `max_segments` are kept per class and in all, sorted by score. Any unit of time.
    """
    segments, scores = np.asarray(segments, np.float32).reshape(-1, 2), np.asarray(scores, np.float32)
    labels = np.asarray(labels, np.int64)
    if not len(scores):
        return segments, scores, labels
    # Within one class at a time, or as if all had the same class.
    if spec.multiclass:
        # One sort for all classes: to look for each one's among all takes classes x segments.
        by_label = np.argsort(labels, kind="stable")
        borders = np.flatnonzero(np.diff(labels[by_label])) + 1
        parts = [_suppress(segments, scores, own, spec) for own in np.split(by_label, borders)]
    else:
        parts = [_suppress(segments, scores, np.arange(len(scores)), spec)]
    kept = np.concatenate([keep for keep, _ in parts])
    new_scores = np.concatenate([values for _, values in parts])
    new_segments = segments[kept]
    # Voters are all segments before NMS, with their first scores and of any class: not where classes are kept apart.
    if spec.voting_threshold is not None and not spec.multiclass:
        new_segments = vote(new_segments, segments, scores, spec.voting_threshold)
    order = np.argsort(-new_scores, kind="stable")[: spec.max_segments]
    return new_segments[order], new_scores[order], labels[kept][order]


def _suppress(
    segments: np.ndarray, scores: np.ndarray, chosen: np.ndarray, spec: NmsSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices kept out of `chosen`, at most `max_segments`, and their new scores, in order of selection."""
    if spec.kind == "hard":
        keep = hard_nms(segments[chosen], scores[chosen], spec.iou_threshold, spec.min_score)[: spec.max_segments]
        return chosen[keep], scores[chosen[keep]]
    keep, decayed = soft_nms(
        segments[chosen], scores[chosen], spec.sigma, spec.min_score, spec.max_segments,
        spec.method, spec.iou_threshold, spec.t1, spec.t2,
    )  # fmt: skip
    return chosen[keep], decayed


def hard_nms(segments: np.ndarray, scores: np.ndarray, iou_threshold: float, min_score: float) -> np.ndarray:
    """Return the indices of kept segments by descending score; an overlap equal to the threshold suppresses.

    segments: float32 [n, 2]; scores: float32 [n].
    """
    # A threshold of 0 keeps zeros, as in the reference, although the test is ">".
    candidates = np.arange(len(scores)) if min_score <= 0 else np.flatnonzero(scores > np.float32(min_score))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    return order[_hard(*_columns(segments[order]), np.float32(iou_threshold))]


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    sigma: float,
    min_score: float,
    limit: int,
    method: Method = "gaussian",
    iou_threshold: float = 0.0,
    t1: float = 0.0,
    t2: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices in order of selection, at most `limit`, and the decayed scores.

    segments: float32 [n, 2]; scores: float32 [n]. At an overlap o with the chosen segment, of length l, a score is
    multiplied by, vanilla: 0 if o >= iou_threshold; linear: 1 - o if o >= iou_threshold; gaussian: exp(-o^2 / sigma);
    improved_gaussian: the same, if o >= t1 + t2 x l. A segment whose score falls below `min_score` is dropped. The best
    one left is never tested, so one segment survives if all are below.
    """
    # Copies: the compiled loop sorts and decays in place.
    index, scores = np.arange(len(scores)), scores.astype(np.float32)
    # float32 throughout: a float64 threshold would decide differently at the border.
    settings = (np.float32(number) for number in (iou_threshold, sigma, t1, t2, min_score))
    kept = _soft(*_columns(segments), scores, index, METHODS.index(method), *settings, limit)
    return index[:kept], scores[:kept]


def vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Replace each kept segment by the score-weighted mean of all segments that overlap it by at least `threshold`.

    A segment without length overlaps nothing and stays as it is. Returns float32 [kept, 2].
    """
    return _vote(*_columns(kept), *_columns(segments), scores.astype(np.float32), np.float32(threshold))


def _columns(segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return contiguous copies of starts and ends."""
    return segments[:, 0].astype(np.float32), segments[:, 1].astype(np.float32)


@compiled
def _overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    """Return the tIoU of two segments, with the reference's small addition to lengths."""
    intersection = max(min(end, other_end) - max(start, other_start), ZERO)
    lengths = (end - start + LENGTH_EPSILON) + (other_end - other_start + LENGTH_EPSILON)
    return intersection / (lengths - intersection)


@compiled
def _hard(starts: np.ndarray, ends: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Return which segments are kept: those that no kept one before them suppresses: bool [n]. Sorted by descending
    score."""
    keep = np.ones(len(starts), np.bool_)
    for one in range(len(starts)):
        if keep[one]:
            for other in range(one + 1, len(starts)):
                if _overlap(starts[one], ends[one], starts[other], ends[other]) >= iou_threshold:
                    keep[other] = False
    return keep


@compiled
def _factor(
    overlap: float, length: float, method: int, iou_threshold: float, sigma: float, t1: float, t2: float
) -> float:
    """Return the factor for a score. length: length of the chosen segment."""
    if method == VANILLA:
        return ZERO if overlap >= iou_threshold else ONE
    if method == LINEAR:
        return ONE - overlap if overlap >= iou_threshold else ONE
    # Most segments don't overlap, and the exponential is what takes the time.
    if overlap == ZERO or (method == IMPROVED_GAUSSIAN and overlap < t1 + t2 * length):
        return ONE
    return math.exp(-(overlap * overlap) / sigma)


@compiled
def _soft(
    starts: np.ndarray,
    ends: np.ndarray,
    scores: np.ndarray,
    index: np.ndarray,
    method: int,
    iou_threshold: float,
    sigma: float,
    t1: float,
    t2: float,
    min_score: float,
    limit: int,
) -> int:
    """Sort all arrays in place by selection, with decayed scores; return how many were selected."""
    count, place = len(scores), 0
    while place < min(count, limit):
        best = place + np.argmax(scores[place:count])
        # A swap, as in the reference, not a removal: the order of the others decides ties later.
        _swap(starts, ends, scores, index, place, best)
        # Everything after `place` is still to be chosen, everything before it is.
        length = ends[place] - starts[place] + LENGTH_EPSILON
        position = place + 1
        while position < count:
            overlap = _overlap(starts[place], ends[place], starts[position], ends[position])
            scores[position] *= _factor(overlap, length, method, iou_threshold, sigma, t1, t2)
            if min_score > ZERO and scores[position] < min_score:
                # The last one takes its place and is looked at next: this order decides between equal scores, so it is
                # the reference's.
                count -= 1
                _swap(starts, ends, scores, index, position, count)
            else:
                position += 1
        place += 1
    return place


@compiled
def _swap(starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, index: np.ndarray, one: int, other: int) -> None:
    starts[one], starts[other] = starts[other], starts[one]
    ends[one], ends[other] = ends[other], ends[one]
    scores[one], scores[other] = scores[other], scores[one]
    index[one], index[other] = index[other], index[one]


@compiled
def _vote(
    kept_starts: np.ndarray, kept_ends: np.ndarray, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray,
    threshold: float,
) -> np.ndarray:  # fmt: skip
    """Return new segments, float32 [kept, 2]; plain tIoU, without the small addition to lengths."""
    voted = np.empty((len(kept_starts), 2), np.float32)
    for number in range(len(kept_starts)):
        start, end = kept_starts[number], kept_ends[number]
        weight = sum_of_starts = sum_of_ends = 0.0
        for voter in range(len(starts)):
            intersection = max(min(end, ends[voter]) - max(start, starts[voter]), ZERO)
            union = (end - start) + (ends[voter] - starts[voter]) - intersection
            if union > ZERO and intersection / union >= threshold:
                weight += scores[voter]
                sum_of_starts += scores[voter] * starts[voter]
                sum_of_ends += scores[voter] * ends[voter]
        voted[number, 0] = sum_of_starts / weight if weight > 0.0 else start
        voted[number, 1] = sum_of_ends / weight if weight > 0.0 else end
    return voted
