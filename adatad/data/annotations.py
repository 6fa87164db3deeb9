"""Annotations in the ActivityNet / OpenTAD form: videos, their segments in seconds, and what was left out."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adatad.data.annotation_file import (
    AMBIGUOUS,
    AnnotationError,
    folded,
    load_database,
    read_names,
    told_apart,
)
from adatad.data.classes import ClassList, nearest, read_classes, similar_labels
from adatad.data.entry import (
    PAST_END_SECONDS,
    REFUSED,
    UNKNOWN_LABEL,
    Length,
    brief,
    entry_problems,
    is_visible,
    read_item,
    read_length,
)
from adatad.files import collection_paused, listed, shown
from adatad.labels.values import SUBSETS
from adatad.spec.data_sections import DataSpec
from adatad.spec.quirks import Quirks

MIN_INSTANCE_SHARE = 0.01
"""Share of its video that an instance must exceed, where whole videos are resized to windows."""
OUTSIDE = "wholly outside their video"
"""Instances that can't be found: they end before their video starts, or start after it ends."""
# Names in annotation files may carry one where those in another list don't.
VIDEO_ENDING = re.compile(r"\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|wmv|flv|ts|3gp)$", re.IGNORECASE)
# One name for all: the evaluator takes a single subset, and the spec may name several.
EVALUATED = "evaluated"
"""Subset name of all videos in the result of `ground_truth`."""


@dataclass(frozen=True)
class Video:
    """An annotated video.

    segments_seconds: float64 [n, 2]; segments_frames: the same in whole frames, truncated as in the reference; labels:
    int64 [n], numbers in the class list. fps and frames are 0 where the file gives neither and windows are whole
    videos, which need none.
    """

    name: str
    duration_seconds: float
    fps: float
    frames: int
    segments_seconds: np.ndarray
    segments_frames: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class LoadReport:
    """Counts of a subset's videos and instances, and of those left out.

    dropped: instances by reason and video; before_start, past_end: kept instances that begin before their video or end
    after it, by video; outside: instances wholly outside it, which are scored but not trained on; without_instances:
    names of videos with none left.
    """

    subset: str | tuple[str, ...]
    videos: int = 0
    instances: int = 0
    blocked: list[str] = field(default_factory=list)
    without_instances: list[str] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    past_end: Counter[str] = field(default_factory=Counter)
    before_start: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """Return one line for a log: what was kept, and what was left out for which reason."""
        parts = [f"{', '.join(names_of(self.subset))}: {self.videos} videos, {self.instances} instances"]
        parts += [f"{by_video.total()} {reason} dropped" for reason, by_video in self.dropped.items()]
        for count, what in (
            (len(self.blocked), "videos blocked"),
            (len(self.without_instances), "videos without instances"),
            (self.before_start.total(), "instances begin before their video"),
            (self.past_end.total(), "instances end after their video"),
            (self.outside.total(), f"instances lie {OUTSIDE}"),
        ):
            parts += [f"{count} {what}"] if count else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Annotations:
    """Annotations of the subsets that a spec names."""

    classes: tuple[str, ...]
    train: tuple[Video, ...]
    validation: tuple[Video, ...]
    train_report: LoadReport
    validation_report: LoadReport
    warnings: tuple[str, ...] = ()
    """Sentences about the whole file: unknown names, labels that look alike, classes that a subset lacks."""
    ground_truth: dict[str, Any] | None = None
    """What detections are scored against, as `ground_truth` returns it; None of a database that no file gave."""

    def in_order(self, classes: tuple[str, ...]) -> Annotations:
        """Return the same annotations with the classes numbered in this order, which holds the same names."""
        if classes == self.classes:
            return self
        # numbers[i] is the new number of class i.
        numbers = np.array([classes.index(name) for name in self.classes], np.int64)
        train, validation = (
            tuple(replace(video, labels=numbers[video.labels]) for video in videos)
            for videos in (self.train, self.validation)
        )
        return replace(self, classes=classes, train=train, validation=validation)


def read_annotations(
    spec: DataSpec, quirks: Quirks = Quirks(), class_agnostic: bool = False, training: bool = True
) -> Annotations:
    """Read the annotation file of a spec; see `annotations_of`. Raises AnnotationError, also if nothing is left of a
    subset."""
    with collection_paused():
        database = load_database(spec.annotations)
        found = annotations_of(database, spec, quirks, class_agnostic, training)
        for videos, report in ((found.train, found.train_report), (found.validation, found.validation_report)):
            # For a test an empty training subset is fine: it wasn't read.
            if not videos and (training or report is found.validation_report):
                subset = " or ".join(map(repr, names_of(report.subset)))
                raise AnnotationError(
                    f"{spec.annotations}: no video of subset {subset} is left: {report.line().partition(': ')[2]}; set "
                    "data.blocked_videos to fewer, or annotate more"
                )
        # From the same content: a file of 20,000 videos takes seconds to read and check.
        return replace(found, ground_truth=_scored_part(database, spec, quirks.keep_ambiguous, is_checked=True))


