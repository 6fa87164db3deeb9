"""Mean average precision (mAP) of temporal detections, from the contents of ActivityNet-style files.

Precision-recall areas as in VOC 2010 and later; each tIoU threshold matches on its own. Detections of equal score are
ranked in a fixed order: the one later in the file first. Needs numpy alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from adatad.data.annotation_file import AMBIGUOUS

DUPLICATE_SECONDS = 0.001
"""Two annotations of one label are duplicates if both ends differ by at most this."""
PAIRS_AT_A_TIME = 2_000_000
"""(detection, instance) pairs whose tIoU is computed at once, which bounds memory."""

DETECTIONS_AT_A_TIME = 1_000
"""Detections that are matched at once; later ones only consider instances that these left unmatched."""

Subset = str | Sequence[str]
"""Name of a subset of the annotation file, or several that are scored as one."""
Instances = dict[str, dict[str, np.ndarray]]
"""{label: {video: segments in seconds, float64 [n, 2]}}."""


@dataclass(frozen=True)
class MapResult:
    """Result of an evaluation. mAP: by tIoU, in 0..1; ap_per_class: AP by tIoU for each annotated label, in order of
    first appearance.

    num_ground_truth: instances that were scored; num_detections: detections in all videos that aren't blocked, whatever
    their label. recall: recall@kx, by tIoU and k; recall_per_class: the same for each label, [tIoU][k]. other_videos:
    videos outside the subset that have detections, which count as false positives. warnings: suspicious facts about the
    two files, a line each (`adatad.evaluation.score_files`).
    """

    average_mAP: float  # noqa: N815, the field's name for it
    mAP: dict[float, float]  # noqa: N815
    ap_per_class: dict[str, list[float]]
    num_ground_truth: int
    num_detections: int
    recall: dict[float, dict[int, float]] = field(default_factory=dict)
    recall_per_class: dict[str, list[list[float]]] = field(default_factory=dict)
    other_videos: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def summary(self) -> dict[str, Any]:
        """Return the JSON form: mAP by tIoU, AP by class and tIoU, and recall@kx by tIoU and k if it was computed."""
        figures = {
            "average_mAP": self.average_mAP,
            "mAP": {f"{tiou:g}": value for tiou, value in self.mAP.items()},
            "ap_per_class": {label: list(values) for label, values in self.ap_per_class.items()},
        }
        if self.recall:
            figures["recall"] = {
                f"{tiou:g}": {str(k): value for k, value in by_k.items()} for tiou, by_k in self.recall.items()
            }
        return figures


@dataclass(frozen=True)
class ClassDetections:
    """Detections of one class in the order of their file.

    video: int64 [n], video numbers; segments: float64 [n, 2]; scores: float64 [n].
    """

    video: np.ndarray
    segments: np.ndarray
    scores: np.ndarray

    def by_score(self) -> ClassDetections:
        """Sort by descending score; of equal scores the later detection comes first."""
        # An ascending stable sort read backwards: that is what puts the later of two equal scores first.
        order = np.argsort(self.scores, kind="stable")[::-1]
        return ClassDetections(self.video[order], self.segments[order], self.scores[order])


@dataclass(frozen=True)
class Pairs:
    """Pairs of a detection and an instance of its video that overlap enough, sorted by detection, best instance first.

    detection, instance: int64 [pairs]; overlap: tIoU, float64 [pairs].
    """

    detection: np.ndarray
    instance: np.ndarray
    overlap: np.ndarray


def evaluate(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    tious: Sequence[float],
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
    top_k: Sequence[int] = (),
) -> MapResult:
    """Score the content of a detections file against that of an annotation file.

    Detections in videos without an instance of their class, also of other subsets, are false positives; labels that the
    subset doesn't have are ignored. keep_ambiguous: score THUMOS-14's "Ambiguous" as a class, as the reference does.
    top_k: also compute, for each k, the recall of the k x n best detections of a class in a video with n instances of
    it.
    """
    # Labels of the ground truth decide which classes there are: a detection of another class isn't even an error.
    instances = ground_truth_segments(ground_truth, subset, blocked_videos, keep_ambiguous)
    found = group_by_class(detections, instances, blocked_videos, lambda item: item["label"])
    return score_classes(
        instances, found, tious, top_k, videos_outside(ground_truth, detections, subset, blocked_videos)
    )


@dataclass(frozen=True)
class DetectionsByClass:
    """Detections by class, in the order of their file.

    rows: by class, video number, start, end and score of each detection, one after another; numbers: of the videos that
    aren't blocked; count: detections in all these videos, whatever their class.
    """

    rows: dict[Hashable, array[float] | np.ndarray]
    numbers: dict[str, int]
    count: int


def group_by_class(
    detections: dict[str, Any],
    classes: Collection[Hashable],
    blocked_videos: Collection[str],
    class_of: Callable[[dict[str, Any]], Hashable],
) -> DetectionsByClass:
    """Group the detections of a file by class; detections of other classes are only counted."""
    # 32 bytes each, where a tuple in a list takes four times as many.
    rows: dict[Hashable, array[float]] = {name: array("d") for name in classes}
    numbers: dict[str, int] = {}
    count = 0
    for video, items in detections["results"].items():
        if video in blocked_videos:
            continue
        # Videos of other subsets get a number too: their detections are false positives.
        number = numbers[video] = len(numbers)
        count += len(items)
        for item in items:
            own = rows.get(class_of(item))
            if own is not None:
                start, end = item["segment"]
                own.extend((number, start, end, item["score"]))
    return DetectionsByClass(rows, numbers, count)


def videos_outside(
    ground_truth: dict[str, Any], detections: dict[str, Any], subset: Subset, blocked_videos: Collection[str]
) -> tuple[str, ...]:
    """Return videos with detections that aren't in the subset or not annotated at all."""
    names = subset_names(subset)
    return tuple(
        video
        for video, items in detections["results"].items()
        if items and video not in blocked_videos and ground_truth["database"].get(video, {}).get("subset") not in names
    )


