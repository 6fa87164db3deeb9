"""How a detector's score depends on its instances: on their length, the share of the video that they cover, and how
many of their class the video has. DETAD's views of sensitivity and of false negatives (Alwassel et al., ECCV 2018).

Instances are divided into buckets XS to XL. Sensitivity is the normalized mAP of each bucket: precision is computed as
if every class had the mean number of instances, so that a small bucket isn't scored lower for its size. Detections of
other buckets' instances are left out, errors count in all buckets. A false negative is an instance that nobody finds
while normalized precision is above 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adatad.evaluation.bootstrap import Estimate, Figure, average_precision, mean, ratio, undefined
from adatad.evaluation.matches import ClassMatches

BUCKETS = ("XS", "S", "M", "L", "XL")
LENGTH_EDGES = ((30, 60, 120, 180), (3, 6, 12, 18))
"""Upper ends of XS to L in seconds: DETAD's of ActivityNet, and of THUMOS-14."""
COVERAGE_EDGES = ((0.2, 0.4, 0.6, 0.8), (0.02, 0.04, 0.06, 0.08))
COUNT_EDGES = ((1, 4, 8), (1, 40, 80))
MAX_IN_A_BUCKET = 0.9
"""Share of the instances in one bucket above which edges tell nothing; the data's own fifths are taken then."""
LEAST_PRECISION = 0.05
"""Normalized precision above which an instance must be found."""


class Characteristic(NamedTuple):
    """Property that instances are divided by. edges: upper ends of the buckets but the last; bucket: of each instance,
    by class, int64, -1 where the value isn't known."""

    name: str
    edges: tuple[float, ...]
    bucket: list[np.ndarray]


def characteristics(matches: Sequence[ClassMatches], durations: np.ndarray) -> list[Characteristic]:
    """Return the instances' buckets by length, coverage and number. durations: seconds of each video, float64 [videos],
    infinite where unknown; coverage needs them."""
    lengths = [own.segments[:, 1] - own.segments[:, 0] for own in matches]
    # An instance that passes its video's end covers it to the end.
    known = [np.where(np.isinf(durations), np.nan, durations)[own.instance_video] for own in matches]
    coverages = [np.minimum(length / duration, 1) for length, duration in zip(lengths, known, strict=True)]
    counts = [np.bincount(own.instance_video)[own.instance_video].astype(np.float64) for own in matches]
    return [
        _divided("length", lengths, LENGTH_EDGES),
        _divided("coverage", coverages, COVERAGE_EDGES),
        _divided("instances", counts, COUNT_EDGES),
    ]


def _divided(name: str, values: list[np.ndarray], published: Sequence[tuple[float, ...]]) -> Characteristic:
    """Divide by the published edges that spread the instances most; by fifths of the data where they tell nothing."""
    everything = np.concatenate(values)
    everything = everything[~np.isnan(everything)]

    def largest_share(edges: tuple[float, ...]) -> float:
        """Return the share of the instances that the fullest bucket holds."""
        return float(np.bincount(np.searchsorted(edges, everything)).max() / len(everything))

    edges = published[0]
    if len(everything):
        edges = min(published, key=largest_share)
        if largest_share(edges) > MAX_IN_A_BUCKET:
            fifths = np.quantile(everything, np.linspace(0, 1, len(edges) + 2)[1:-1], method="lower")
            edges = tuple(dict.fromkeys(float(f"{edge:.2g}") for edge in fifths))
    # searchsorted from the left: a value that equals an edge lies below it, as in DETAD.
    buckets = [np.where(np.isnan(value), -1, np.searchsorted(edges, value)) for value in values]
    return Characteristic(name, edges, buckets)


def describe(part: Characteristic) -> list[str]:
    """Return what each bucket holds, such as "3 to 6 s"."""
    unit, scale = {"length": (" s", 1), "coverage": (" %", 100), "instances": ("", 1)}[part.name]
    ends = [f"{edge * scale:g}{unit}" for edge in part.edges]
    if part.name == "instances":
        # Whole numbers: the next bucket begins one above.
        starts = [1, *(edge + 1 for edge in part.edges)]
        between = [
            end if f"{start:g}" == end else f"{start:g} to {end}" for start, end in zip(starts, ends, strict=False)
        ]
        return [*between, f"over {ends[-1]}"]
    between = [f"{low * scale:g} to {end}" for low, end in zip(part.edges, ends[1:], strict=False)]
    return [f"up to {ends[0]}", *between, f"over {ends[-1]}"]


