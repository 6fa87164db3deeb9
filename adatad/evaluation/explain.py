"""The account of where the average mAP of detections goes: all views in one object, ready for JSON.

Figures have the form {"value", "low", "high"}: the value, and the interval of 95 % of the draws of a bootstrap over
videos. All but seconds and counts lie in 0..1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from adatad.errors import UserError
from adatad.evaluation.bootstrap import DRAWS, Draws, Figure
from adatad.evaluation.bouts import bouts
from adatad.evaluation.detection_map import Subset
from adatad.evaluation.distributions import calibration, duration_histogram
from adatad.evaluation.errors import confused_pairs, confusion, costs, error_kinds, error_profile
from adatad.evaluation.matches import ClassMatches, Content, content_of, match_classes, nearest_instances
from adatad.evaluation.score_warnings import duration_seconds, score_warnings
from adatad.evaluation.sensitivity import buckets_as_json, characteristics, missed_shares, normalized_map, sensitivity
from adatad.evaluation.sentences import sentences
from adatad.evaluation.thresholds import TIOU, Curves, best_thresholds, score_curve
from adatad.evaluation.would_fit import would_fit

MAX_PAIRS = 50
"""Pairs of confused classes that are listed."""
FEW_VIDEOS = 10
"""Videos below which an interval is too narrow to be believed."""


def explain(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    tious: Sequence[float],
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
    right_tiou: float = TIOU,
    number_of_draws: int = DRAWS,
) -> dict[str, Any]:
    """Explain the score of a detections file's content against an annotation file's; arguments as in `evaluate`.

    right_tiou: tIoU at which thresholds, bouts and calibration are computed; number_of_draws: of the bootstrap. Raises
    UserError if nothing is annotated.
    """
    content = content_of(ground_truth, detections, subset, blocked_videos, keep_ambiguous)
    if not content.instances:
        raise UserError(f"subset {subset!r} has no annotated instance that counts: there is no score to explain")
    videos = len(content.videos)
    draws = Draws(videos, number_of_draws)
    durations = np.array([duration_seconds(ground_truth["database"].get(video, {})) for video in content.videos])
    matches = match_classes(content, tious)
    nearest = nearest_instances(matches, videos)
    kinds = [
        error_kinds(own, near, label, tious) for label, (own, near) in enumerate(zip(matches, nearest, strict=True))
    ]
    score = costs(matches, kinds, videos)
    confused, right = confusion(matches, nearest), match_classes(content, (right_tiou,))
    labels = list(content.instances)
    ap = dict(zip(score.ap, draws.figures(list(score.ap.values()), 0, 1), strict=True))
    found = {
        "average_mAP": draws.figure(score.average_map, 0, 1).as_json(),
        "tious": [float(tiou) for tiou in tious],
        "videos": videos,
        "instances": sum(len(own.segments) for own in matches),
        "detections": sum(len(own.found.scores) for own in matches),
        "draws": number_of_draws,
        "notes": [
            *_notes(content),
            *score_warnings(ground_truth, detections, subset, blocked_videos, keep_ambiguous),
        ],
        "would_fit": [fit.as_json() for fit in would_fit(content, matches, confused, tious, draws, score.average_map)],
        "costs": {name: draws.figure(gain).as_json() for name, gain in score.gains.items()},
        "profile": [
            {name: draws.figure(share, 0, 1).as_json() for name, share in part.items()}
            for part in error_profile(matches, kinds, videos)
        ],
        "confusion": confused_pairs(confused, labels)[:MAX_PAIRS],
        "sensitivity": _sensitivity(matches, durations, draws),
        "right_tiou": right_tiou,
        "classes": _classes(content, right, right_tiou, ap, draws),
        "calibration": calibration(right, 0, videos, draws),
        "durations": duration_histogram(matches),
    }
    return {"sentences": sentences(found), **found}


def _notes(content: Content) -> list[str]:
    """Return what limits the figures."""
    notes = []
    if len(content.videos) < FEW_VIDEOS:
        notes.append(f"{len(content.videos)} videos are few: intervals over so few are narrower than the truth")
    empty = [label for label, table in content.tables.items() if not len(table)]
    if empty and len(empty) < len(content.tables):
        notes.append(f"{len(empty)} of {len(content.tables)} classes have no detection at all")
    return notes


def _sensitivity(matches: Sequence[ClassMatches], durations: np.ndarray, draws: Draws) -> dict[str, Any]:
    """Return the normalized average mAP, and rows of buckets by characteristic."""
    videos, rows = len(durations), {}
    for part in characteristics(matches, durations):
        scores = draws.figures(sensitivity(matches, part, videos), 0, 1)
        rows[part.name] = buckets_as_json(part, scores, draws.figures(missed_shares(matches, part, videos), 0, 1))
    return {"normalized_mAP": draws.figure(normalized_map(matches, videos), 0, 1).as_json(), **rows}


def _classes(
    content: Content, right: Sequence[ClassMatches], tiou: float, ap: dict[str, Figure], draws: Draws
) -> dict[str, Any]:
    """Return AP, the threshold of the best F1 and what it keeps, by class. right: matches at `tiou`."""
    hits = [own.instance[0] >= 0 for own in right]
    by_class = {
        own.label: score_curve(own.found.scores, hit, len(own.segments)) for own, hit in zip(right, hits, strict=True)
    }
    scores = np.concatenate([own.found.scores for own in right])
    overall = score_curve(scores, np.concatenate(hits), sum(len(own.segments) for own in right))
    best = best_thresholds(Curves(tiou, overall, by_class), list(by_class))
    rows = {own.label: {"instances": len(own.segments), "ap": ap[own.label].as_json()} for own in right}
    # Where no detection of any class is right, no threshold is better than another.
    if best is None:
        return rows
    sums = [bouts(content, label, best.by_class[label].threshold) for label in rows]
    # Drawn for all classes at once, which is faster.
    ratios = [draws.figures([pair[place].ratio for pair in sums], least=0) for place in (0, 1)]
    for number, (label, row) in enumerate(rows.items()):
        chosen = best.by_class[label]
        row |= {
            "threshold": chosen.threshold,
            "threshold_from": "all classes" if label in best.from_overall else "class",
            "precision": chosen.precision,
            "recall": chosen.recall,
            "f1": chosen.f1,
            "bouts": sums[number][0].as_json(ratios[0][number]),
            "seconds": sums[number][1].as_json(ratios[1][number]),
        }
    return rows
