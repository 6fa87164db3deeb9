"""Warnings about a score: names that differ between the two files, times outside their video, repetitions.

Every function takes the content of an annotation file and of a detections file, as `detection_map.evaluate` does, and
returns lines that say what was found: how many, the first few names, and the effect on the score. No score changes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import Any

from adatad.data.annotation_file import AMBIGUOUS
from adatad.evaluation.detection_map import Subset, ground_truth_segments, subset_names
from adatad.files import listed

MAX_LISTED = 3
"""Names that a line lists; it counts the rest."""
MAX_NAME_CHARACTERS = 80
TOLERANCE_SECONDS = 0.05
"""Seconds by which a segment may pass its video's end without a warning: durations are rounded."""
MAX_SECONDS = 1e12
"""Longest duration that is believed."""
VIDEO_ENDING = re.compile(r"\.(mp4|mkv|avi|mov|webm|m4v|mpg|mpeg|wmv|flv|ts)$", re.IGNORECASE)

LabelOf = Callable[[dict[str, Any]], Hashable | None]
"""Function that returns the class of an annotation or detection, None where it has none."""


def score_warnings(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    blocked: Collection[str] = (),
    keep_ambiguous: bool = False,
) -> list[str]:
    """Return a line for everything suspicious about a score by class names (`detection_map.evaluate`).

    blocked: videos that don't count. `blocked_warnings` checks that they exist.
    """
    ignored = () if keep_ambiguous else (AMBIGUOUS,)
    return [
        *video_warnings(ground_truth, detections, subset, blocked),
        *label_warnings(ground_truth, detections, subset, blocked, label_of, label_of, ignored),
        *time_warnings(ground_truth, detections, subset, blocked),
        *dropped_warnings(ground_truth, subset, blocked, keep_ambiguous),
    ]


def label_of(item: dict[str, Any]) -> Hashable | None:
    """Return the class name under "label"; None if there is none."""
    label = item.get("label")
    return label if isinstance(label, str) else None


def blocked_warnings(ground_truth: dict[str, Any], blocked: Collection[str]) -> Iterator[str]:
    """Yield a line on names of a block list that no annotated video has: no instance is left out for them."""
    database = ground_truth["database"]
    unknown = sorted(name for name in blocked if name not in database)
    if unknown:
        which = f"{len(unknown)} of {_count(len(blocked), 'blocked name')} in no annotation (no instance left out)"
        yield f"{which}: {list_quoted(unknown, _by_video_key(database))}"


def video_warnings(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    blocked: Collection[str] = (),
    effect: str = "detections there count as wrong",
) -> Iterator[str]:
    """Yield lines on videos that only one of the two files has, and on names that differ in spelling alone.

    effect: effect on the score of detections in unknown videos.
    """
    database = ground_truth["database"]
    results = {video: items for video, items in detections["results"].items() if video not in blocked}
    scored, of_subset = _scored(ground_truth, subset, blocked), f"of subset {_named(subset)}"
    with_detections = [video for video, items in results.items() if items]
    unknown = [video for video in with_detections if video not in database]
    if unknown:
        which = f"{_count(len(unknown), 'video')} with detections but in no annotation"
        yield f"{which} ({effect}): {list_quoted(unknown, _by_video_key(database))}"
    other = [video for video in with_detections if video in database and video not in scored]
    if other:
        which = f"{_count(len(other), 'video')} with detections but not {of_subset}"
        yield f"{which} ({effect}): {list_quoted(other)}"
    # A video with an empty list was looked at; one that isn't there at all perhaps wasn't.
    missing = [video for video in scored if video not in results]
    if missing:
        instances = sum(len(scored[video].get("annotations") or ()) for video in missing)
        effect = f"{_count(instances, 'instance')} missed; is a part of the results missing?"
        which = f"{len(missing)} of {_count(len(scored), 'video')} {of_subset} not in the detections file at all"
        yield f"{which} ({effect}): {list_quoted(missing, _by_video_key(results))}"
    yield from _alike(database, video_key, "videos", "scored as different videos")


