"""mAP of temporal detections: ActivityNet-style files in, average precision by class and tIoU out.

Precision-recall areas as in VOC 2010 and later; each threshold matches on its own. Detections of equal score count in a
fixed order: the one later in the file first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

AMBIGUOUS = "Ambiguous"
DUPLICATE_SECONDS = 0.001
"""Annotations of one label whose ends both differ by at most this are one."""


@dataclass(frozen=True)
class MapResult:
    """mAP: by tIoU, in 0..1; ap_per_class: AP by tIoU for each annotated label, in order of first appearance.

    num_ground_truth: instances that were left; num_detections: of all videos, with known labels or not.
    """

    average_mAP: float  # noqa: N815, the field's name for it
    mAP: dict[float, float]  # noqa: N815
    ap_per_class: dict[str, list[float]]
    num_ground_truth: int
    num_detections: int


def evaluate(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: str,
    tious: Sequence[float],
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
) -> MapResult:
    """Score the content of a detections file against that of an annotation file.

    Detections in videos without an instance of their class, also of other subsets, are false positives; labels that the
    subset doesn't have are ignored. keep_ambiguous: let THUMOS-14's "Ambiguous" be a class, as the reference does.
    """
    instances = ground_truth_segments(ground_truth, subset, blocked_videos, keep_ambiguous)
    found: dict[str, list[tuple[str, float, float, float]]] = {label: [] for label in instances}
    count = 0
    for video, items in detections["results"].items():
        if video in blocked_videos:
            continue
        count += len(items)
        for item in items:
            if item["label"] in found:
                found[item["label"]].append((video, *item["segment"], item["score"]))
    ap = {label: average_precision(instances[label], found[label], tious) for label in instances}
    per_tiou = np.array(list(ap.values())).mean(0) if ap else np.zeros(len(tious))
    return MapResult(
        float(per_tiou.mean()),
        {float(tiou): float(value) for tiou, value in zip(tious, per_tiou, strict=True)},
        {label: values.tolist() for label, values in ap.items()},
        sum(len(segments) for videos in instances.values() for segments in videos.values()),
        count,
    )


def ground_truth_segments(
    ground_truth: dict[str, Any], subset: str, blocked_videos: Collection[str] = (), keep_ambiguous: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """{label: {video: float64 [n, 2]}}; empty segments and duplicates are dropped."""
    kept: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for video, entry in ground_truth["database"].items():
        if entry.get("subset") != subset or video in blocked_videos:
            continue
        for item in entry.get("annotations", ()):
            (start, end), label = item["segment"], item["label"]
            if end <= start or (label == AMBIGUOUS and not keep_ambiguous):
                continue
            known = kept[label][video]
            if not any(abs(start - s) <= DUPLICATE_SECONDS and abs(end - e) <= DUPLICATE_SECONDS for s, e in known):
                known.append((start, end))
    return {label: {video: np.array(s, np.float64) for video, s in videos.items()} for label, videos in kept.items()}


def average_precision(
    instances: dict[str, np.ndarray], detections: list[tuple[str, float, float, float]], tious: Sequence[float]
) -> np.ndarray:
    """AP of one class at each tIoU: float64 [len(tious)].

    instances: {video: [n, 2]}; detections: (video, start, end, score), in the order of their file.
    """
    scores = np.array([detection[3] for detection in detections], np.float64)
    # Descending and stable with the later one first: an ascending stable sort, read backwards.
    order = np.argsort(scores, kind="stable")[::-1]
    hits = np.zeros((len(tious), len(order)), bool)
    taken = {video: np.zeros((len(tious), len(segments)), bool) for video, segments in instances.items()}
    for rank, number in enumerate(order):
        video, start, end, _ = detections[number]
        if video not in instances:
            continue
        overlaps = tiou(start, end, instances[video])
        by_overlap = np.argsort(overlaps, kind="stable")[::-1]
        for level, threshold in enumerate(tious):
            free = by_overlap[(overlaps[by_overlap] >= threshold) & ~taken[video][level, by_overlap]]
            if len(free):
                taken[video][level, free[0]] = hits[level, rank] = True
    total = sum(len(segments) for segments in instances.values())
    return np.array([interpolated_area(row, total) for row in hits])


def tiou(start: float, end: float, segments: np.ndarray) -> np.ndarray:
    """Temporal intersection over union of one segment with others [n, 2]."""
    intersection = np.maximum(np.minimum(end, segments[:, 1]) - np.maximum(start, segments[:, 0]), 0)
    union = (end - start) + (segments[:, 1] - segments[:, 0]) - intersection
    return intersection / np.maximum(union, 1e-8)


def interpolated_area(hits: np.ndarray, total: int) -> float:
    """Area under precision over recall, precision made monotone from the right. hits: bool by descending score."""
    if not len(hits):
        return 0.0
    true = np.cumsum(hits)
    precision, recall = true / np.arange(1, len(hits) + 1), true / total
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float((envelope * steps).sum())