def subset_names(subset: Subset) -> tuple[str, ...]:
    """Return the names of a subset, also of a single one, as a tuple."""
    return (subset,) if isinstance(subset, str) else tuple(subset)


def ground_truth_segments(
    ground_truth: dict[str, Any], subset: Subset, blocked_videos: Collection[str] = (), keep_ambiguous: bool = False
) -> Instances:
    """Return annotated segments by label and video, without empty segments and duplicates."""
    names = subset_names(subset)
    kept: dict[str, dict[str, _Distinct]] = defaultdict(lambda: defaultdict(_Distinct))
    for video, entry in ground_truth["database"].items():
        if entry.get("subset") not in names or video in blocked_videos:
            continue
        for item in entry.get("annotations", ()):
            (start, end), label = item["segment"], item["label"]
            if end <= start or (label == AMBIGUOUS and not keep_ambiguous):
                continue
            # Some instances are annotated twice; a detection would find only one of the two.
            kept[label][video].add(start, end)
    return {
        label: {video: np.array(distinct.segments, np.float64) for video, distinct in videos.items()}
        for label, videos in kept.items()
    }


class _Distinct:
    """Segments without duplicates, in the order in which they came."""

    def __init__(self) -> None:
        self.segments: list[tuple[float, float]] = []
        # By start, so that a segment meets only those that begin where it does: there may be thousands.
        self._sorted: list[tuple[float, float]] = []

    def add(self, start: float, end: float) -> None:
        """Add a segment unless there is one like it."""
        # Twice the tolerance: differences below are rounded.
        for place in range(bisect_left(self._sorted, (start - 2 * DUPLICATE_SECONDS,)), len(self._sorted)):
            s, e = self._sorted[place]
            if s > start + 2 * DUPLICATE_SECONDS:
                break
            if abs(start - s) <= DUPLICATE_SECONDS and abs(end - e) <= DUPLICATE_SECONDS:
                return
        self.segments.append((start, end))
        insort(self._sorted, (start, end))


def score_classes(
    instances: Instances,
    found: DetectionsByClass,
    tious: Sequence[float],
    top_k: Sequence[int] = (),
    other_videos: tuple[str, ...] = (),
) -> MapResult:
    """Compute AP and recall@kx of every label of `instances`, and their means."""
    ap: dict[str, list[float]] = {}
    recalls: dict[str, list[list[float]]] = {}
    for label, by_video in instances.items():
        # Computed once for all thresholds, from the lowest one up; each threshold then matches by itself.
        own, pairs, count, total = candidates(by_video, found, label, min(tious, default=1.0))
        hits = match(pairs, len(own.scores), total, tious)
        ap[label] = interpolated_area(hits, total).tolist()
        recalls[label] = recall_of_best(own, pairs, count, total, tious, top_k).tolist()
    # Every class counts alike, however many instances it has.
    levels = [float(tiou) for tiou in tious]
    per_tiou = np.mean(list(ap.values()), axis=0) if ap else np.zeros(len(levels))
    mean_recalls = np.mean(list(recalls.values()), axis=0) if recalls else np.zeros((len(levels), len(top_k)))
    return MapResult(
        average_mAP=float(per_tiou.mean()),
        mAP=dict(zip(levels, per_tiou.tolist(), strict=True)),
        ap_per_class=ap,
        num_ground_truth=sum(len(segments) for videos in instances.values() for segments in videos.values()),
        num_detections=found.count,
        recall={t: dict(zip(top_k, row, strict=True)) for t, row in zip(levels, mean_recalls.tolist(), strict=True)}
        if top_k
        else {},
        recall_per_class=recalls if top_k else {},
        other_videos=other_videos,
    )


