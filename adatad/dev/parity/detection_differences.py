"""Detections compared: paired by label, the nearest of equal ones, since the order of equal scores is nobody's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from adatad.dev.parity.comparison import largest

Detection = dict[str, Any]


def largest_differences(ours: dict[str, list[Detection]], expected: dict[str, list[Detection]]) -> tuple[float, float]:
    """Of seconds and of scores over all videos; infinite where a video's labels differ, or videos do."""
    seconds, scores = [], []
    if ours.keys() != expected.keys():
        return float("inf"), float("inf")
    for video, wanted in expected.items():
        got = ours[video]
        if sorted(item["label"] for item in got) != sorted(item["label"] for item in wanted):
            return float("inf"), float("inf")
        for one, other in pair_up(got, wanted):
            seconds += [abs(a - b) for a, b in zip(one["segment"], other["segment"], strict=True)]
            scores.append(abs(one["score"] - other["score"]))
    return largest(seconds), largest(scores)


def pair_up(ours: list[Detection], expected: list[Detection]) -> Iterator[tuple[Detection, Detection]]:
    """Each expected detection with the nearest of ours of the same label that is still free."""
    free = list(ours)
    for other in expected:
        same = [item for item in free if item["label"] == other["label"]]
        nearest = min(same, key=partial(_distance, other))
        free.remove(nearest)
        yield nearest, other


def _distance(one: Detection, other: Detection) -> float:
    ends = sum(abs(a - b) for a, b in zip(one["segment"], other["segment"], strict=True))
    return ends + abs(one["score"] - other["score"])