def normalized_map(matches: Sequence[ClassMatches], videos: int) -> Estimate:
    """Return the normalized average mAP of all instances."""
    everything = [np.zeros(len(own.segments), np.int64) for own in matches]
    return sensitivity(matches, Characteristic("all", (), everything), videos)[0]


def sensitivity(matches: Sequence[ClassMatches], part: Characteristic, videos: int) -> list[Estimate]:
    """Return the normalized average mAP of each bucket; NaN for one without instances."""
    normal = sum(len(own.segments) for own in matches) / len(matches)
    count = len(part.edges) + 1
    by_bucket: list[list[Estimate]] = [[] for _ in range(count)]
    for own, bucket in zip(matches, part.bucket, strict=True):
        hit, owner = _owners(own, bucket, count)
        for number in range(count):
            instances = np.bincount(own.instance_video[bucket == number], minlength=videos).astype(np.float64)
            if instances.any():
                kept = (owner == -1) | (owner == number)
                at_tious = [
                    average_precision(row[kept] == number, own.found.video[kept], instances, normal) for row in hit
                ]
                by_bucket[number].append(mean(at_tious))
    return [mean(values) if values else undefined(videos) for values in by_bucket]


def _owners(own: ClassMatches, bucket: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bucket of the instance that each detection finds, int64 [tIoU, detections], -1 for none; and the
    bucket that a detection counts in, int64 [detections]: -1 for all, -2 for none."""
    # One place more, for detections without an instance (-1).
    hit, taken = np.append(bucket, -1)[own.instance], own.instance >= 0
    lowest = np.where(taken, hit, count).min(0, initial=count)
    highest = np.where(taken, hit, -1).max(0, initial=-1)
    # A detection that finds instances of two buckets, at two tIoUs, counts in neither.
    owner = np.where((lowest == highest) & (lowest >= 0), lowest, -2)
    return hit, np.where(taken.any(0), owner, -1)


def missed_shares(matches: Sequence[ClassMatches], part: Characteristic, videos: int) -> list[Estimate]:
    """Return the share of each bucket's instances that are false negatives, mean over tIoUs; NaN for an empty one."""
    normal = sum(len(own.segments) for own in matches) / len(matches)
    buckets = len(part.edges) + 1
    missed, present = np.zeros((buckets, videos)), np.zeros((buckets, videos))
    for own, bucket in zip(matches, part.bucket, strict=True):
        found = found_shares(own, normal)
        for number in range(buckets):
            inside = bucket == number
            np.add.at(missed[number], own.instance_video[inside], 1 - found[inside])
            np.add.at(present[number], own.instance_video[inside], 1)
    return [ratio(*pair) for pair in zip(missed, present, strict=True)]


def found_shares(own: ClassMatches, normal: float) -> np.ndarray:
    """Return the share of the tIoUs at which each instance is found while normalized precision is above 0.05: float64
    [instances]."""
    true = np.cumsum(own.instance >= 0, axis=1)
    false = np.arange(1, true.shape[1] + 1) - true
    right = true / len(own.segments) * normal
    good = right > LEAST_PRECISION * (right + false)
    # One place more for instances that nobody takes.
    return np.take_along_axis(np.pad(good, ((0, 0), (0, 1))), own.taker, axis=1).mean(0)


def buckets_as_json(part: Characteristic, scores: Sequence[Figure], missed: Sequence[Figure]) -> list[dict[str, Any]]:
    """Return a row for each bucket: its name, what it holds, its instances, score and share of missed instances."""
    counts = np.bincount(np.concatenate(part.bucket) + 1, minlength=len(part.edges) + 2)[1:]
    return [
        {
            "bucket": BUCKETS[number],
            "holds": text,
            "instances": int(counts[number]),
            "normalized_mAP": scores[number].as_json(),
            "missed": missed[number].as_json(),
        }
        for number, text in enumerate(describe(part))
    ]
