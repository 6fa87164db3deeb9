"""Which detection finds which instance, class by class: what every view of `adatad explain` is computed from.

Matching is that of mAP (`detection_map`). Videos are numbered once, those of the subset and all others that have
detections, so that a bootstrap over videos weighs detections and instances by one array. Needs numpy and numba.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from adatad.evaluation.detection_map import (
    ClassDetections,
    DetectionsByClass,
    Instances,
    Subset,
    candidates,
    ground_truth_segments,
    group_by_class,
    subset_names,
    takers,
)
from adatad.evaluation.nms import compiled

Tables = dict[str, np.ndarray]
"""{label: its detections as rows (video number, start, end, score), float64 [n, 4], in the order of their file}."""


class Content(NamedTuple):
    """Content that is explained: instances, detections by class, and the number of every video that counts."""

    instances: Instances
    tables: Tables
    videos: dict[str, int]


@dataclass(frozen=True)
class ClassMatches:
    """Matches of one class.

    found: detections by descending score; segments: of the instances, float64 [n, 2]; instance_video: int64 [n];
    taker: detection that takes an instance, int64 [tIoU, n], or the number of detections; instance: instance that a
    detection takes, int64 [tIoU, detections], or -1.
    """

    label: str
    found: ClassDetections
    segments: np.ndarray
    instance_video: np.ndarray
    taker: np.ndarray
    instance: np.ndarray


class Nearest(NamedTuple):
    """The instance, of any class, that overlaps each detection of one class most. overlap: tIoU, float64 [detections];
    label: number of its class, int64 [detections], -1 in a video without instances."""

    overlap: np.ndarray
    label: np.ndarray


def content_of(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
) -> Content:
    """Return what counts for the mAP of these files' contents; arguments as in `detection_map.evaluate`."""
    instances = ground_truth_segments(ground_truth, subset, blocked_videos, keep_ambiguous)
    found = group_by_class(detections, instances, blocked_videos, lambda item: item["label"])
    videos, names = dict(found.numbers), subset_names(subset)
    for video, entry in ground_truth["database"].items():
        # Also those without any detection: their instances are missed.
        if entry.get("subset") in names and video not in blocked_videos:
            videos.setdefault(video, len(videos))
    tables = {str(label): np.array(rows, np.float64).reshape(-1, 4) for label, rows in found.rows.items()}
    return Content(instances, tables, videos)


def best_of_each_class(content: Content, factor: int) -> Content:
    """Return the content with the `factor` x n best detections of each class, which has n instances."""
    tables = {}
    for label, table in content.tables.items():
        wanted = factor * sum(map(len, content.instances[label].values()))
        order = np.argsort(table[:, 3], kind="stable")[::-1][:wanted]
        # Back in the order of the file, which decides between equal scores.
        tables[label] = table[np.sort(order)]
    return content._replace(tables=tables)


def by_video(table: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each video with detections, and their segments, float64 [n, 2]. table: of `Tables`."""
    ordered = table[np.argsort(table[:, 0], kind="stable")]
    numbers, first = np.unique(ordered[:, 0].astype(np.int64), return_index=True)
    # An empty table splits into one empty part.
    return zip(numbers.tolist(), np.split(ordered[:, 1:3], first[1:]), strict=False)


def match_classes(content: Content, tious: Sequence[float]) -> list[ClassMatches]:
    """Return the matches of every class, in the order of `content.instances`."""
    return [match_class(content, label, tious) for label in content.instances]


def match_class(content: Content, label: str, tious: Sequence[float]) -> ClassMatches:
    """Return the matches of one class."""
    instances = content.instances[label]
    found = DetectionsByClass({label: content.tables[label]}, content.videos, 0)
    own, pairs, _, total = candidates(instances, found, label, min(tious))
    taker = takers(pairs, len(own.scores), total, tious)
    takes = np.full((len(tious), len(own.scores) + 1), -1)
    np.put_along_axis(takes, taker, np.arange(total)[None], axis=1)
    numbers = [content.videos[video] for video in instances]
    return ClassMatches(
        label,
        own,
        np.concatenate(list(instances.values())),
        np.repeat(numbers, [len(segments) for segments in instances.values()]),
        taker,
        takes[:, :-1],
    )


def nearest_instances(matches: Sequence[ClassMatches], videos: int) -> list[Nearest]:
    """Return the nearest instance of any class for the detections of each class. Of instances that overlap a detection
    equally, one of its own class counts: THUMOS-14 marks each cliff dive as a dive too."""
    video = np.concatenate([own.instance_video for own in matches])
    label = np.repeat(np.arange(len(matches)), [len(own.segments) for own in matches])
    order = np.argsort(video, kind="stable")
    segments, label = np.concatenate([own.segments for own in matches])[order], label[order]
    first = np.searchsorted(video[order], np.arange(videos + 1))
    return [
        Nearest(*_nearest(own.found.segments, own.found.video, number, segments, label, first))
        for number, own in enumerate(matches)
    ]


@compiled
def _nearest(
    detections: np.ndarray,
    video: np.ndarray,
    own_label: int,
    segments: np.ndarray,
    labels: np.ndarray,
    first: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest tIoU of each detection and the label there. first: of each video's instances, int64 [videos +
    1]."""
    overlaps, nearest = np.zeros(len(detections)), np.full(len(detections), -1)
    for number in range(len(detections)):
        start, end = detections[number]
        for place in range(first[video[number]], first[video[number] + 1]):
            shared = max(min(end, segments[place, 1]) - max(start, segments[place, 0]), 0.0)
            union = (end - start) + (segments[place, 1] - segments[place, 0]) - shared
            overlap = shared / max(union, 1e-8)
            better = overlap > overlaps[number] or nearest[number] < 0
            if better or (overlap == overlaps[number] and labels[place] == own_label):
                overlaps[number], nearest[number] = overlap, labels[place]
    return overlaps, nearest