def annotations_of(
    database: dict[str, dict[str, Any]],
    spec: DataSpec,
    quirks: Quirks = Quirks(),
    class_agnostic: bool = False,
    training: bool = True,
) -> Annotations:
    """Return both subsets of a database, in its order.

    Copies, empty segments and "Ambiguous" are left out and counted, and so are training videos without a segment. Equal
    segments with two labels stay, and so do segments that end after their video: windows cut them. class_agnostic:
    training labels are all 0. training=False reads the validation subset alone, which is all that a test needs: `train`
    is then empty, and a file without training videos is fine.
    """
    classes = read_classes(spec, database, quirks.keep_ambiguous)
    # A blocked video is never looked at, so that one bad entry can be blocked.
    blocked = read_names(spec.blocked_videos)
    train, train_report = (), LoadReport(spec.train_subset)
    if training:
        rules = _Rules(spec, classes, quirks, training=True, class_agnostic=class_agnostic)
        train, train_report = _read_subset(database, blocked, rules)
    rules = _Rules(spec, classes, quirks, training=False, class_agnostic=False)
    validation, validation_report = _read_subset(database, blocked, rules)
    found = Annotations(classes.names, train, validation, train_report, validation_report)
    return replace(found, warnings=tuple(_warnings(found, database, rules, training, class_agnostic)))


def _warnings(
    found: Annotations, database: dict[str, dict[str, Any]], rules: _Rules, training: bool, class_agnostic: bool
) -> Iterator[str]:
    spec = rules.spec
    blocked = read_names(spec.blocked_videos)
    absent = sorted(blocked - database.keys())
    if absent:
        # Names of lists differ from those of files by case or an ending, mostly.
        known = {folded(_bare(name)): name for name in database}
        meant = [known.get(folded(_bare(name))) for name in absent]
        named = [f"{name} (is {other} meant?)" if other else name for name, other in zip(absent, meant, strict=True)]
        yield f"{len(absent)} blocked names aren't in the annotation file: {listed(named)}"
    for group in _one_video(database):
        yield f"videos {listed(told_apart(group))} differ in case, blanks or an ending alone; are they one video?"
    wanted = *(names_of(spec.train_subset) if training else ()), *names_of(spec.validation_subset)
    unused = _in_neither_subset({name: e for name, e in database.items() if name not in blocked}, rules, wanted)
    if unused:
        which = listed([f"{count} of {subset}" for subset, count in unused.items()])
        yield (
            f"{unused.total()} of {len(database)} videos are in neither subset: {which}; the spec asks for "
            f"{' and '.join(map(repr, dict.fromkeys(wanted)))}: set data.train_subset / data.validation_subset, or "
            "correct the file"
        )
    for group in similar_labels(database, spec.label_key, found.classes):
        yield f"labels {group}"
    # Class-agnostic training labels are all 0: they don't show which classes have an instance.
    counted = ("training", found.train, training and not class_agnostic), ("validation", found.validation, True)
    for role, videos, read in counted:
        counts = np.bincount(
            np.concatenate([np.zeros(0, np.int64), *(video.labels for video in videos)]), minlength=len(found.classes)
        )
        lacking = [name for name, count in zip(found.classes, counts, strict=False) if not count]
        if read and counts.any() and lacking:
            yield f"{len(lacking)} of {len(found.classes)} classes have no instance in {role}: {listed(lacking)}"
    if found.validation and not found.validation_report.instances:
        yield "validation has no instance: nothing can be scored"


def _in_neither_subset(database: dict[str, dict[str, Any]], rules: _Rules, wanted: tuple[str, ...]) -> Counter[str]:
    """Count videos outside both subsets that may be meant to be in one, by their subset's name; other subsets, such as
    "test", are no mistake."""
    meant = {_subset_meant(name) for name in wanted}
    counts: Counter[str] = Counter()
    for entry in database.values():
        subset = entry.get("subset")
        if any(in_subset(entry, names, rules.quirks.match_subset_parts) for names in (rules.spec.train_subset, wanted)):
            continue
        if subset is None or (isinstance(subset, str) and not is_visible(subset)):
            counts["none"] += 1
        elif not isinstance(subset, str) or _subset_meant(subset) in meant:
            counts[brief(subset)] += 1
    return counts


def _subset_meant(name: str) -> str:
    """Return the usual name (training, validation, test) of a subset, else its own words."""
    words = folded(name).removesuffix(" set").removesuffix(" split")
    return SUBSETS.get(words, words)


