"""Labels from an external video-level classifier, for detectors that find segments without telling classes apart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adatad.data.annotation_file import read_text
from adatad.errors import UserError
from adatad.spec.schema import ClassifierSpec

THUMOS_CLASSES = {
    7: "BaseballPitch", 9: "BasketballDunk", 12: "Billiards", 21: "CleanAndJerk", 22: "CliffDiving",
    23: "CricketBowling", 24: "CricketShot", 26: "Diving", 31: "FrisbeeCatch", 33: "GolfSwing", 36: "HammerThrow",
    40: "HighJump", 45: "JavelinThrow", 51: "LongJump", 68: "PoleVault", 79: "Shotput", 85: "SoccerPenalty",
    92: "TennisSwing", 93: "ThrowDiscus", 97: "VolleyballSpiking",
}  # fmt: skip
"""THUMOS-14's 20 classes of detection by their numbers, counted from 1, among UCF-101's classes."""
UCF_CLASSES = 101

Labelled = tuple[np.ndarray, np.ndarray, list[str]]
"""segments in seconds [n, 2], scores [n], labels."""


class ClassifierError(UserError):
    """A classifier's file that can't be used, or a video that isn't in it; the message names both."""


class MissingVideoError(ClassifierError):
    """A video that the file doesn't have."""


@dataclass(frozen=True)
class Classifier:
    """What a classifier says of videos. scores: by video, or an array [videos, classes] for THUMOS-14's numbered ones;
    None for kind pseudo. Made by `read_classifier`."""

    spec: ClassifierSpec
    names: tuple[str, ...]
    scores: dict[str, Any] | np.ndarray | None

    def label(self, video: str, segments: np.ndarray, scores: np.ndarray) -> Labelled:
        """All segments of a video for each of its `topk` best classes, best class first.

        segments: [n, 2]; scores: [n]. Raises ClassifierError if the file doesn't have the video.
        """
        if self.scores is None:
            return segments, scores, [self.spec.pseudo_label] * len(scores)
        of_classes = self._class_scores(video)
        best = _descending(of_classes, self.spec.kind)[: self.spec.topk]
        products = scores[None] * of_classes[best, None]
        fused = np.sqrt(products) if self.spec.kind == "standard" else products
        labels = [self.names[number] for number in best for _ in range(len(scores))]
        return np.tile(segments, (len(best), 1)), fused.ravel(), labels

    def check(self, videos: Iterable[str]) -> None:
        """Raises ClassifierError, which lists all of `videos` that the file has no usable scores of."""
        if self.scores is None:
            return
        missing, other = [], []
        for video in videos:
            try:
                self._class_scores(video)
            except MissingVideoError:
                missing.append(video)
            except ClassifierError as error:
                other.append(str(error))
        if missing:
            other.append(
                f"{self.spec.file}: has no scores of {len(missing)} videos that are to be labelled: "
                f"{', '.join(missing)}; take the file that belongs to them, or name them in data.blocked_videos"
            )
        if other:
            raise ClassifierError("\n".join(other))

    def _class_scores(self, video: str) -> np.ndarray:
        """What a segment's score is multiplied by, for each class: float64 [classes]."""
        if self.spec.kind == "untrimmednet_thumos":
            return self._thumos_row(video)
        if video not in self.scores:
            there = f"it has {len(self.scores)} videos, such as {next(iter(self.scores), None)!r}"
            raise MissingVideoError(f"{self.spec.file}: has no scores of video {video!r}; {there}")
        try:
            scores = np.array(self.scores[video], np.float64)
        except (TypeError, ValueError) as error:
            raise ClassifierError(f"{self.spec.file}: video {video!r}: expected a list of numbers: {error}") from error
        if self.spec.kind == "tcanet_hacs" and scores.ndim == 2 and len(scores) == 1:
            scores = scores[0]
        if scores.shape != (len(self.names),) or not np.isfinite(scores).all():
            raise ClassifierError(
                f"{self.spec.file}: video {video!r}: expected {len(self.names)} finite scores, one a class, "
                f"got an array of shape {scores.shape}"
            )
        if self.spec.kind == "tcanet_hacs":
            return 2 * _softmax(scores)
        return _softmax(scores) if self.spec.apply_softmax else scores

    def _thumos_row(self, video: str) -> np.ndarray:
        """The row of a video that ends in its number, such as video_test_0000004."""
        number = video[-4:]
        if not (len(number) == 4 and number.isdecimal() and 1 <= int(number) <= len(self.scores)):
            raise MissingVideoError(
                f"{self.spec.file}: has no scores of video {video!r}: expected a name that ends in four digits, "
                f"from 0001 to {len(self.scores):04d}, which say its row"
            )
        return self.scores[int(number) - 1, [column - 1 for column in THUMOS_CLASSES]]


def read_classifier(spec: ClassifierSpec) -> Classifier:
    """The classifier of a spec, its file read. Raises ClassifierError."""
    match spec.kind:
        case "pseudo":
            return Classifier(spec, (), None)
        case "untrimmednet_thumos":
            return Classifier(spec, tuple(THUMOS_CLASSES.values()), _read_array(spec.file))
        case _:
            return Classifier(spec, *_read_json(spec.file))


def _read_json(path: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Class names, and scores by video."""
    try:
        content = json.loads(read_text(path))
    except (OSError, EOFError, ValueError) as error:
        raise ClassifierError(f"{path}: not a readable JSON file: {error}") from error
    form = f'{path}: expected {{"results": {{video: [scores]}}, "class": [names]}}'
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ClassifierError(form)
    names = content.get("class", content.get("classes"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ClassifierError(f"{form}; its class names are {names!r}")
    return tuple(names), content["results"]


def _read_array(path: str) -> np.ndarray:
    try:
        scores = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ClassifierError(f"{path}: not a readable .npy array: {error}") from error
    if scores.ndim != 2 or scores.shape[1] != UCF_CLASSES or scores.dtype.kind not in "fiu":
        raise ClassifierError(
            f"{path}: expected numbers [videos, {UCF_CLASSES}], got {scores.dtype} of shape {scores.shape}"
        )
    return scores.astype(np.float64)


def _descending(scores: np.ndarray, kind: str) -> np.ndarray:
    """Classes by descending score; of equal ones the first, for `standard` the last: as each reader of the reference
    does where its sort keeps an order."""
    return np.argsort(scores, kind="stable")[::-1] if kind == "standard" else np.argsort(-scores, kind="stable")


def _softmax(logits: np.ndarray) -> np.ndarray:
    # Less their maximum, which large logits need and which changes nothing else.
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