def candidates(
    by_video: dict[str, np.ndarray], found: DetectionsByClass, label: Hashable, least_tiou: float
) -> tuple[ClassDetections, Pairs, np.ndarray, int]:
    """Return what `match` needs of one class: its detections by descending score, their pairs with instances from
    `least_tiou` on, the number of instances by video number, and the number of all instances.

    by_video: segments of the class's instances, as in `Instances`.
    """
    # Scores and times as float64: the order of nearly equal scores must not depend on rounding here.
    table = np.array(found.rows[label], np.float64).reshape(-1, 4)
    own = ClassDetections(table[:, 0].astype(np.int64), table[:, 1:3], table[:, 3]).by_score()
    segments, first, count = _by_number(by_video, found.numbers)
    return own, overlapping_pairs(own, segments, first, count, least_tiou), count, len(segments)


def _by_number(by_video: dict[str, np.ndarray], numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the instances of one class as one array [n, 2], and for each numbered video the index of its first
    instance and its count. Videos without a number have no detections but still count in the recall."""
    # The instances of a video lie side by side, so that two numbers a video find them without a dictionary.
    segments = np.concatenate(list(by_video.values()))
    first, count = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    place = 0
    for video, own in by_video.items():
        if video in numbers:
            first[numbers[video]], count[numbers[video]] = place, len(own)
        place += len(own)
    return segments, first, count


def overlapping_pairs(
    found: ClassDetections, segments: np.ndarray, first: np.ndarray, count: np.ndarray, least_tiou: float
) -> Pairs:
    """Return pairs of a detection and an instance of its video whose tIoU is at least `least_tiou`.

    Of instances that overlap a detection equally, the later one comes first. segments, first, count: from `_by_number`.
    """
    # Each detection meets all instances of its video: `wanted` pairs, built by repeating detections and counting up
    # from the first instance of the video. Only those that overlap enough are kept.
    wanted = count[found.video]
    parts = []
    for part in _shares(wanted, PAIRS_AT_A_TIME):
        detection = np.repeat(np.arange(len(wanted))[part], wanted[part])
        before = np.cumsum(wanted[part]) - wanted[part]
        instance = np.arange(len(detection)) + np.repeat(first[found.video[part]] - before, wanted[part])
        overlap = tiou(found.segments[detection], segments[instance])
        near = overlap >= least_tiou
        parts.append((detection[near], instance[near], overlap[near]))
    empty = np.zeros(0, np.int64)
    detection, instance, overlap = map(np.concatenate, zip((empty, empty, np.zeros(0)), *parts, strict=True))
    # lexsort sorts by its last key first.
    order = np.lexsort((-instance, -overlap, detection))
    return Pairs(detection[order], instance[order], overlap[order])


def _shares(sizes: np.ndarray, limit: int) -> Iterator[slice]:
    """Return slices of `sizes` that sum up to about `limit` each."""
    total = np.cumsum(sizes)
    ends = np.searchsorted(total, np.arange(limit, total[-1] if len(total) else 0, limit), side="right")
    # A single size above the limit makes an empty slice beside it, which unique drops.
    borders = np.unique([0, *ends, len(sizes)])
    return (slice(a, b) for a, b in pairwise(borders))


def match(pairs: Pairs, detections: int, instances: int, tious: Sequence[float]) -> np.ndarray:
    """Return whether each detection finds an instance, for each tIoU separately: bool [tIoU, detections].

    Detections are numbered by descending score; in that order, each takes the best instance that is still free.
    """
    # One place more than there are detections, for instances that nobody took.
    hits = np.zeros((len(tious), detections + 1), bool)
    np.put_along_axis(hits, takers(pairs, detections, instances, tious), True, axis=1)
    return hits[:, :detections]


def takers(pairs: Pairs, detections: int, instances: int, tious: Sequence[float]) -> np.ndarray:
    """Return the detection that takes each instance, matched as in `match`: int64 [tIoU, instances], with `detections`
    for an instance that nobody takes."""
    # Instances and detections are numbered once per level, so that one call matches all thresholds.
    # `free` is a number above all detections', so that any bid is lower than it.
    free = len(tious) * detections
    holder = np.full(len(tious) * instances, free)
    levels = np.arange(len(tious))[:, None]
    for begin in range(0, detections, DETECTIONS_AT_A_TIME):
        # Detections come in order of score, so that what one part has taken stays taken for all later ones.
        some = slice(*np.searchsorted(pairs.detection, [begin, begin + DETECTIONS_AT_A_TIME]))
        places = levels * instances + pairs.instance[some]
        enough = pairs.overlap[some] >= np.asarray(tious, np.float64)[:, None]
        level, pair = np.nonzero(enough & (holder[places] == free))
        _assign(holder, free, level * detections + pairs.detection[some][pair], places[level, pair])
    by_level = holder.reshape(len(tious), instances)
    return np.where(by_level == free, detections, by_level - levels * detections)


def _assign(holder: np.ndarray, free: int, detection: np.ndarray, instance: np.ndarray) -> None:
    """Assign to each detection the best instance that no better detection takes; holder[instance] is set in place.

    detection, instance: int64 [pairs], sorted by detection, best instance first; all these instances are free before.
    This is deferred acceptance: all detections bid for their best instance at once, the lowest number wins it (also
    from an earlier winner), and the losers bid for their next one until none is left.
    As every instance prefers detections in the same order, the result equals matching them one by one, in a few rounds
    over whole arrays.
    """
    next_pair = np.flatnonzero(np.diff(detection, prepend=-1))
    end, numbers = np.append(next_pair[1:], len(detection)), detection[next_pair]
    asking = np.arange(len(numbers))
    while len(asking):
        wanted = instance[next_pair[asking]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, numbers[asking])
        now = holder[wanted]
        # Earlier winners that just lost their instance bid again, together with those who were turned away.
        displaced = np.unique(before[(before != free) & (before != now)])
        asking = np.concatenate([asking[now != numbers[asking]], np.searchsorted(numbers, displaced)])
        next_pair[asking] += 1
        asking = asking[next_pair[asking] < end[asking]]


def tiou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the temporal intersection over union of segments [..., 2] with others [..., 2]."""
    intersection = np.minimum(one[..., 1], other[..., 1]) - np.maximum(one[..., 0], other[..., 0])
    intersection = np.maximum(intersection, 0)
    union = (one[..., 1] - one[..., 0]) + (other[..., 1] - other[..., 0]) - intersection
    # A union of 0, of two segments without a length, has no intersection either.
    return intersection / np.maximum(union, 1e-8)


def interpolated_area(hits: np.ndarray, total: int) -> np.ndarray:
    """Return the area under precision over recall, with precision made monotone from the right: float64 [...].

    hits: bool [..., detections] by descending score; total: number of instances.
    """
    true = np.cumsum(hits, axis=-1)
    precision = true / np.arange(1, hits.shape[-1] + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    # Recall rises by 1 / total at each hit.
    return (envelope * hits).sum(-1) / total


def recall_of_best(
    found: ClassDetections,
    pairs: Pairs,
    count: np.ndarray,
    instances: int,
    tious: Sequence[float],
    top_k: Sequence[int],
) -> np.ndarray:
    """Return the share of instances that one of the k x n best detections overlaps enough: float64 [tIoU, k].

    n is the number of instances of the class in their video, given by `count` for each video number. One detection may
    find several.
    """
    # Rank of each detection among those of its own video: position in a stable sort by video, less its group's start.
    by_video = np.argsort(found.video, kind="stable")
    first = np.searchsorted(found.video[by_video], found.video[by_video])
    rank = np.empty(len(by_video), np.int64)
    rank[by_video] = np.arange(len(by_video)) - first
    shares = np.zeros((len(tious), len(top_k)))
    for column, k in enumerate(top_k):
        # The limit is each video's own: k times its number of instances.
        chosen = rank[pairs.detection] < k * count[found.video[pairs.detection]]
        best = np.zeros(instances)
        np.maximum.at(best, pairs.instance[chosen], pairs.overlap[chosen])
        shares[:, column] = [(best >= tiou).sum() / instances for tiou in tious]
    return shares
