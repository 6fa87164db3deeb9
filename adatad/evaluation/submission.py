"""Detections as the files that the servers of ActivityNet, EPIC-KITCHENS-100 and Ego4D take, checked before writing.

The forms are those of the challenges' own examples; no server was asked. Needs no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from adatad.data.annotation_file import load_database
from adatad.evaluation.score_files import MAX_DIGITS, MAX_NUMBER, read_detections
from adatad.evaluation.score_warnings import list_quoted, quoted, repeated_detection_warnings
from adatad.files import FileError, files_to_write, listed, read_text, write_json

Form = Literal["activitynet", "epic", "ego4d"]
EPIC_SUPERVISION = {"sls_pt": 2, "sls_tl": 3, "sls_td": 3}
"""Answers to the server's questions about training: pretrained on public videos, all labels, all data."""
PAIR_OVERLAP = 0.5
"""Least tIoU of a verb and a noun that are paired to an action."""
MAX_ACTIONS = 2000
"""Most actions of a video."""
EPIC_VERBS, EPIC_NOUNS = 97, 300
MAX_LISTED = 20
"""Problems that an error lists; it counts the rest."""
MAX_LATE_SECONDS = 0.05
"""Seconds by which a segment may end after its video: durations are rounded."""

Results = dict[str, list[dict[str, Any]]]


class Expected(NamedTuple):
    """Requirements on a submission: duration in seconds of every video of a subset, and the known labels."""

    duration_seconds: dict[str, float]
    labels: frozenset[str]


def activitynet(results: Results, external: str | None = None) -> dict[str, Any]:
    """Return ActivityNet's form of detections.

    external: data used beside the data set's own videos and labels, in words; None for none. Raises FileError for a
    video that appears both with and without "v_" before its name.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for video in results:
        spellings[video.removeprefix("v_")].append(video)
    twice = [" and ".join(map(quoted, names)) for names in spellings.values() if len(names) > 1]
    if twice:
        raise FileError(f"{len(twice)} videos are there under two names, such as {twice[0]}; join them to one")
    # ActivityNet's own files name videos without the prefix "v_".
    plain = {video.removeprefix("v_"): _plain(items) for video, items in results.items()}
    used = {"used": external is not None, "details": external or ""}
    return {"version": "VERSION 1.3", "results": plain, "external_data": used}


def ego4d(results: Results) -> dict[str, Any]:
    """Return Ego4D's form (Moment Queries): the same detections answer both tasks, detection and retrieval."""
    plain = {video: _plain(items) for video, items in results.items()}
    return {"version": "1.0", "challenge": "ego4d_moment_queries", "detect_results": plain, "retrieve_results": plain}


def epic(verbs: Results, nouns: Results, verb_ids: Mapping[str, int], noun_ids: Mapping[str, int]) -> dict[str, Any]:
    """Return EPIC's form: actions out of the detections of a verb model and a noun model.

    Every verb and noun that overlap by at least `PAIR_OVERLAP` become an action with the mean segment and the product
    of both scores. Raises FileError for a label without a number, and for videos that only one of the two models has
    seen, which would be sent without an action.
    """
    alone = sorted(verbs.keys() ^ nouns.keys())
    if alone:
        raise FileError(
            f"{len(alone)} videos are in one of the two detections files alone: {list_quoted(alone)}; "
            "a video in which nothing was found has an empty list"
        )
    results = {}
    for video in verbs.keys() | nouns.keys():
        verb, noun = _arrays(verbs.get(video, []), verb_ids, video), _arrays(nouns.get(video, []), noun_ids, video)
        results[video] = _pairs(verb, noun)
    # Sorted: a union of keys has no order, and the same detections must give the same file.
    ordered = {video: results[video] for video in sorted(results)}
    return {"version": "0.2", "challenge": "action_detection", **EPIC_SUPERVISION, "results": ordered}


def _arrays(items: list[dict[str, Any]], ids: Mapping[str, int], video: str) -> tuple[np.ndarray, ...]:
    """Return segments float64 [n, 2], scores float64 [n], class numbers int64 [n]."""
    unknown = sorted({item["label"] for item in items} - ids.keys())
    if unknown:
        raise FileError(f"video {video!r}: the class file has no number for {list_quoted(unknown)}")
    segments = np.array([item["segment"] for item in items], np.float64).reshape(-1, 2)
    scores = np.array([item["score"] for item in items], np.float64)
    return segments, scores, np.array([ids[item["label"]] for item in items], np.int64)