def label_warnings(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    blocked: Collection[str] = (),
    annotated: LabelOf = label_of,
    detected: LabelOf = label_of,
    ignored: Collection[Hashable] = (),
) -> Iterator[str]:
    """Yield lines on labels that only one of the two files has, on classes without an instance in the subset, and on
    labels that differ in spelling alone.

    ignored: annotated labels that are no classes.
    """
    there = _labels(ground_truth["database"], annotated, ignored)
    in_subset = _labels(_scored(ground_truth, subset, blocked), annotated, ignored)
    found = Counter(
        detected(item) for video, items in detections["results"].items() if video not in blocked for item in items
    )
    # Labels of other subsets are known too: a detection with one is wrong in this subset, but no mistake of spelling.
    unknown = [label for label in found if label not in there]
    if unknown:
        count = _count(sum(found[label] for label in unknown), "detection")
        which = f"{count} with {_count(len(unknown), 'label')} that no annotation has (left out of the score)"
        names = list_quoted(unknown, {name_key(name): name for name in there})
        yield f"{which}: {names}; the annotations have {list_quoted(there)}" if there else f"{which}: {names}"
    # Classes of other subsets alone have no AP here.
    absent = [label for label in there if label not in in_subset]
    if not in_subset:
        yield f"no instance in subset {_named(subset)}: nothing is scored"
    elif absent:
        count = sum(found[label] for label in absent)
        effect = "left out of the mean" + (f", and {_count(count, 'detection')} with them" if count else "")
        which = f"{len(absent)} of {_count(len(there), 'class', 'classes')} without an instance in subset"
        yield f"{which} {_named(subset)} ({effect}): {list_quoted(absent)}"
    yield from _alike(there, name_key, "labels", "scored as different classes")


def time_warnings(
    ground_truth: dict[str, Any], detections: dict[str, Any], subset: Subset, blocked: Collection[str] = ()
) -> Iterator[str]:
    """Yield lines on instances and detections that lie wholly or partly outside their video, where its "duration" is
    known."""
    scored = _scored(ground_truth, subset, blocked)
    # The usual causes: times in frames or in another unit, and annotations of another cut of the video.
    outside, late, early = [], [], []
    for video, entry in scored.items():
        duration = duration_seconds(entry)
        for item in entry.get("annotations") or ():
            start, end = item["segment"]
            # `dropped_warnings` names these.
            if end <= start:
                continue
            if end <= 0 or start >= duration:
                outside.append((video, start, end))
                continue
            if end > duration + TOLERANCE_SECONDS:
                late.append((video, start, end))
            if start < 0:
                early.append((video, start, end))
    # A detection may touch its video's end; only one that lies wholly outside is suspicious.
    lost = [
        (video, *item["segment"])
        for video, items in detections["results"].items()
        if video in scored
        for item in items
        if item["segment"][1] < 0 or item["segment"][0] > duration_seconds(scored[video]) + TOLERANCE_SECONDS
    ]
    for places, one, what in (
        (outside, "instance", "wholly outside of the video, where nothing can be found"),
        (late, "instance", "with an end after the video's"),
        (early, "instance", "with a start before 0 s"),
        (lost, "detection", "wholly outside of the video"),
    ):
        if places:
            yield f"{_count(len(places), one)} {what}: {_list_places(places, scored)}"


def dropped_warnings(
    ground_truth: dict[str, Any], subset: Subset, blocked: Collection[str] = (), keep_ambiguous: bool = False
) -> Iterator[str]:
    """Yield lines on annotations that `ground_truth_segments` leaves out: without a length, or duplicates."""
    repeated: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    for video, entry in _scored(ground_truth, subset, blocked).items():
        for item in entry.get("annotations") or ():
            if item["label"] != AMBIGUOUS or keep_ambiguous:
                (empty if item["segment"][1] <= item["segment"][0] else repeated)[video] += 1
    # All annotations with a length, less those that are scored, are the duplicates.
    for by_video in ground_truth_segments(ground_truth, subset, blocked, keep_ambiguous).values():
        repeated.subtract({video: len(segments) for video, segments in by_video.items()})
    if empty:
        yield f"{_count(empty.total(), 'annotation')} without a length (end <= start), left out: {list_quoted(empty)}"
    if repeated := +repeated:
        yield f"{_count(repeated.total(), 'repeated annotation')}, left out: {list_quoted(repeated)}"


def repeated_detection_warnings(detections: dict[str, Any], blocked: Collection[str] = ()) -> Iterator[str]:
    """Yield a line on detections that are repeated in a video, equal in all keys: the results were perhaps joined
    twice.

    All of them count, and at most one finds an instance.
    """
    repeated: Counter[str] = Counter()
    for video, items in detections["results"].items():
        # The fast test first: without equal scores and segments there is no repetition.
        if video in blocked or len({(item["score"], *item["segment"]) for item in items}) == len(items):
            continue
        copies = len(items) - len({_all_of(item) for item in items})
        repeated.update({video: copies} if copies else {})
    if repeated:
        which = f"{_count(repeated.total(), 'detection')} repeated (each repetition counts as wrong)"
        yield f"{which}: {list_quoted(repeated)}; were results joined twice?"


