"""Average recall of proposals: how many instances the best few segments of each video find, whatever their labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adatad.evaluation.detection_map import Subset, ground_truth_segments, tiou


@dataclass(frozen=True)
class RecallResult:
    """Average recall of proposals. auc: area under the curve over its last x, in 0..1; average_recall: mean over the
    tIoUs, float64 [points]; proposals_per_video: float64 [points].

    Point j - 1 keeps about j proposals a video, more in videos with more. warnings: as in `MapResult`.
    """

    auc: float
    average_recall: np.ndarray
    proposals_per_video: np.ndarray
    num_ground_truth: int
    num_proposals: int
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def at(self, k: int) -> float:
        """Return the average recall at k proposals a video."""
        return float(self.average_recall[k - 1])

    def summary(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "AUC": self.auc,
            "average_recall": self.average_recall.tolist(),
            "proposals_per_video": self.proposals_per_video.tolist(),
        }


def evaluate_recall(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    tious: Sequence[float],
    most_per_video: int = 100,
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
) -> RecallResult:
    """Score the content of a detections file as proposals. most_per_video: points of the curve.

    Videos without proposals miss their instances. Proposals of videos without an instance count in the average only.
    """
    instances = _instances(ground_truth, subset, blocked_videos, keep_ambiguous)
    results = {video: items for video, items in detections["results"].items() if video not in blocked_videos}
    count = sum(len(items) for items in results.values())
    # As ActivityNet counts: a budget for all videos, of which each gets a share by its number of proposals.
    wanted = most_per_video * len(instances)
    ratio = wanted / max(count, 1)
    first_hits = {
        video: _first_hits(results.get(video, []), segments, ratio, tious) for video, segments in instances.items()
    }
    kept = {video: number for video, (number, _) in first_hits.items()}
    # The order of these operations matters: a last bit may change the truncations to integers below.
    share = np.arange(1, most_per_video + 1) / most_per_video * (wanted / max(sum(kept.values()), 1))
    found = np.zeros((len(tious), most_per_video))
    for video, (_, ranks) in first_hits.items():
        limits = np.minimum((kept[video] * share).astype(np.int64), kept[video])
        found += (ranks[:, :, None] < limits).sum(1)
    # Videos without proposals have no part in `found`, but their instances are in the total.
    total = sum(len(segments) for segments in instances.values())
    average = (found / max(total, 1)).mean(0)
    per_video = share * (sum(kept.values()) / max(len(instances), 1))
    auc = float(np.trapezoid(average, per_video) / per_video[-1]) if per_video[-1] else 0.0
    return RecallResult(auc, average, per_video, total, count)


def _instances(
    ground_truth: dict[str, Any], subset: Subset, blocked_videos: Collection[str], keep_ambiguous: bool
) -> dict[str, np.ndarray]:
    """Return the annotated segments of each video, whatever their label: float64 [n, 2]."""
    by_video: dict[str, list[np.ndarray]] = {}
    for videos in ground_truth_segments(ground_truth, subset, blocked_videos, keep_ambiguous).values():
        for video, segments in videos.items():
            by_video.setdefault(video, []).append(segments)
    return {video: np.concatenate(parts) for video, parts in by_video.items()}


def _first_hits(
    items: list[dict[str, Any]], segments: np.ndarray, ratio: float, tious: Sequence[float]
) -> tuple[int, np.ndarray]:
    """Return how many proposals of a video are kept, and the rank of the first that finds each instance: int64 [tIoU,
    instances]; the number kept where none does."""
    scores = np.array([item["score"] for item in items], np.float64)
    # Best first, of equal scores the later one, as in `detection_map`.
    order = np.argsort(scores, kind="stable")[::-1][: min(int(len(items) * ratio), len(items))]
    proposals = np.array([items[number]["segment"] for number in order], np.float64).reshape(-1, 2)
    overlaps = tiou(proposals[None], segments[:, None])
    reached = overlaps[None] >= np.asarray(tious)[:, None, None]
    # A column of true behind the last proposal: argmax finds it where no proposal reaches the instance.
    never = np.ones((*reached.shape[:2], 1), bool)
    return len(order), np.concatenate([reached, never], axis=2).argmax(2)