def _pairs(verb: tuple[np.ndarray, ...], noun: tuple[np.ndarray, ...]) -> list[dict[str, Any]]:
    """Return the best pairs of a video, best first."""
    a, b = verb[0][:, None], noun[0][None]
    # All pairs of a video at once: [verbs, nouns].
    shared = (np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])).clip(0)
    whole = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    first, second = np.nonzero(shared >= PAIR_OVERLAP * np.maximum(whole, 1e-9))
    # Verb and noun are detected independently: their product ranks the action.
    scores = verb[1][first] * noun[1][second]
    best = np.argsort(-scores, kind="stable")[:MAX_ACTIONS]
    pairs = []
    for i, j, score in zip(first[best].tolist(), second[best].tolist(), scores[best].tolist(), strict=True):
        v, n, segment = int(verb[2][i]), int(noun[2][j]), ((verb[0][i] + noun[0][j]) / 2).tolist()
        pairs.append({"verb": v, "noun": n, "action": f"{v},{n}", "score": score, "segment": segment})
    return pairs


def _plain(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"label": i["label"], "score": float(i["score"]), "segment": [float(s) for s in i["segment"]]} for i in items
    ]


def problems(form: Form, content: dict[str, Any], expected: Expected | None = None) -> list[str]:
    """Return everything wrong with a submission's content; with `expected` also what is missing or made up."""
    match form:
        case "activitynet":
            parts, entry = {"results": content.get("results")}, _label_problem
            head = {"version", "results", "external_data"}
        case "ego4d":
            parts, entry = {key: content.get(key) for key in ("detect_results", "retrieve_results")}, _label_problem
            head = {"version", "challenge", *parts}
        case "epic":
            parts, entry = {"results": content.get("results")}, _action_problem
            head = {"version", "challenge", "results", *EPIC_SUPERVISION}
    found = [f"{key}: missing" for key in sorted(head - content.keys())]
    found += [f"{key}: not part of the form" for key in sorted(content.keys() - head)]
    for key, results in parts.items():
        if isinstance(results, dict):
            found += [f"{key}: {line}" for line in _result_problems(form, results, entry, expected)]
        elif key in content:
            found.append(f"{key}: expected detections by video")
    return found


def _result_problems(
    form: Form, results: dict[str, Any], entry: Callable[..., str | None], expected: Expected | None
) -> list[str]:
    # Without `expected` nobody knows how long videos last: no end is too late then.
    found, durations = [], {}
    if expected is not None:
        drop = "v_" if form == "activitynet" else ""
        durations = {video.removeprefix(drop): seconds for video, seconds in expected.duration_seconds.items()}
        found += [f"video {video!r} is missing" for video in durations.keys() - results.keys()]
        found += [f"video {video!r} isn't of the subset" for video in results.keys() - durations.keys()]
    labels = expected.labels if expected else None
    for video, items in results.items():
        for number, item in enumerate(items):
            problem = entry(item, labels) or _time_problem(item, durations.get(video, math.inf))
            if problem:
                found.append(f"video {video!r}, entry {number}: {problem}")
    return sorted(found)


def _label_problem(item: dict[str, Any], labels: frozenset[str] | None) -> str | None:
    # Exactly these: the forms' examples have no other keys.
    if item.keys() != {"label", "score", "segment"}:
        return f"expected label, score and segment, got {', '.join(item)}"
    if not isinstance(item["label"], str) or (labels and item["label"] not in labels):
        return f"{item['label']!r} is no label of the data set"
    return None


def _action_problem(item: dict[str, Any], labels: frozenset[str] | None) -> str | None:
    if item.keys() != {"verb", "noun", "action", "score", "segment"}:
        return f"expected verb, noun, action, score and segment, got {', '.join(item)}"
    verb, noun = item["verb"], item["noun"]
    if type(verb) is not int or type(noun) is not int or not (0 <= verb < EPIC_VERBS and 0 <= noun < EPIC_NOUNS):
        return f"verb {verb!r} and noun {noun!r} aren't numbers below {EPIC_VERBS} and {EPIC_NOUNS}"
    return None if item["action"] == f"{verb},{noun}" else f"action {item['action']!r} isn't {verb},{noun}"


