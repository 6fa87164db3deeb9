"""What makes a score wrong although both files are readable: names that don't meet, times outside of their video.

Every function takes the content of an annotation file and of a detections file, as `detection_map.evaluate` does, and
returns lines that say what was found: how many, the first few names, and what it does to the score. No score changes.
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

MAX_LISTED = 3
"""Names that a line lists; it counts the rest."""
MAX_NAME_CHARACTERS = 80
TOLERANCE_SECONDS = 0.05
"""By which a detection or an annotation may pass its video's end without a word: durations are rounded."""
MAX_SECONDS = 1e12
"""Of a duration that is believed."""
VIDEO_ENDING = re.compile(r"\.(mp4|mkv|avi|mov|webm|m4v|mpg|mpeg|wmv|flv|ts)$", re.IGNORECASE)

LabelOf = Callable[[dict[str, Any]], Hashable | None]
"""The class of an annotation or of a detection, None where it has none."""


def score_warnings(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    blocked: Collection[str] = (),
    keep_ambiguous: bool = False,
) -> list[str]:
    """All that is suspicious about a score by class names (`detection_map.evaluate`), a line each; [] if nothing is.

    blocked: videos that don't count. Whether its names exist is `blocked_warnings`' to say, from the whole file.
    """
    ignored = () if keep_ambiguous else (AMBIGUOUS,)
    return [
        *video_warnings(ground_truth, detections, subset, blocked),
        *label_warnings(ground_truth, detections, subset, blocked, label_of, label_of, ignored),
        *time_warnings(ground_truth, detections, subset, blocked),
        *dropped_warnings(ground_truth, subset, blocked, keep_ambiguous),
    ]


def label_of(item: dict[str, Any]) -> Hashable | None:
    """The name of a class under "label"; None if there is none."""
    label = item.get("label")
    return label if isinstance(label, str) else None


def blocked_warnings(ground_truth: dict[str, Any], blocked: Collection[str]) -> Iterator[str]:
    """Names of a block list that no annotated video has: no instance is left out for them."""
    database = ground_truth["database"]
    unknown = sorted(name for name in blocked if name not in database)
    if unknown:
        which = f"{len(unknown)} of {_count(len(blocked), 'blocked name')} in no annotation (no instance left out)"
        yield f"{which}: {listed(unknown, _by_video_key(database))}"


def video_warnings(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    subset: Subset,
    blocked: Collection[str] = (),
    effect: str = "detections there count as wrong",
) -> Iterator[str]:
    """Videos that only one of the two files has, and videos of one name but for its spelling. effect: what detections
    in unknown videos do to the score."""
    database = ground_truth["database"]
    results = {video: items for video, items in detections["results"].items() if video not in blocked}
    scored, of_subset = _scored(ground_truth, subset, blocked), f"of subset {_named(subset)}"
    with_detections = [video for video, items in results.items() if items]
    unknown = [video for video in with_detections if video not in database]
    if unknown:
        which = f"{_count(len(unknown), 'video')} with detections but in no annotation"
        yield f"{which} ({effect}): {listed(unknown, _by_video_key(database))}"
    other = [video for video in with_detections if video in database and video not in scored]
    if other:
        which = f"{_count(len(other), 'video')} with detections but not {of_subset}"
        yield f"{which} ({effect}): {listed(other)}"
    missing = [video for video in scored if video not in results]
    if missing:
        instances = sum(len(scored[video].get("annotations") or ()) for video in missing)
        effect = f"{_count(instances, 'instance')} missed; is a part of the results missing?"
        which = f"{len(missing)} of {_count(len(scored), 'video')} {of_subset} not in the detections file at all"
        yield f"{which} ({effect}): {listed(missing, _by_video_key(results))}"
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
    """Labels that only one of the two files has, classes without an instance in the subset, and labels of one name but
    for its spelling. ignored: annotated labels that are no classes."""
    there = _labels(ground_truth["database"], annotated, ignored)
    in_subset = _labels(_scored(ground_truth, subset, blocked), annotated, ignored)
    found = Counter(
        detected(item) for video, items in detections["results"].items() if video not in blocked for item in items
    )
    unknown = [label for label in found if label not in there]
    if unknown:
        count = _count(sum(found[label] for label in unknown), "detection")
        which = f"{count} with {_count(len(unknown), 'label')} that no annotation has (left out of the score)"
        names = listed(unknown, {name_key(name): name for name in there})
        yield f"{which}: {names}; the annotations have {listed(there)}" if there else f"{which}: {names}"
    absent = [label for label in there if label not in in_subset]
    if not in_subset:
        yield f"no instance in subset {_named(subset)}: nothing is scored"
    elif absent:
        count = sum(found[label] for label in absent)
        effect = "left out of the mean" + (f", and {_count(count, 'detection')} with them" if count else "")
        which = f"{len(absent)} of {_count(len(there), 'class', 'classes')} without an instance in subset"
        yield f"{which} {_named(subset)} ({effect}): {listed(absent)}"
    yield from _alike(there, name_key, "labels", "scored as different classes")


def time_warnings(
    ground_truth: dict[str, Any], detections: dict[str, Any], subset: Subset, blocked: Collection[str] = ()
) -> Iterator[str]:
    """Instances and detections that lie wholly or partly outside of their video, as far as its "duration" is known."""
    scored = _scored(ground_truth, subset, blocked)
    outside, late, early = [], [], []
    for video, entry in scored.items():
        duration = duration_seconds(entry)
        for item in entry.get("annotations") or ():
            start, end = item["segment"]
            if end <= start:
                continue
            if end <= 0 or start >= duration:
                outside.append((video, start, end))
                continue
            if end > duration + TOLERANCE_SECONDS:
                late.append((video, start, end))
            if start < 0:
                early.append((video, start, end))
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
            yield f"{_count(len(places), one)} {what}: {_listed_places(places, scored)}"


