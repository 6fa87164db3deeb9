"""Which of several detections of the same videos is better: differences of mAP with a paired bootstrap over videos.

Every draw of videos is scored for both sides. So a video that is hard for both moves neither, and the interval of the
difference is narrower than those of the two figures. As in `bootstrap`, draws are computed from each video's influence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from adatad.errors import UserError
from adatad.evaluation.bootstrap import DRAWS, Draws, Estimate, Figure, mean
from adatad.evaluation.detection_map import Subset, subset_names
from adatad.evaluation.errors import class_precision
from adatad.evaluation.matches import content_of, match_classes
from adatad.files import listed

FEW_VIDEOS = 10
"""Videos below which an interval is too narrow to be believed."""


class Scores(NamedTuple):
    """Figures of one detections file, on videos in a common order. per_class: AP by label, mean over tIoUs."""

    average: Estimate
    per_tiou: list[Estimate]
    per_class: dict[str, Estimate]

    def minus(self, other: Scores) -> Scores:
        """Return the differences, on the same videos and classes."""
        return Scores(
            self.average.minus(other.average),
            [mine.minus(theirs) for mine, theirs in zip(self.per_tiou, other.per_tiou, strict=True)],
            {label: mine.minus(other.per_class[label]) for label, mine in self.per_class.items()},
        )


def compare_detections(
    ground_truth: dict[str, Any],
    files: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    names: Sequence[str],
    subset: Subset,
    tious: Sequence[float],
    blocked_videos: Collection[str] = (),
    keep_ambiguous: bool = False,
    number_of_draws: int = DRAWS,
) -> dict[str, Any]:
    """Compare the scores of detections with those of the first, as an object ready for JSON.

    files: (ground truth, detections) of each, contents of files; the ground truths are alike. names: of the files, for
    messages. Figures have the form {"value", "low", "high"}, in 0..1; those of differences also "better", the share of
    the draws in which the file is better than the first. Raises UserError if nothing is annotated, or if the files
    don't have the same videos of the subset.
    """
    wanted = [
        video
        for video, entry in ground_truth["database"].items()
        if entry.get("subset") in subset_names(subset) and video not in blocked_videos
    ]
    _check_videos(wanted, [found["results"] for _, found in files], names)
    # The order must not depend on that of the files: it decides which videos a draw has.
    others = {video for _, found in files for video in found["results"]} - set(wanted) - set(blocked_videos)
    videos = [*wanted, *sorted(others)]
    scores = [_scores(truth, found, videos, subset, tious, blocked_videos, keep_ambiguous) for truth, found in files]
    if not scores[0].per_class:
        raise UserError(f"subset {subset!r} has no annotated instance that counts: there is no score to compare")
    draws = Draws(len(videos), number_of_draws)
    notes = []
    if len(videos) < FEW_VIDEOS:
        notes.append(f"{len(videos)} videos are few: intervals over so few are narrower than the truth")
    for (_, found), name in zip(files, names, strict=True):
        outside = sum(bool(found["results"].get(video)) for video in others)
        if outside:
            notes.append(f"{name}: detections in {outside} videos outside the subset count as wrong")
    return {
        "tious": [float(tiou) for tiou in tious],
        "videos": len(wanted),
        "classes": len(scores[0].per_class),
        "draws": number_of_draws,
        "notes": notes,
        "scores": [_as_json(own, tious, draws, differences=False) for own in scores],
        "differences": [_as_json(own.minus(scores[0]), tious, draws, differences=True) for own in scores[1:]],
    }


def verdict(difference: dict[str, float]) -> str:
    """Return "better", "worse" or "open": what a difference with its interval says. Open: the interval holds 0."""
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "open"


def _check_videos(wanted: Sequence[str], results: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Raise UserError if one file lacks videos of the subset that another one has."""
    there = [{video for video in wanted if video in own} for own in results]
    everywhere = set().union(*there)
    for own, name in zip(there, names, strict=True):
        if not own:
            raise UserError(f"{name}: has none of the {len(wanted)} videos that are scored ({listed(wanted, 3)})")
        missing = [video for video in wanted if video in everywhere - own]
        if missing:
            raise UserError(
                f"{name}: has no entry for {len(missing)} of {len(wanted)} videos that another one has "
                f"({listed(missing, 3)}); compare detections of the same videos, with [] where nothing is found"
            )


def _scores(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    videos: Sequence[str],
    subset: Subset,
    tious: Sequence[float],
    blocked_videos: Collection[str],
    keep_ambiguous: bool,
) -> Scores:
    """Return the figures of one file, with influences in the order of `videos`."""
    content = content_of(ground_truth, detections, subset, blocked_videos, keep_ambiguous)
    # Matching numbers videos in the order of its file, which decides between equal scores: renumbered afterwards.
    place = {video: number for number, video in enumerate(videos)}
    order = np.array([place[video] for video in content.videos], np.int64)

    def placed(estimate: Estimate) -> Estimate:
        """Return the estimate with its influences in the common order."""
        influence = np.zeros(len(videos))
        influence[order] = estimate.influence
        return Estimate(estimate.value, influence)

    by_class = {
        own.label: [placed(one) for one in class_precision(own, len(content.videos))]
        for own in match_classes(content, tious)
    }
    per_class = {label: mean(values) for label, values in by_class.items()}
    per_tiou = [mean(values[number] for values in by_class.values()) for number in range(len(tious))]
    return Scores(mean(per_class.values()), per_tiou, per_class)


def _as_json(scores: Scores, tious: Sequence[float], draws: Draws, differences: bool) -> dict[str, Any]:
    """Return figures with their intervals; of differences also how sure each is."""
    estimates = [scores.average, *scores.per_tiou, *scores.per_class.values()]
    figures = draws.figures(estimates, *((-1, 1) if differences else (0, 1)))
    shares = draws.shares_above_zero(estimates) if differences else [None] * len(estimates)
    average, *rest = (_figure(figure, share) for figure, share in zip(figures, shares, strict=True))
    return {
        "average_mAP": average,
        "mAP": {f"{tiou:g}": one for tiou, one in zip(tious, rest, strict=False)},
        "ap_per_class": dict(zip(scores.per_class, rest[len(tious) :], strict=True)),
    }


def _figure(figure: Figure, share: float | None) -> dict[str, float | None]:
    return figure.as_json() if share is None else {**figure.as_json(), "better": round(share, 4)}