def _time_problem(item: dict[str, Any], duration_seconds: float) -> str | None:
    start, end = item["segment"]
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
        return f"segment {item['segment']} isn't a start and a later end in seconds"
    if end > duration_seconds + MAX_LATE_SECONDS:
        return f"segment {item['segment']} ends after the video, which lasts {duration_seconds} s"
    return None if math.isfinite(item["score"]) and item["score"] >= 0 else f"score {item['score']} isn't 0 or more"


def expected_of(ground_truth: Path, subset: str) -> Expected:
    """Read the videos and labels of an annotation file, plain or gzip'd. Raises FileError or AnnotationError."""
    database = load_database(str(ground_truth))
    of_subset, labels = {}, set()
    for video, entry in database.items():
        where = f"{ground_truth}: video {quoted(video)}"
        if entry.get("subset") == subset:
            duration = entry.get("duration")
            if type(duration) not in (int, float) or not 0 < duration <= MAX_NUMBER:
                raise FileError(f'{where}: expected "duration" in seconds, more than 0')
            of_subset[video] = float(duration)
        items = entry.get("annotations") or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise FileError(f"{where}: expected a list of annotations")
        # The labels of a test set are hidden; those that there are must be names.
        labels.update(item["label"] for item in items if isinstance(item.get("label"), str))
    # A wrong name of the subset, as some files say "val" or "testing".
    if not of_subset:
        there = sorted({str(entry.get("subset")) for entry in database.values()})
        raise FileError(f"{ground_truth}: no video of subset {subset!r}; the file has {list_quoted(there, most=20)}")
    return Expected(of_subset, frozenset(labels))


def read_ids(path: Path) -> dict[str, int]:
    """Read class numbers by name, and by the number as text: one `id<TAB>name` a line, or names in order.

    Raises FileError.
    """
    ids: dict[str, int] = {}
    numbers: set[int] = set()
    lines = [(place, line) for place, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    for count, (place, line) in enumerate(lines):
        number, tab, name = line.partition("\t")
        number, name = (number.strip(), name.strip()) if tab else (str(count), line.strip())
        if not number.isdecimal() or len(number) > MAX_DIGITS:
            raise FileError(f"{path}, line {place}: expected id<TAB>name, got {quoted(line)}")
        if name in ids or int(number) in numbers:
            raise FileError(f"{path}, line {place}: the name {quoted(name)} or the number {number} appears twice")
        ids[name] = int(number)
        numbers.add(int(number))
    # Detections may carry numbers as labels, unless a class has that very name.
    return {str(number): number for number in ids.values()} | ids


def write_submission(
    form: Form,
    detections: Path,
    output: Path,
    nouns: Path | None = None,
    ids: tuple[Path, Path] | None = None,
    external: str | None = None,
    expected: Expected | None = None,
    warn: Callable[[str], None] = print,
) -> int:
    """Write detections files as a submission, which is written only if it has no problem; return its number of entries.

    nouns, ids: for epic, the second detections file, and the class files of verbs and nouns. warn: called with
    warnings, which don't prevent writing. Raises FileError with all problems.
    """
    # Refuses an output that is one of the inputs before anything is read.
    with files_to_write([output], [path for path in (detections, nouns, *(ids or ())) if path is not None]):
        results = read_detections(detections)
        match form:
            case "activitynet":
                content = activitynet(results, external)
            case "ego4d":
                content = ego4d(results)
            case "epic":
                content = epic(results, read_detections(nouns), *(read_ids(path) for path in ids))
        # What was built above goes through the same checks as any file.
        wrong = problems(form, content, expected)
        if wrong:
            lines = "\n  " + listed(wrong, MAX_LISTED, "\n  ")
            raise FileError(f"{detections}: can't be submitted as {form}, {len(wrong)} problems:{lines}")
    write_json(output, content, indent=None)
    results = content["detect_results" if form == "ego4d" else "results"]
    for line in repeated_detection_warnings({"results": results}):
        warn(line)
    return sum(map(len, results.values()))