def _one_video(database: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return groups of names that may mean one video."""
    groups: dict[str, list[str]] = {}
    for name in database:
        plain = unicodedata.normalize("NFC", name.strip().casefold())
        groups.setdefault(VIDEO_ENDING.sub("", plain), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _bare(name: str) -> str:
    """Return a video's name without folder, file ending and BSN's leading v_."""
    return VIDEO_ENDING.sub("", name.rpartition("/")[2]).removeprefix("v_")


def names_of(subset: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the subset names of a spec as a tuple."""
    return (subset,) if isinstance(subset, str) else subset


def in_subset(entry: dict[str, Any], wanted: str | tuple[str, ...], match_parts: bool = False) -> bool:
    """Return whether a video belongs to the wanted subset or to one of several.

    match_parts: also if its subset's name is a part of the wanted one (`Quirks.match_subset_parts`).
    """
    subset = entry.get("subset")
    # As the reference: "val" is a part of "validation", and so is the empty name.
    if match_parts and isinstance(wanted, str):
        return isinstance(subset, str) and subset in wanted
    return subset in names_of(wanted)


def ground_truth(spec: DataSpec, keep_ambiguous: bool = False) -> dict[str, Any]:
    """Return the annotations that detections are scored against, as the content of an annotation file.

    It holds the validation videos that aren't blocked, in a subset named `EVALUATED`, with class names as labels and
    all other keys as they are. All instances with finite ends are in it: the evaluation drops what else doesn't count.
    "Ambiguous" is in it if it is a class, or with keep_ambiguous. Subsets are compared for equality, also by the
    reference.
    """
    with collection_paused():
        return _scored_part(load_database(spec.annotations), spec, keep_ambiguous)


def _scored_part(
    database: dict[str, dict[str, Any]], spec: DataSpec, keep_ambiguous: bool, is_checked: bool = False
) -> dict[str, Any]:
    classes, blocked = read_classes(spec, database, keep_ambiguous), read_names(spec.blocked_videos)
    rules = _Rules(spec, classes, Quirks(), training=False, class_agnostic=False)
    videos = {}
    for name, entry in database.items():
        if in_subset(entry, spec.validation_subset) and name not in blocked:
            if not is_checked:
                _refuse(spec, name, entry, classes)
            items = entry.get("annotations") or []
            instances = [_read_instance(rules, item) for item in items]
            videos[name] = {
                "subset": EVALUATED,
                "annotations": [
                    {**item, "segment": [start, end], "label": AMBIGUOUS if number is None else classes.names[number]}
                    for item, (start, end, number) in zip(items, instances, strict=True)
                    if math.isfinite(start) and math.isfinite(end) and (number is not None or keep_ambiguous)
                ],
            }
    return {"database": videos}


@dataclass(frozen=True)
class _Rules:
    """Rules for reading the videos of one subset."""

    spec: DataSpec
    classes: ClassList
    quirks: Quirks
    training: bool
    class_agnostic: bool

    @property
    def subset(self) -> str | tuple[str, ...]:
        """The subset's name, or its names, in the spec."""
        return self.spec.train_subset if self.training else self.spec.validation_subset

    @property
    def whole_videos(self) -> bool:
        """True if a window is a whole video, resized."""
        return self.spec.window.kind == "resize"

    @property
    def filter_short(self) -> bool:
        """True if instances too short to train on are left out."""
        wanted = self.spec.filter_short
        return self.training and (wanted if wanted is not None else self.whole_videos or not self.quirks.keep_empty)


def _read_subset(
    database: dict[str, dict[str, Any]], blocked: frozenset[str], rules: _Rules
) -> tuple[tuple[Video, ...], LoadReport]:
    spec = rules.spec
    entries = {
        name: entry
        for name, entry in database.items()
        if in_subset(entry, rules.subset, rules.quirks.match_subset_parts)
    }
    if not entries:
        there = listed(sorted({str(entry.get("subset")) for entry in database.values()}), 20)
        key = "data.train_subset" if rules.training else "data.validation_subset"
        wanted = " or ".join(map(repr, names_of(rules.subset)))
        raise AnnotationError(f"{spec.annotations}: no video of subset {wanted}; the file has {there}; set {key}")
    # All entries before the first is read: an unusable one ends the run at once.
    for name, entry in entries.items():
        if name not in blocked:
            _refuse(spec, name, entry, rules.classes)
    report = LoadReport(rules.subset, blocked=[name for name in entries if name in blocked])
    videos = []
    for name, entry in entries.items():
        if name in blocked:
            continue
        video = _read_video(rules, name, entry, report.dropped)
        if not len(video.labels):
            report.without_instances.append(name)
        # Left out of training alone: in evaluation every detection in such a video counts as wrong.
        if len(video.labels) or not rules.training:
            videos.append(video)
        _count_outside(video, report)
    return tuple(videos), replace(report, videos=len(videos), instances=sum(len(video.labels) for video in videos))


def _count_outside(video: Video, report: LoadReport) -> None:
    """Count the instances of a video that leave it."""
    # Durations are rounded, so an instance must pass an end by more than the rounding to be counted.
    late = video.duration_seconds + PAST_END_SECONDS
    for start, end in video.segments_seconds.tolist():
        if end <= 0 or start >= late:
            report.outside[video.name] += 1
            continue
        # One may do both.
        if start < -PAST_END_SECONDS:
            report.before_start[video.name] += 1
        if end > late:
            report.past_end[video.name] += 1


def _refuse(spec: DataSpec, name: str, entry: dict[str, Any], classes: ClassList) -> None:
    """Raise AnnotationError for an entry that can't be used, with everything that is wrong in it."""
    wrong = [problem for problem in entry_problems(spec, name, entry, classes.numbers) if problem.kind in REFUSED]
    if not wrong:
        return
    first = wrong[0].text
    if wrong[0].kind == UNKNOWN_LABEL:
        first += f" of {len(classes.names)} classes{nearest(wrong[0].label, classes)}"
    more = f" (and {len(wrong) - 1} more like it in this video)" if len(wrong) > 1 else ""
    raise AnnotationError(f"{spec.annotations}: video {shown(repr(name))}: {first}{more}")


def _read_video(rules: _Rules, name: str, entry: dict[str, Any], dropped: dict[str, Counter[str]]) -> Video:
    """Return a video with the instances that are kept; the others are counted in `dropped`."""
    length = read_length(rules.spec, entry)
    # By what makes two instances copies of each other; the first one stays.
    kept: dict[tuple[float, float, int], tuple[float, float, float, float]] = {}
    for item in entry.get("annotations") or ():
        start, end, number = _read_instance(rules, item)
        reason, in_frames = _reason_to_drop(rules, start, end, number, length.duration_seconds), (0.0, 0.0)
        if reason is None:
            in_frames = tuple(_to_frames(length, second, rules.quirks.truncate_frames) for second in (start, end))
            # Copies are compared after this: without classes two labels on one segment are one instance.
            number = 0 if rules.class_agnostic else number
            # Training compares instances as rounded to frames; everything else compares the annotations themselves.
            place = in_frames if rules.training and not rules.whole_videos else (start, end)
            share = (place[1] - place[0]) / length.duration_seconds
            if rules.filter_short and not share > (MIN_INSTANCE_SHARE if rules.whole_videos else 0.0):
                reason = "too short to train on"
            elif (*place, number) in kept:
                reason = "copies"
        if reason is None:
            kept[(*place, number)] = (start, end, *in_frames)
        else:
            dropped.setdefault(reason, Counter())[name] += 1
    # reshape: a video without an instance has arrays of shape [0, 2].
    numbers = np.array(list(kept.values()), np.float64).reshape(-1, 4)
    labels = np.array([number for *_, number in kept], np.int64)
    return Video(name, length.duration_seconds, length.fps, length.frames, numbers[:, :2], numbers[:, 2:], labels)


def _read_instance(rules: _Rules, item: Any) -> tuple[float, float, int | None]:
    """Return (start, end, class number) of an annotation; the number is None for "Ambiguous" outside the class list."""
    start, end, label = read_item(rules.spec, item)
    number = rules.classes.numbers.get(label)
    # The reference never trains on such an instance, even where its class list has the name.
    return start, end, None if label == AMBIGUOUS and rules.quirks.keep_ambiguous else number


def _reason_to_drop(rules: _Rules, start: float, end: float, number: int | None, duration_seconds: float) -> str | None:
    if number is None:
        return AMBIGUOUS
    if not (math.isfinite(start) and math.isfinite(end)):
        return "without finite ends"
    # The reference has no rule beyond these: it keeps segments without length, and those outside.
    if rules.quirks.keep_empty:
        return None
    if end <= start:
        return "empty (end <= start)"
    # Scoring keeps instances outside their video, so that results stay comparable with published ones.
    if rules.training and (end <= 0 or start >= duration_seconds + PAST_END_SECONDS):
        return OUTSIDE
    return None


def _to_frames(length: Length, seconds: float, truncate: bool) -> float:
    """Return whole frames, truncated: by the file's frame count if there is one, else by the rate."""
    frames = seconds / length.duration_seconds * length.frames if length.counted else seconds * length.fps
    # A rounding error must not move a time that lies on a frame to the frame before it, as it does in the reference.
    return float(math.trunc(frames + (0.0 if truncate else 1e-6)))