def dropped_warnings(
    ground_truth: dict[str, Any], subset: Subset, blocked: Collection[str] = (), keep_ambiguous: bool = False
) -> Iterator[str]:
    """Annotations that `detection_map.ground_truth_segments` leaves out: without a length, or there twice."""
    repeated: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    for video, entry in _scored(ground_truth, subset, blocked).items():
        for item in entry.get("annotations") or ():
            if item["label"] != AMBIGUOUS or keep_ambiguous:
                (empty if item["segment"][1] <= item["segment"][0] else repeated)[video] += 1
    for by_video in ground_truth_segments(ground_truth, subset, blocked, keep_ambiguous).values():
        repeated.subtract({video: len(segments) for video, segments in by_video.items()})
    if empty:
        yield f"{_count(empty.total(), 'annotation')} without a length (end <= start), left out: {listed(empty)}"
    if repeated := +repeated:
        yield f"{_count(repeated.total(), 'repeated annotation')}, left out: {listed(repeated)}"


def repeated_detection_warnings(detections: dict[str, Any], blocked: Collection[str] = ()) -> Iterator[str]:
    """Detections that stand several times in a video, equal in all that they say: the results were perhaps joined
    twice. All of them count, and at most one finds an instance."""
    repeated: Counter[str] = Counter()
    for video, items in detections["results"].items():
        # Most videos are told by this, which is fast.
        if video in blocked or len({(item["score"], *item["segment"]) for item in items}) == len(items):
            continue
        copies = len(items) - len({_all_of(item) for item in items})
        repeated.update({video: copies} if copies else {})
    if repeated:
        which = f"{_count(repeated.total(), 'detection')} that stood there before (each repetition counts as wrong)"
        yield f"{which}: {listed(repeated)}; were results joined twice?"


def _all_of(detection: dict[str, Any]) -> str:
    """What a detection says, whether its numbers are written as 2 or 2.0."""
    numbers = {"score": float(detection["score"]), "segment": [float(second) for second in detection["segment"]]}
    return repr(sorted({**detection, **numbers}.items()))


def name_key(name: object) -> str:
    """What two spellings of one name have in common: letters in any case, blanks, and accents in either form."""
    return " ".join(unicodedata.normalize("NFKC", str(name)).casefold().split())


def video_key(name: object) -> str:
    """The same of a video, which may carry its file's ending, or ActivityNet's "v_" in front."""
    return VIDEO_ENDING.sub("", name_key(name)).removeprefix("v_")


def listed(names: Iterable[object], there: dict[str, object] | None = None, most: int = MAX_LISTED) -> str:
    """The first names, and how many more. there: names of the other file by their key, which are hinted at."""
    names = list(names)
    parts = []
    for name in names[:most]:
        hint = next((there[key(name)] for key in (name_key, video_key) if there and key(name) in there), None)
        parts.append(quoted(name) + (f" (there is {quoted(hint)})" if hint is not None and hint != name else ""))
    return ", ".join(parts) + (f" and {len(names) - most} more" if len(names) > most else "")


def quoted(name: object) -> str:
    """A name in quotes, in which blanks can be seen and nothing steers a terminal; long ones are cut."""
    text = str(name)
    return repr(text if len(text) <= MAX_NAME_CHARACTERS else text[: MAX_NAME_CHARACTERS - 3] + "...")


def duration_seconds(entry: dict[str, Any]) -> float:
    """Of an annotated video; infinite where the file doesn't say."""
    duration = entry.get("duration")
    return duration if type(duration) in (int, float) and 0 < duration <= MAX_SECONDS else math.inf


def _scored(ground_truth: dict[str, Any], subset: Subset, blocked: Collection[str]) -> dict[str, dict[str, Any]]:
    """The videos that count."""
    names = subset_names(subset)
    return {
        video: entry
        for video, entry in ground_truth["database"].items()
        if entry.get("subset") in names and video not in blocked
    }


def _labels(
    database: dict[str, dict[str, Any]], annotated: LabelOf, ignored: Collection[Hashable]
) -> dict[Hashable, None]:
    """All annotated labels in order. Subsets that aren't scored may hold anything."""
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
    """Names that differ in their spelling alone."""
    groups: dict[str, list[object]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    pairs = [group for group in groups.values() if len(group) > 1]
    if pairs:
        parts = [" and ".join(map(quoted, group[:MAX_LISTED])) for group in pairs[:MAX_LISTED]]
        more = f" and {len(pairs) - MAX_LISTED} more" if len(pairs) > MAX_LISTED else ""
        which = f"{sum(map(len, pairs))} annotated {what} alike but for case, blanks or ending ({effect})"
        yield f"{which}: {'; '.join(parts)}{more}"


def _named(subset: Subset) -> str:
    return " or ".join(map(quoted, subset_names(subset)))


def _listed_places(places: list[tuple[str, float, float]], scored: dict[str, dict[str, Any]]) -> str:
    parts = []
    for video, start, end in places[:MAX_LISTED]:
        duration = duration_seconds(scored[video])
        of = f" of {duration:g} s" if duration < math.inf else ""
        parts.append(f"{quoted(video)} ({start:g} to {end:g} s{of})")
    return ", ".join(parts) + (f" and {len(places) - MAX_LISTED} more" if len(places) > MAX_LISTED else "")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
