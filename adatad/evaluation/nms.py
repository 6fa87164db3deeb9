"""Non-maximum suppression of segments, soft and hard, in float32 as the reference computes it.

Gaussian soft NMS multiplies the scores of segments that overlap a chosen one by exp(-overlap^2 / sigma). Order matters
where scores are equal, so the reference's way of swapping entries is kept.
"""

from __future__ import annotations

import numpy as np

from adatad.spec.schema import NmsSpec

LENGTH_EPSILON = np.float32(1e-6)
"""Added to the length of every segment."""

Detections = tuple[np.ndarray, np.ndarray, np.ndarray]
"""segments float32 [n, 2], scores float32 [n], labels int64 [n]."""


def apply_nms(segments: np.ndarray, scores: np.ndarray, labels: np.ndarray, spec: NmsSpec) -> Detections:
    """Suppress overlapping segments, each class alone or (`multiclass: false`) all together.

    At most `max_segments` for each class and of all are kept, sorted by score. Units are the caller's.
    """
    segments, scores = np.asarray(segments, np.float32).reshape(-1, 2), np.asarray(scores, np.float32)
    labels = np.asarray(labels, np.int64)
    if spec.multiclass:
        parts = [_suppress(segments, scores, np.flatnonzero(labels == label), spec) for label in np.unique(labels)]
    else:
        parts = [_suppress(segments, scores, np.arange(len(scores)), spec)]
    if not parts or not len(scores):
        return segments[:0], scores[:0], labels[:0]
    kept = np.concatenate([keep for keep, _ in parts])
    new_scores = np.concatenate([values for _, values in parts])
    new_segments = segments[kept]
    if spec.voting_threshold is not None and not spec.multiclass:
        new_segments = vote(new_segments, segments, scores, spec.voting_threshold)
    order = np.argsort(-new_scores, kind="stable")[: spec.max_segments]
    return new_segments[order], new_scores[order], labels[kept][order]


def _suppress(
    segments: np.ndarray, scores: np.ndarray, chosen: np.ndarray, spec: NmsSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept out of `chosen`, at most `max_segments`, and their new scores, in order of selection."""
    if spec.kind == "hard":
        keep = hard_nms(segments[chosen], scores[chosen], spec.iou_threshold, spec.min_score)[: spec.max_segments]
        return chosen[keep], scores[chosen[keep]]
    keep, decayed = soft_nms(segments[chosen], scores[chosen], spec.sigma, spec.min_score, spec.max_segments)
    return chosen[keep], decayed


def hard_nms(segments: np.ndarray, scores: np.ndarray, iou_threshold: float, min_score: float) -> np.ndarray:
    """Indices of kept segments by descending score; an overlap that equals the threshold suppresses."""
    candidates = np.arange(len(scores)) if min_score <= 0 else np.flatnonzero(scores > np.float32(min_score))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    keep = []
    while len(order):
        first, rest = order[0], order[1:]
        keep.append(first)
        order = rest[_overlap(segments[first], segments[rest]) < np.float32(iou_threshold)]
    return np.array(keep, np.int64)


def soft_nms(
    segments: np.ndarray, scores: np.ndarray, sigma: float, min_score: float, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices in order of selection, at most `limit`, and decayed scores.

    The best one left is never tested against `min_score`, so one segment survives if all are below.
    """
    index, segments, scores = np.arange(len(scores)), segments.copy(), scores.copy()
    end, place = len(scores), 0
    while place < min(end, limit):
        best = place + int(np.argmax(scores[place:end]))
        for array in (index, segments, scores):
            array[[place, best]] = array[[best, place]]
        rest = slice(place + 1, end)
        overlap = _overlap(segments[place], segments[rest])
        scores[rest] *= np.exp(-(overlap * overlap) / np.float32(sigma))
        if min_score > 0:
            end = _drop_low(index, segments, scores, place + 1, end, np.float32(min_score))
        place += 1
    return index[:place], scores[:place]


def _drop_low(
    index: np.ndarray, segments: np.ndarray, scores: np.ndarray, start: int, end: int, min_score: np.float32
) -> int:
    """Remove low scores between start and end; the last ones take their places. Returns the new end."""
    alive = scores[start:end] >= min_score
    new_end = start + int(alive.sum())
    holes = start + np.flatnonzero(~alive[: new_end - start])
    fillers = (start + np.flatnonzero(alive))[::-1][: len(holes)]
    for array in (index, segments, scores):
        array[holes] = array[fillers]
    return new_end


def _overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """tIoU of a segment with others, with the reference's small addition to lengths. float32 [n]."""
    intersection = np.maximum(np.minimum(one[1], others[:, 1]) - np.maximum(one[0], others[:, 0]), np.float32(0))
    length = one[1] - one[0] + LENGTH_EPSILON
    return intersection / (length + (others[:, 1] - others[:, 0] + LENGTH_EPSILON) - intersection)


def vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Each kept segment becomes the mean, weighted by score, of all segments that overlap it by `threshold` or more."""
    start = np.maximum(kept[:, None, 0], segments[None, :, 0])
    end = np.minimum(kept[:, None, 1], segments[None, :, 1])
    intersection = np.maximum(end - start, 0)
    union = (kept[:, 1] - kept[:, 0])[:, None] + (segments[:, 1] - segments[:, 0])[None] - intersection
    weights = scores[None] * (intersection >= np.float32(threshold) * union)
    return (weights @ segments / weights.sum(1, keepdims=True)).astype(np.float32)
