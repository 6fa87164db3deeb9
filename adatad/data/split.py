"""A split of videos into training and validation, such that both have each class as far as that can be."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

TRAINING, VALIDATION = "training", "validation"


def split(classes: Mapping[str, frozenset[str]], validation_share: float) -> dict[str, str]:
    """The subset of each video. classes: of each of two videos or more.

    Each class that two videos have gets into validation, the rarest first, and no class is taken from training for it;
    then validation is filled up to its share in the same way. Videos are tried in the order of their names' digests:
    the choice is always the same, and mostly stays when videos are added.
    """
    order = sorted(classes, key=lambda video: hashlib.sha256(video.encode()).digest())
    left = Counter(label for labels in classes.values() for label in labels)
    validation: set[str] = set()

    def can_go(video: str) -> bool:
        return video not in validation and all(left[label] > 1 for label in classes[video])

    def take(video: str) -> None:
        validation.add(video)
        left.subtract(classes[video])

    for label, count in sorted(left.items(), key=lambda item: (item[1], item[0])):
        if count > 1 and not any(label in classes[video] for video in validation):
            video = next((video for video in order if label in classes[video] and can_go(video)), None)
            if video is not None:
                take(video)
    wanted = min(max(1, round(validation_share * len(order))), len(order) - 1)
    for video in order:
        if len(validation) < wanted and can_go(video):
            take(video)
    if not validation:
        # Each video is the only one of some class: training lacks as few as can be.
        take(min(order, key=lambda video: sum(left[label] == 1 for label in classes[video])))
    return {video: VALIDATION if video in validation else TRAINING for video in classes}