def _all_of(detection: dict[str, Any]) -> str:
    """Return all keys and values of a detection as text, with numbers written alike (2 as 2.0)."""
    # JSON of one program writes 2, of another 2.0.
    numbers = {"score": float(detection["score"]), "segment": [float(second) for second in detection["segment"]]}
    return repr(sorted({**detection, **numbers}.items()))


def name_key(name: object) -> str:
    """Return a name's key that its spellings share: without case, extra spaces and the form of accents."""
    return " ".join(unicodedata.normalize("NFKC", str(name)).casefold().split())


def video_key(name: object) -> str:
    """Return the key of a video's name, also without its file's ending and ActivityNet's leading "v_"."""
    return VIDEO_ENDING.sub("", name_key(name)).removeprefix("v_")


def list_quoted(names: Iterable[object], there: dict[str, object] | None = None, most: int = MAX_LISTED) -> str:
    """Return the first names in quotes, and how many more there are.

    there: names of the other file by their key; a near match is shown beside a name.
    """
    # A near match is the likely cause of a name that isn't there: it is shown beside it.
    names = list(names)
    parts = []
    for name in names[:most]:
        hint = next((there[key(name)] for key in (name_key, video_key) if there and key(name) in there), None)
        parts.append(quoted(name) + (f" (there is {quoted(hint)})" if hint is not None and hint != name else ""))
    return listed([*parts, *names[most:]], most)


def quoted(name: object) -> str:
    """Return a name in quotes, with spaces visible, control characters escaped and long names cut."""
    text = str(name)
    return repr(text if len(text) <= MAX_NAME_CHARACTERS else text[: MAX_NAME_CHARACTERS - 3] + "...")


def duration_seconds(entry: dict[str, Any]) -> float:
    """Return the duration of an annotated video; infinite where the file doesn't give one."""
    duration = entry.get("duration")
    return duration if type(duration) in (int, float) and 0 < duration <= MAX_SECONDS else math.inf


def _scored(ground_truth: dict[str, Any], subset: Subset, blocked: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the videos that count."""
    names = subset_names(subset)
    return {
        video: entry
        for video, entry in ground_truth["database"].items()
        if entry.get("subset") in names and video not in blocked
    }


def _labels(
    database: dict[str, dict[str, Any]], annotated: LabelOf, ignored: Collection[Hashable]
) -> dict[Hashable, None]:
    """Return all annotated labels in order; entries outside the scored subset may hold anything."""
    # A dictionary as a set that keeps the file's order.
    labels: dict[Hashable, None] = {}
    for entry in database.values():
        items = entry.get("annotations")
        for item in items if isinstance(items, list) else ():
            label = annotated(item) if isinstance(item, dict) else None
            if label is not None and label not in ignored:
                labels[label] = None
    return labels


def _by_video_key(names: Iterable[str]) -> dict[str, object]:
    return {video_key(name): name for name in names}


def _alike(names: Iterable[object], key: Callable[[object], str], what: str, effect: str) -> Iterator[str]:
    """Yield a line on names that differ in spelling alone."""
    # By the key that all spellings of a name share.
    groups: dict[str, list[object]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    pairs = [group for group in groups.values() if len(group) > 1]
    if pairs:
        parts = [" and ".join(map(quoted, group[:MAX_LISTED])) for group in pairs]
        which = f"{sum(map(len, pairs))} annotated {what} alike but for case, blanks or ending ({effect})"
        yield f"{which}: {listed(parts, MAX_LISTED, '; ')}"


def _named(subset: Subset) -> str:
    return " or ".join(map(quoted, subset_names(subset)))


def _list_places(places: list[tuple[str, float, float]], scored: dict[str, dict[str, Any]]) -> str:
    parts = []
    for video, start, end in places[:MAX_LISTED]:
        duration = duration_seconds(scored[video])
        of = f" of {duration:g} s" if duration < math.inf else ""
        parts.append(f"{quoted(video)} ({start:g} to {end:g} s{of})")
    return listed([*parts, *places[MAX_LISTED:]], MAX_LISTED)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
