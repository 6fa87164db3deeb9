"""Labels from an external video-level classifier, for detectors that find segments without telling classes apart."""

from __future__ import annotations

import io
import math
import reprlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adatad.errors import UserError
from adatad.files import FileError, read_bytes, read_json, reason
from adatad.spec.schema import ClassifierSpec

THUMOS_CLASSES = {
    7: "BaseballPitch", 9: "BasketballDunk", 12: "Billiards", 21: "CleanAndJerk", 22: "CliffDiving",
    23: "CricketBowling", 24: "CricketShot", 26: "Diving", 31: "FrisbeeCatch", 33: "GolfSwing", 36: "HammerThrow",
    40: "HighJump", 45: "JavelinThrow", 51: "LongJump", 68: "PoleVault", 79: "Shotput", 85: "SoccerPenalty",
    92: "TennisSwing", 93: "ThrowDiscus", 97: "VolleyballSpiking",
}  # fmt: skip
"""Numbers, counted from 1 among UCF-101's classes, of THUMOS-14's 20 detection classes."""
UCF_CLASSES = 101
MAX_SCORE = 1e12
"""Largest magnitude of a classifier's score that is accepted."""
ARRAY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Labelled = tuple[np.ndarray, np.ndarray, list[str]]
"""Segments in seconds [n, 2], scores [n] and labels."""


class ClassifierError(UserError):
    """Raised for an unusable classifier file or a video that it lacks; the message names both."""


class MissingVideoError(ClassifierError):
    """Raised for a video that the classifier's file lacks."""


@dataclass(frozen=True)
class Classifier:
    """Video-level class scores out of a classifier's file; made by `read_classifier`.

    scores: by video, or an array [videos, classes] for THUMOS-14's numbered videos; None for kind `pseudo`.
    """

    spec: ClassifierSpec
    names: tuple[str, ...]
    scores: dict[str, Any] | np.ndarray | None

    def label(self, video: str, segments: np.ndarray, scores: np.ndarray) -> Labelled:
        """Return every segment of a video once for each of its `topk` best classes, best class first.

        segments: [n, 2]; scores: [n]. Raises ClassifierError if the file lacks the video.
        """
        if self.scores is None:
            return segments, scores, [self.spec.pseudo_label] * len(scores)
        # All segments for the best class, then all for the next: the order decides between equal scores in NMS.
        of_classes = self._class_scores(video)
        best = _descending(of_classes, self.spec.kind)[: self.spec.topk]
        # "standard" takes the geometric mean of both scores; the other kinds multiply them, as their papers do.
        products = scores[None] * of_classes[best, None]
        fused = np.sqrt(products) if self.spec.kind == "standard" else products
        labels = [self.names[number] for number in best for _ in range(len(scores))]
        return np.tile(segments, (len(best), 1)), fused.ravel(), labels

    def check(self, videos: Iterable[str]) -> None:
        """Raise ClassifierError, listing all of `videos` for which the file has no usable scores."""
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
        """Return the factor for a segment's score, for each class: float64 [classes]."""
        if self.spec.kind == "untrimmednet_thumos":
            return self._thumos_row(video)
        if video not in self.scores:
            there = f"it has {len(self.scores)} videos, such as {next(iter(self.scores), None)!r}"
            raise MissingVideoError(f"{self.spec.file}: has no scores of video {video!r}; {there}")
        try:
            scores = np.array(self.scores[video], np.float64)
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ClassifierError(f"{self.spec.file}: video {video!r}: expected a list of numbers: {error}") from error
        # TCANet's file for HACS has one row of scores a video, others a plain list.
        if self.spec.kind == "tcanet_hacs" and scores.ndim == 2 and len(scores) == 1:
            scores = scores[0]
        if scores.shape != (len(self.names),) or not (np.abs(scores) <= MAX_SCORE).all():
            raise ClassifierError(
                f"{self.spec.file}: video {video!r}: expected {len(self.names)} finite scores, one a class, "
                f"got an array of shape {scores.shape}"
            )
        if self.spec.kind == "standard" and not self.spec.apply_softmax and (scores < 0).any():
            # The fused score is a square root, which negative numbers don't have.
            raise ClassifierError(
                f"{self.spec.file}: video {video!r}: has scores below 0; expected probabilities, or logits with "
                "postprocess.classifier.apply_softmax"
            )
        if self.spec.kind == "tcanet_hacs":
            # The factor 2 is the reference's.
            return 2 * _softmax(scores)
        return _softmax(scores) if self.spec.apply_softmax else scores

    def _thumos_row(self, video: str) -> np.ndarray:
        """Return the scores of a video by the number that ends its name, such as video_test_0000004."""
        # Rows are those of the test videos, counted from 1; UntrimmedNet knows no names.
        number = video[-4:]
        if not (len(number) == 4 and number.isdecimal() and 1 <= int(number) <= len(self.scores)):
            raise MissingVideoError(
                f"{self.spec.file}: has no scores of video {video!r}: expected a name that ends in four digits, "
                f"from 0001 to {len(self.scores):04d}, which say its row"
            )
        scores = self.scores[int(number) - 1, [column - 1 for column in THUMOS_CLASSES]]
        if not (np.abs(scores) <= MAX_SCORE).all():
            raise ClassifierError(f"{self.spec.file}: row {int(number)}, of video {video!r}: expected finite scores")
        return scores


