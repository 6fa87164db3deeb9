"""mAP of one group of instances at a time, where a key of the annotations divides them, such as `unseen_source`.

A group is scored as a subset is, with two changes. Its instances alone are the ground truth; classes that have none in
it don't count in its mean. And a detection that is about an instance of another group is left out, neither right nor
wrong. It is about those instances of its own class that it reaches the lowest tIoU with; if one of them is of this
group, it stays. Everything else stays too: detections on background or with a wrong class are wrong in every group. So
one group of all instances has the mAP of `evaluate`.

The lowest tIoU decides for all thresholds: a detection that found an instance, but not exactly enough for a high
threshold, is an error in the group of that instance and not in all the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from adatad.errors import UserError
from adatad.evaluation.detection_map import MapResult, evaluate, tiou

Item = dict[str, Any]
"""An annotation or a detection: "segment" in seconds, "label", and other keys."""


def evaluate_groups(
    key: str,
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: str,
    tious: Sequence[float],
    **options: Any,
) -> dict[str, MapResult]:
    """Score each group on its own: {"KEY=VALUE": result}, values as JSON writes them, in alphabetical order.

    key: key of the annotations that divides them; the other arguments are those of `evaluate`. Raises UserError.
    """
    contents = group_contents(key, ground_truth, detections, subset, tious)
    return {group: evaluate(*content, subset, tious, **options) for group, content in contents.items()}


def group_contents(
    key: str, ground_truth: dict[str, Any], detections: dict[str, Any], subset: str, tious: Sequence[float]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the annotations and detections by which each group is scored; arguments and errors as of
    `evaluate_groups`."""
    videos = {name: entry for name, entry in ground_truth["database"].items() if entry.get("subset") == subset}
    instances = {name: entry.get("annotations", ()) for name, entry in videos.items()}
    groups = {name: [_group(name, item, key) for item in items] for name, items in instances.items()}
    contents = {}
    # In a fixed order: tables and files list groups as they come.
    for group in sorted({group for names in groups.values() for group in names}):
        # Each group is scored as a file of its own: its instances, and detections without those of other groups.
        truth, left = {}, {}
        for name, entry in videos.items():
            pairs = list(zip(instances[name], groups[name], strict=True))
            own = [item for item, its_group in pairs if its_group == group]
            others = [item for item, its_group in pairs if its_group != group]
            truth[name] = {**entry, "annotations": own}
            items, threshold = detections["results"].get(name, []), min(tious)
            # What is about another group's instance alone is neither right nor wrong here.
            kept = _reaches(items, own, threshold) | ~_reaches(items, others, threshold)
            left[name] = [item for item, keep in zip(items, kept, strict=True) if keep]
        # Videos outside the subset keep theirs: false positives in every group, as in `evaluate`.
        contents[group] = {"database": truth}, {"results": {**detections["results"], **left}}
    return contents


def _group(video: str, item: Item, key: str) -> str:
    if key not in item:
        raise UserError(
            f"video {video!r}: the annotation {item!r} has no {key!r}, by which evaluate.groups_by divides the "
            "instances; give every annotation one, or set groups_by to null"
        )
    return f"{key}={json.dumps(item[key])}"


def _reaches(detections: Sequence[Item], instances: Sequence[Item], threshold: float) -> np.ndarray:
    """Return whether each detection has a tIoU of at least `threshold` with an instance of its class: bool
    [detections]."""
    found, wanted = (
        np.array([item["segment"] for item in items], float).reshape(-1, 2) for items in (detections, instances)
    )
    # [detections, instances]; reshaped below, since an empty list has no second dimension.
    same = np.array([[d["label"] == i["label"] for i in instances] for d in detections], bool)
    overlaps = tiou(found[:, None], wanted[None])
    return (same.reshape(overlaps.shape) & (overlaps >= threshold)).any(1)
