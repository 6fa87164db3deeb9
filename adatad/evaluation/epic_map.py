"""mAP on EPIC-Kitchens' files, whose labels are verb and noun numbers: by verb, by noun or by action, their pair.

Annotations carry "verb_label" and "noun_label" ("id_12"), detections "verb" and "noun" (numbers) and "action"
("verb,noun").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from adatad.evaluation.detection_map import (
    MapResult,
    Subset,
    group_by_class,
    score_classes,
    subset_names,
    videos_outside,
)

Task = Literal["verb", "noun", "action"]
NOUNS = 300
"""Nouns of EPIC-Kitchens-100."""


def evaluate_epic(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    tious: Sequence[float],
    task: Task,
    nouns: int = NOUNS,
    blocked_videos: Collection[str] = (),
    misplace_classes: bool = False,
) -> MapResult:
    """Score the content of a detections file; classes are in ascending order, named as in the detections.

    Unlike the plain evaluation, duplicates among the annotations stay. nouns: number of noun classes. misplace_classes:
    take a number that isn't annotated in the subset for the class at that position of the sorted list of annotated
    ones, as the reference does; otherwise such detections are ignored.
    """
    instances = _instances(ground_truth, subset, task, nouns, blocked_videos)
    # Positions in this list are what the reference mistakes class numbers for (`misplace_classes`).
    ids = sorted(instances)

    def class_of(item: dict[str, Any]) -> int:
        """Return the class number by which a detection is scored."""
        number = _detected(item, task, nouns)
        misplaced = misplace_classes and number not in instances and 0 <= number < len(ids)
        return ids[number] if misplaced else number

    found = group_by_class(detections, ids, blocked_videos, class_of)
    # From here on classes have names, as in the detections file.
    named = {_name(number, task, nouns): number for number in ids}
    return score_classes(
        {name: instances[number] for name, number in named.items()},
        replace(found, rows={name: found.rows[number] for name, number in named.items()}),
        tious,
        other_videos=videos_outside(ground_truth, detections, subset, blocked_videos),
    )


def _instances(
    ground_truth: dict[str, Any], subset: Subset, task: Task, nouns: int, blocked_videos: Collection[str]
) -> dict[int, dict[str, np.ndarray]]:
    """Return annotated segments by class number and video."""
    # Lists, not the sets of `ground_truth_segments`: EPIC's own evaluation keeps duplicates.
    names = subset_names(subset)
    found: dict[int, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for video, entry in ground_truth["database"].items():
        if entry.get("subset") in names and video not in blocked_videos:
            for item in entry.get("annotations", ()):
                found[_annotated(item, task, nouns)][video].append(tuple(item["segment"]))
    return {number: {video: np.array(s, np.float64) for video, s in videos.items()} for number, videos in found.items()}


def annotated_name(task: Task, item: dict[str, Any], nouns: int = NOUNS) -> str | None:
    """Return the class name of an annotation, as in `MapResult.ap_per_class`; None if it has none."""
    try:
        return _name(_annotated(item, task, nouns), task, nouns)
    except (AttributeError, KeyError, TypeError, ValueError):
        # Of a subset that isn't scored, and was never looked at.
        return None


def detected_name(task: Task, item: dict[str, Any], nouns: int = NOUNS) -> str:
    """Return the class name of a detection."""
    return _name(_detected(item, task, nouns), task, nouns)


def _annotated(item: dict[str, Any], task: Task, nouns: int) -> int:
    """Number of the class of an annotation."""
    # One number for a pair: sorting by it is sorting by verb, then by noun.
    if task == "action":
        return nouns * _annotated(item, "verb", nouns) + _annotated(item, "noun", nouns)
    return int(item[f"{task}_label"].removeprefix("id_"))


def _detected(item: dict[str, Any], task: Task, nouns: int) -> int:
    """Number of the class of a detection."""
    if task == "action":
        verb, noun = item["action"].split(",")
        return nouns * int(verb) + int(noun)
    return int(item[task])


def _name(number: int, task: Task, nouns: int) -> str:
    return f"{number // nouns},{number % nouns}" if task == "action" else str(number)
