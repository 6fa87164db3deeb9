"""Fusion of several detections files into one: detections of one action are drawn together, the rest is suppressed.

Per video and class, of files f with weights w_f, which are divided by the largest of the files that have the video:

1. All detections are taken by descending w_f s_f (s_f: score). Each joins the group that it overlaps most, if their
   tIoU reaches a threshold and the group has none of its file yet; else it begins a group.
2. A group becomes one detection. Its borders are weighted as in weighted boxes fusion (Solovyev et al., arXiv
   1910.13302); its score is the best one, since few groups hold a detection of every file:

       start = sum_f w_f s_f start_f / sum_f w_f s_f        end alike        score = max_f w_f s_f

3. NMS runs over the groups, with the settings of `postprocess.nms`.

So a file that is fused with itself is that file after NMS once more. Needs numpy and numba.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adatad.errors import UserError
from adatad.evaluation.nms import apply_nms, compiled
from adatad.evaluation.score_files import read_detections
from adatad.files import listed
from adatad.spec.schema import NmsSpec

Results = dict[str, list[dict[str, Any]]]
"""{video: detections}, each {"segment": [start, end] in seconds, "label": name, "score": number}."""
GROUP_TIOU = 0.7
"""tIoU from which detections of different files are about the same action (docs/compare.md: how it was chosen)."""
DEFAULT_NMS = NmsSpec()
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
# Finer than those of a run's own files: a weighted score of 0.0012 would be tied with others.
SECONDS_DECIMALS, SCORE_DECIMALS = 3, 6


class Fused(NamedTuple):
    """Fused detections by video, and the videos that only some of the files have."""

    results: Results
    videos_of_some: list[str]


class Groups(NamedTuple):
    """Groups of one class: segments in seconds, float64 [n, 2]; scores, float64 [n]."""

    segments: np.ndarray
    scores: np.ndarray


def fuse_files(
    files: Sequence[Path],
    weights: Sequence[float] | None = None,
    nms: NmsSpec | None = DEFAULT_NMS,
    group_tiou: float = GROUP_TIOU,
) -> Fused:
    """Fuse detections files, plain or .gz; arguments as in `fuse`. Raises FileError too."""
    # Before minutes of reading.
    _checked_weights(weights, len(files))
    return fuse([read_detections(path) for path in files], weights, nms, group_tiou, [str(path) for path in files])


def fuse(
    files: Sequence[Results],
    weights: Sequence[float] | None = None,
    nms: NmsSpec | None = DEFAULT_NMS,
    group_tiou: float = GROUP_TIOU,
    names: Sequence[str] | None = None,
) -> Fused:
    """Fuse detections, as this module says.

    weights: one a file, equal by default; nms: None to suppress nothing; names: of the files, for messages. Raises
    UserError for weights and scores that can't be used, and for a file without a video or label in common with others.
    """
    called = [f"file {number}" for number in range(1, len(files) + 1)] if names is None else list(names)
    weights = _checked_weights(weights, len(files))
    if not 0 < group_tiou <= 1:
        raise UserError(f"tIoU {group_tiou:g}: expected a number above 0 and up to 1")
    _check_scores(files, called)
    _check_common("video", [set(results) for results in files], called)
    labels = [{item["label"] for items in results.values() for item in items} for results in files]
    _check_common("label", labels, called)
    fused: Results = {}
    # In the order of first appearance, as the files have them.
    for video in dict.fromkeys(video for results in files for video in results):
        having = [number for number, results in enumerate(files) if video in results]
        own = [weights[number] for number in having]
        # A file without the video has no opinion of it: the scores of the others aren't lowered for that.
        own = [weight / max(own) for weight in own]
        fused[video] = _fuse_video([files[number][video] for number in having], own, nms, group_tiou)
    return Fused(fused, [video for video in fused if not all(video in results for results in files)])


def _checked_weights(weights: Sequence[float] | None, files: int) -> list[float]:
    """Return one weight a file. Raises UserError."""
    if files < 2:
        raise UserError(f"expected two files or more to fuse, got {files}")
    if weights is None:
        return [1.0] * files
    if len(weights) != files:
        raise UserError(f"weights: expected {files}, one a file in their order, got {len(weights)}")
    for weight in weights:
        # Not 0: of such a file nothing but its videos would be left.
        if not (math.isfinite(weight) and LEAST_WEIGHT <= weight <= MOST_WEIGHT):
            raise UserError(
                f"weights: expected numbers from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, got {weight:g}; leave a file out "
                "that shall not count"
            )
    return list(weights)


def _check_scores(files: Sequence[Results], names: Sequence[str]) -> None:
    """Raise UserError for a negative score: borders between others can't be weighted by it."""
    for results, name in zip(files, names, strict=True):
        for video, items in results.items():
            for item in items:
                if item["score"] < 0:
                    raise UserError(
                        f"{name}: video {video!r}: the score {item['score']:g} is negative, and borders are weighted "
                        "by scores; bring them into 0..1 first"
                    )


