"""Annotation files in the ActivityNet / OpenTAD form: videos, their segments in seconds, and what was left out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from adatad.data.annotation_file import AMBIGUOUS, AnnotationError, load_database, read_names
from adatad.data.classes import ClassList, read_classes
from adatad.spec.schema import DataSpec

SHORTEST_SHARE = 0.01
"""Of its video that an instance must be longer than, where videos are resized to be windows."""
PAST_END_SECONDS = 0.01
"""After its video's end that a segment must end to be counted: durations are given to hundredths of a second."""
EVALUATED = "evaluated"
"""Subset of all videos that `ground_truth` gives."""


@dataclass(frozen=True)
class Video:
    """One annotated video. segments_seconds: float64 [n, 2]; segments_frames: the same in whole frames, cut towards
    zero as the reference does; labels: int64 [n], numbers in the class list. fps and frames are 0 where the file gives
    neither and windows are whole videos, which need none."""

    name: str
    duration_seconds: float
    fps: float
    frames: int
    segments_seconds: np.ndarray
    segments_frames: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Account:
    """What was read of a subset and what was left out. dropped: by reason, instances by video; past_end: kept instances
    that end after their video, by video; without_instances: names of videos that have none left."""

    subset: str | tuple[str, ...]
    videos: int = 0
    instances: int = 0
    blocked: list[str] = field(default_factory=list)
    without_instances: list[str] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    past_end: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """One line for a log: what was kept, and what was left out for which reason."""
        parts = [f"{', '.join(names_of(self.subset))}: {self.videos} videos, {self.instances} instances"]
        parts += [f"{by_video.total()} {reason} dropped" for reason, by_video in self.dropped.items()]
        for count, what in (
            (len(self.blocked), "videos blocked"),
            (len(self.without_instances), "videos without instances"),
            (self.past_end.total(), "instances end after their video"),
        ):
            parts += [f"{count} {what}"] if count else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says of the subsets that a spec names."""

    classes: tuple[str, ...]
    train: tuple[Video, ...]
    validation: tuple[Video, ...]
    train_account: Account
    validation_account: Account

    def in_order(self, classes: tuple[str, ...]) -> Annotations:
        """The same with the classes, which are these in another order, numbered in this one."""
        if classes == self.classes:
            return self
        numbers = np.array([classes.index(name) for name in self.classes], np.int64)
        train, validation = (
            tuple(replace(video, labels=numbers[video.labels]) for video in videos)
            for videos in (self.train, self.validation)
        )
        return replace(self, classes=classes, train=train, validation=validation)


def read_annotations(
    spec: DataSpec, reference: bool = False, class_agnostic: bool = False, training: bool = True
) -> Annotations:
    """Read the annotation file of a spec; see `annotations_of`. Raises AnnotationError."""
    return annotations_of(load_database(spec.annotations), spec, reference, class_agnostic, training)


def annotations_of(
    database: dict[str, dict[str, Any]],
    spec: DataSpec,
    reference: bool = False,
    class_agnostic: bool = False,
    training: bool = True,
) -> Annotations:
    """Both subsets of a database, in its order; training=False: the validation videos alone, for a test.

    Copies, empty and "Ambiguous" segments are left out and counted, and training videos without a segment. Equal
    segments with two labels stay, and so do segments that end after their video: what cuts windows cuts them.
    class_agnostic: training labels are all 0. reference: the reference's quirks; a subset is taken if its name lies
    within the wanted one, empty segments stay unless `filter_short`, frames are cut without regard to rounding.
    """
    classes = read_classes(spec, database, reference)
    blocked = read_names(spec.blocked_videos)
    rules = [_Rules(spec, classes, reference, training, class_agnostic and training) for training in (True, False)]
    nothing: tuple[tuple[Video, ...], Account] = ((), Account(spec.train_subset))
    train, train_account = _read_subset(database, blocked, rules[0]) if training else nothing
    validation, validation_account = _read_subset(database, blocked, rules[1])
    return Annotations(classes.names, train, validation, train_account, validation_account)


def names_of(subset: str | tuple[str, ...]) -> tuple[str, ...]:
    """Subset names of a spec as a tuple."""
    return (subset,) if isinstance(subset, str) else subset


def in_subset(entry: dict[str, Any], wanted: str | tuple[str, ...], reference: bool = False) -> bool:
    """Whether a video belongs to the wanted subset or to one of several."""
    subset = entry.get("subset")
    if reference and isinstance(wanted, str):
        return isinstance(subset, str) and subset in wanted
    return subset in names_of(wanted)


def ground_truth(spec: DataSpec, reference: bool = False) -> dict[str, Any]:
    """The annotations that detections are scored against, as the content of an annotation file: the validation videos
    that aren't blocked, in a subset named `EVALUATED`, with class names as labels and all other keys as they are.

    All instances with finite ends are in it: what else doesn't count is the evaluation's to leave out. "Ambiguous" is
    if it is a class, or with `reference`. Subsets are compared for equality, by the reference too.
    """
    database = load_database(spec.annotations)
    classes, blocked = read_classes(spec, database, reference), read_names(spec.blocked_videos)
    rules = _Rules(spec, classes, reference=False, training=False, class_agnostic=False)
    videos = {}
    for name, entry in database.items():
        if in_subset(entry, spec.validation_subset) and name not in blocked:
            items = _items(spec, name, entry)
            instances = (_read_instance(rules, name, item) for item in items)
            videos[name] = {
                "subset": EVALUATED,
                "annotations": [
                    {**item, "segment": [start, end], "label": AMBIGUOUS if number is None else classes.names[number]}
                    for item, (start, end, number) in zip(items, instances, strict=True)
                    if math.isfinite(start) and math.isfinite(end) and (number is not None or reference)
                ],
            }
    return {"database": videos}


@dataclass(frozen=True)
class _Rules:
    """How the videos of one subset are read."""

    spec: DataSpec
    classes: ClassList
    reference: bool
    training: bool
    class_agnostic: bool

    @property
    def subset(self) -> str | tuple[str, ...]:
        return self.spec.train_subset if self.training else self.spec.validation_subset

    @property
    def whole_videos(self) -> bool:
        return self.spec.window.kind == "resize"

    @property
    def filter_short(self) -> bool:
        wanted = self.spec.filter_short
        return self.training and (wanted if wanted is not None else self.whole_videos or not self.reference)


def _read_subset(
    database: dict[str, dict[str, Any]], blocked: frozenset[str], rules: _Rules
) -> tuple[tuple[Video, ...], Account]:
    spec = rules.spec
    entries = {name: entry for name, entry in database.items() if in_subset(entry, rules.subset, rules.reference)}
    if not entries:
        there = ", ".join(sorted({str(entry.get("subset")) for entry in database.values()}))
        key = "data.train_subset" if rules.training else "data.validation_subset"
        wanted = " or ".join(map(repr, names_of(rules.subset)))
        raise AnnotationError(f"{spec.annotations}: no video of subset {wanted}; the file has {there}; set {key}")
    videos, without, dropped, past_end = [], [], {}, Counter()
    for name, entry in entries.items():
        if name in blocked:
            continue
        video = _read_video(rules, name, entry, dropped)
        if not len(video.labels):
            without.append(name)
        if len(video.labels) or not rules.training:
            videos.append(video)
        late = video.segments_seconds[:, 1] > video.duration_seconds + PAST_END_SECONDS
        past_end.update({name: int(late.sum())} if late.any() else {})
    instances = sum(len(video.labels) for video in videos)
    left_out = [name for name in entries if name in blocked]
    account = Account(rules.subset, len(videos), instances, left_out, without, dropped, past_end)
    return tuple(videos), account


def _read_video(rules: _Rules, name: str, entry: dict[str, Any], dropped: dict[str, Counter[str]]) -> Video:
    """One video with the instances that are kept; the others are counted in `dropped`."""
    length = _read_length(rules, name, entry)
    kept: dict[tuple[float, float, int], tuple[float, float, float, float]] = {}
    for item in _items(rules.spec, name, entry):
        start, end, number = _read_instance(rules, name, item)
        reason, in_frames = _reason_to_drop(rules, start, end, number), (0.0, 0.0)
        if reason is None:
            in_frames = _to_frames(length, start, rules.reference), _to_frames(length, end, rules.reference)
            number = 0 if rules.class_agnostic else number
            # Training sees what is left after rounding; everything else the annotation itself.
            place = in_frames if rules.training and not rules.whole_videos else (start, end)
            share = (place[1] - place[0]) / length.duration_seconds
            if rules.filter_short and not share > (SHORTEST_SHARE if rules.whole_videos else 0.0):
                reason = "too short to train on"
            elif (*place, number) in kept:
                reason = "copies"
        if reason is None:
            kept[(*place, number)] = (start, end, *in_frames)
        else:
            dropped.setdefault(reason, Counter())[name] += 1
    numbers = np.array(list(kept.values()), np.float64).reshape(-1, 4)
    labels = np.array([number for *_, number in kept], np.int64)
    return Video(name, length.duration_seconds, length.fps, length.frames, numbers[:, :2], numbers[:, 2:], labels)


class _Length(NamedTuple):
    """counted: the file gives `frames`; otherwise they follow from a rate."""

    duration_seconds: float
    fps: float
    frames: int
    counted: bool


def _read_length(rules: _Rules, name: str, entry: dict[str, Any]) -> _Length:
    where, spec = _where(rules.spec, name), rules.spec
    try:
        duration = float(entry["duration"])
        if not (math.isfinite(duration) and duration > 0):
            raise ValueError(duration)
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f'{where}: expected "duration" in seconds, more than 0: {error!r}') from error
    try:
        frames, fps = entry.get("frame"), spec.fps or entry.get("fps")
        if spec.fps is None and frames is not None and int(frames) > 0:
            return _Length(duration, int(frames) / duration, int(frames), counted=True)
        if fps is not None and math.isfinite(float(fps)) and float(fps) > 0:
            return _Length(duration, float(fps), int(duration * float(fps)), counted=False)
    except (TypeError, ValueError) as error:
        text = f'{where}: expected "frame" (a count) or "fps" (a rate), got {frames!r} and {fps!r}'
        raise AnnotationError(text) from error
    if rules.whole_videos:
        return _Length(duration, 0.0, 0, counted=False)
    raise AnnotationError(
        f'{where}: has neither "frame" (a count above 0) nor "fps"; set data.fps to the rate of the video files'
    )


def _items(spec: DataSpec, name: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    items = entry.get("annotations")
    if items is not None and not isinstance(items, list):
        raise AnnotationError(f"{_where(spec, name)}: expected a list of annotations, got {items!r}")
    return items or []


def _read_instance(rules: _Rules, name: str, item: Any) -> tuple[float, float, int | None]:
    """(start, end, class number) of one annotation; the number is None for "Ambiguous" outside the class list."""
    spec = rules.spec
    try:
        (start, end), label = item["segment"], item[spec.label_key]
        start, end = float(start), float(end)
    except (KeyError, TypeError, ValueError) as error:
        expected = f'{{"segment": [start, end], "{spec.label_key}": name}}'
        raise AnnotationError(
            f"{_where(spec, name)}: expected {expected} (data.label_key names the label's key), got {item!r}"
        ) from error
    number = rules.classes.numbers.get(label) if isinstance(label, (str, int)) else None
    if number is None and label != AMBIGUOUS:
        count = len(rules.classes.names)
        raise AnnotationError(f"{_where(spec, name)}: label {label!r} isn't in the class list of {count} classes")
    # Whatever its class list says, the reference trains on no such instance.
    return start, end, None if label == AMBIGUOUS and rules.reference else number


def _reason_to_drop(rules: _Rules, start: float, end: float, number: int | None) -> str | None:
    if number is None:
        return AMBIGUOUS
    if not (math.isfinite(start) and math.isfinite(end)):
        return "without finite ends"
    if end <= start and not rules.reference:
        return "empty (end <= start)"
    return None


def _to_frames(length: _Length, seconds: float, reference: bool) -> float:
    """Whole frames, cut towards zero: by the file's count of frames if there is one, else by the rate."""
    frames = seconds / length.duration_seconds * length.frames if length.counted else seconds * length.fps
    # A label that lies on a frame must not fall to the one before by rounding, which the reference lets happen.
    return float(math.trunc(frames + (0.0 if reference else 1e-6)))


def _where(spec: DataSpec, name: str) -> str:
    return f"{spec.annotations}: video {name!r}"