def read_classifier(spec: ClassifierSpec) -> Classifier:
    """Read the classifier file of a spec. Raises ClassifierError."""
    match spec.kind:
        case "pseudo":
            return Classifier(spec, (), None)
        case "untrimmednet_thumos":
            return Classifier(spec, tuple(THUMOS_CLASSES.values()), _read_array(spec.file))
        case _:
            return Classifier(spec, *_read_json(spec.file))


def _read_json(path: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the class names and the scores by video."""
    try:
        content = read_json(path)
    except FileError as error:
        raise ClassifierError(str(error)) from error
    form = f'{path}: expected {{"results": {{video: [scores]}}, "class": [names]}}'
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ClassifierError(form)
    names = content.get("class", content.get("classes"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ClassifierError(f"{form}; its class names are {reprlib.repr(names)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ClassifierError(f"{path}: class {twice[0]!r} appears twice among its class names")
    return tuple(names), content["results"]


def _read_array(path: str) -> np.ndarray:
    """Read a .npy file: float64 [videos, 101].

    The header is trusted only as far as the file is long, so that no memory is allocated for what it claims, and no
    pickle is read.
    """
    try:
        content = read_bytes(path)
    except FileError as error:
        raise ClassifierError(str(error)) from error
    file = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = ARRAY_HEADERS[np.lib.format.read_magic(file)](file)
        numbers, start = math.prod(shape), file.tell()
    except Exception as error:
        # numpy raises whatever its parser of Python text does: SyntaxError, TokenError, MemoryError and more.
        raise ClassifierError(f"{path}: not a readable .npy array: {reason(error)}") from error
    if len(shape) != 2 or shape[0] < 1 or shape[1] != UCF_CLASSES or dtype.kind not in "fiu":
        raise ClassifierError(f"{path}: expected numbers [videos, {UCF_CLASSES}], got {dtype} of shape {shape}")
    # Before anything of that size is allocated.
    if numbers * dtype.itemsize > len(content) - start:
        raise ClassifierError(
            f"{path}: not a readable .npy array: its header says {dtype} of shape {shape}, "
            f"but {len(content) - start:,} bytes follow; fetch it again"
        )
    scores = np.frombuffer(content, dtype, numbers, start).reshape(shape, order="F" if is_fortran else "C")
    # A value that overflows to infinity is refused later, where its video is known.
    with np.errstate(all="ignore"):
        return scores.astype(np.float64)


def _descending(scores: np.ndarray, kind: str) -> np.ndarray:
    """Return class numbers by descending score.

    Of equal scores the first class comes first, for `standard` the last, as in the reference's readers.
    """
    return np.argsort(scores, kind="stable")[::-1] if kind == "standard" else np.argsort(-scores, kind="stable")


def _softmax(logits: np.ndarray) -> np.ndarray:
    # Without its maximum exp() overflows for large logits; subtracting it changes nothing else.
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