def _check_common(what: str, sets: Sequence[set[str]], names: Sequence[str]) -> None:
    """Raise UserError for a file that has nothing in common with any other. what: video or label."""
    # Empty ones first: of two files the other one would be named for what this one lacks.
    for number, own in sorted(enumerate(sets), key=lambda numbered: bool(numbered[1])):
        others = set().union(*sets[:number], *sets[number + 1 :])
        if own.isdisjoint(others):
            here, there = (listed(sorted(found), 3) or "none" for found in (own, others))
            raise UserError(
                f"{names[number]}: has no {what} in common with the other files (here {here}; there {there}); fuse "
                "detections of the same videos and classes"
            )


def _fuse_video(
    parts: Sequence[Sequence[dict[str, Any]]], weights: Sequence[float], nms: NmsSpec | None, group_tiou: float
) -> list[dict[str, Any]]:
    """Fuse the detections of one video, one list a file, best first."""
    # By class: (start, end, weighted score, file).
    rows: dict[str, list[tuple[float, float, float, int]]] = {}
    for number, (items, weight) in enumerate(zip(parts, weights, strict=True)):
        for item in items:
            start, end = item["segment"]
            rows.setdefault(item["label"], []).append((start, end, weight * item["score"], number))
    if not rows:
        return []
    # By name: NMS ranks equal scores of two classes by their numbers, which the order of the files mustn't decide.
    labels = sorted(rows)
    groups = [_groups_of_class(rows[label], len(parts), group_tiou) for label in labels]
    segments, scores = (np.concatenate(columns) for columns in zip(*groups, strict=True))
    numbers = np.repeat(np.arange(len(labels)), [len(own.scores) for own in groups])
    if nms is not None:
        segments, scores, numbers = apply_nms(segments, scores, numbers, nms)
    order = np.argsort(-scores, kind="stable")
    return [
        {
            "segment": [round(start, SECONDS_DECIMALS), round(end, SECONDS_DECIMALS)],
            "label": labels[number],
            "score": round(score, SCORE_DECIMALS),
        }
        for (start, end), score, number in zip(
            segments[order].tolist(), scores[order].tolist(), numbers[order].tolist(), strict=True
        )
    ]


def _groups_of_class(rows: Sequence[tuple[float, float, float, int]], files: int, group_tiou: float) -> Groups:
    """Return the groups of one class of one video. rows: (start, end, weighted score, file) of each detection."""
    table = np.array(rows, np.float64)
    # Equal scores by their borders, so that the order of the files decides between equal detections alone.
    table = table[np.lexsort((table[:, 3], table[:, 1], table[:, 0], -table[:, 2]))]
    starts, ends, weighted, _ = np.ascontiguousarray(table.T)
    group, count = _group(starts, ends, weighted, table[:, 3].astype(np.int64), files, group_tiou)
    best = np.zeros(count)
    np.maximum.at(best, group, weighted)
    # Where all scores are 0, all borders count alike.
    pull = np.where(best[group] > 0, weighted, 1.0)
    total = np.bincount(group, pull, count)
    segments = np.stack([np.bincount(group, pull * border, count) / total for border in (starts, ends)], axis=1)
    return Groups(segments, best)


@compiled
def _group(
    starts: np.ndarray, ends: np.ndarray, weighted: np.ndarray, file: np.ndarray, files: int, group_tiou: float
) -> tuple[np.ndarray, int]:
    """Return the group of each detection, int64 [n], and how many groups there are. Sorted by descending score."""
    group, count = np.zeros(len(starts), np.int64), 0
    taken = np.zeros((len(starts), files), np.bool_)
    # Sums of weights, weighted starts and ends: a detection is compared with the borders that its group has so far.
    weight, start, end = np.zeros(len(starts)), np.zeros(len(starts)), np.zeros(len(starts))
    for number in range(len(starts)):
        # A score of 0 would leave a group without borders.
        pull = max(weighted[number], 1e-30)
        best, most = -1, group_tiou
        for other in range(count):
            if not taken[other, file[number]]:
                shared = _tiou(starts[number], ends[number], start[other] / weight[other], end[other] / weight[other])
                # The first of equal ones, which began with the higher score.
                if shared > most or (best < 0 and shared >= most):
                    best, most = other, shared
        if best < 0:
            best, count = count, count + 1
        group[number], taken[best, file[number]] = best, True
        weight[best] += pull
        start[best] += pull * starts[number]
        end[best] += pull * ends[number]
    return group, count


@compiled
def _tiou(start: float, end: float, other_start: float, other_end: float) -> float:
    """Return the tIoU of two segments; 0 for two without length."""
    shared = max(min(end, other_end) - max(start, other_start), 0.0)
    return shared / max(end - start + other_end - other_start - shared, 1e-30)
