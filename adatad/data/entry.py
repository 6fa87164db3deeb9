"""Entries of an annotation file, one a video: which values are valid, and messages for those that aren't.

Training, evaluation, the summary and the data check all use these rules, so that none accepts what another refuses.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, NamedTuple

from adatad.data.annotation_file import AMBIGUOUS, AnnotationError
from adatad.files import shown
from adatad.labels.values import MAX_FPS, MAX_SECONDS, brief, has_control_characters, is_visible, number
from adatad.spec.data_sections import DataSpec
from adatad.spec.text import file_name_problem

# Nanoseconds or bytes in the place of frames are above it.
MAX_FRAMES = 10**9
MAX_NAME_BYTES = 255
"""Longest name of a file or folder on all common file systems."""
PAST_END_SECONDS = 0.01
"""Seconds by which an instance must leave its video to be counted: durations are given to hundredths of a second."""
UNREADABLE, UNKNOWN_LABEL, OUT_OF_RANGE, LEFT_OUT = (
    "unreadable annotations",
    "unknown label",
    "label out of range",
    "instance left out",
)
"""Kinds of problems: training refuses the first two, and counts and warns about the others."""
REFUSED = (UNREADABLE, UNKNOWN_LABEL)


class EntryProblem(NamedTuple):
    """Problem of an entry. kind: one of those above; text: the problem, without file and video; label: the unknown
    label."""

    kind: str
    text: str
    label: str | int | None = None


class Length(NamedTuple):
    """Length of a video according to its annotations. counted: they give `frames`; otherwise the count follows from a
    rate."""

    duration_seconds: float
    fps: float
    frames: int
    counted: bool


def entry_problems(spec: DataSpec, name: str, entry: dict[str, Any], labels: Container[Any]) -> list[EntryProblem]:
    """Return everything wrong with a video's entry, as far as it shows without the video.

    labels: valid labels (`ClassList.numbers`). An instance that ends late is no problem here: only the video shows how
    late that is.
    """
    problems = [EntryProblem(UNREADABLE, text) for text in (name_problem(spec, name),) if text]
    try:
        read_length(spec, entry)
    except AnnotationError as error:
        problems.append(EntryProblem(UNREADABLE, str(error)))
    # Everything that is wrong, not the first alone: a file is then repaired in one go.
    items = entry.get("annotations")
    if not isinstance(items, (list, type(None))):
        return [*problems, EntryProblem(UNREADABLE, f"expected a list of annotations, got {brief(items)}")]
    for item in items or ():
        try:
            start, end, label = read_item(spec, item)
        except AnnotationError as error:
            problems.append(EntryProblem(UNREADABLE, str(error)))
            continue
        if label not in labels and label != AMBIGUOUS:
            problems.append(EntryProblem(UNKNOWN_LABEL, f"label {brief(label)} isn't in the class list", label))
        if not (math.isfinite(start) and math.isfinite(end)):
            problems.append(EntryProblem(LEFT_OUT, f"segment [{start:g}, {end:g}] has no finite ends"))
        elif end <= start:
            problems.append(EntryProblem(LEFT_OUT, f"segment [{start:g}, {end:g}] is empty: it ends where it begins"))
        elif end <= 0:
            problems.append(EntryProblem(OUT_OF_RANGE, f"{start:g} to {end:g} s lies wholly before the video's start"))
        elif start < -PAST_END_SECONDS:
            problems.append(EntryProblem(OUT_OF_RANGE, f"{start:g} to {end:g} s begins before the video does"))
    return problems


def name_problem(spec: DataSpec, name: str) -> str:
    """Return why a name can't be a video's, because no file system, text list or terminal takes it, or it leads out of
    the folder of videos; empty if it can."""
    if not is_visible(name):
        return "the video's name is empty"
    if has_control_characters(name):
        return f"the name '{shown(name)}' holds a line break or another control character"
    if any(len(part.encode()) > MAX_NAME_BYTES for part in spec.pattern.replace("{name}", name).split("/")):
        return f"the name makes a file name of more than {MAX_NAME_BYTES} bytes, which no file may have"
    problem = file_name_problem(spec.pattern, name)
    return f"the name '{shown(name)}' {problem}" if problem else ""


def read_length(spec: DataSpec, entry: dict[str, Any]) -> Length:
    """Return duration, rate and frames of a video. Raises AnnotationError, which names the key but not the video."""
    duration = number(entry.get("duration"))
    if duration is None or not 0 < duration <= MAX_SECONDS:
        raise AnnotationError(
            f'expected "duration" in seconds, more than 0 and at most {MAX_SECONDS:g}, got {_given(entry, "duration")}'
        )
    frames, fps = _number_or_nothing(entry, "frame", MAX_FRAMES), _number_or_nothing(entry, "fps", MAX_FPS)
    fps = spec.fps or fps
    # A frame count goes before a rate, since the reference computes the rate from it; `data.fps` goes before both.
    if spec.fps is None and int(frames):
        length = Length(duration, int(frames) / duration, int(frames), counted=True)
        if length.fps > MAX_FPS:
            raise AnnotationError(
                f'"frame" {int(frames)} in a "duration" of {duration:g} s would be {length.fps:g} frames a second'
            )
        return length
    if fps:
        length = Length(duration, float(fps), int(duration * fps), counted=False)
        if not length.frames:
            raise AnnotationError(f"lasts {duration:g} s, less than a frame at {fps:g} frames a second")
        return length
    # Windows of whole videos divide their duration: no rate is needed.
    if spec.window.kind == "resize":
        return Length(duration, 0.0, 0, counted=False)
    raise AnnotationError(
        'has neither "frame" (a count above 0) nor "fps"; set data.fps to the rate of the video files'
    )


def read_item(spec: DataSpec, item: Any) -> tuple[float, float, str | int]:
    """Return (start, end, label) of an annotation: seconds, maybe NaN or out of order, and a name or integer.

    Raises AnnotationError, which doesn't name the video.
    """
    if not isinstance(item, dict) or "segment" not in item or spec.label_key not in item:
        raise AnnotationError(
            f'expected {{"segment": [start, end], "{spec.label_key}": name}} (data.label_key names the label\'s key), '
            f"got {brief(item)}"
        )
    segment, label = item["segment"], label_of(item[spec.label_key])
    ends = [_time(value) for value in segment] if isinstance(segment, list) else []
    if len(ends) != 2 or None in ends:
        raise AnnotationError(
            f'expected {{"segment": [start, end], "{spec.label_key}": name}}, both in seconds and at most '
            f"{MAX_SECONDS:g}, got the segment {brief(segment)}"
        )
    if label is None:
        raise AnnotationError(
            f'expected {{"segment": [start, end], "{spec.label_key}": name}}: labels are names or whole numbers, got '
            f"{brief(item[spec.label_key])}"
        )
    return *ends, label


def label_of(value: Any) -> str | int | None:
    """Return a label as the class list has it; None for an invalid one.

    A float without a fraction (pandas writes 1.0 where a column has gaps) is that integer.
    """
    # A name, in nearly all files.
    if type(value) is str:
        return value if is_visible(value) and not has_control_characters(value) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    is_label = isinstance(value, (str, int)) and not isinstance(value, bool)
    return value if is_label and is_visible(str(value)) and not has_control_characters(str(value)) else None


def _given(entry: dict[str, Any], key: str) -> str:
    return brief(entry[key]) if key in entry else "none"


def _number_or_nothing(entry: dict[str, Any], key: str, most: float) -> float:
    """Return a number of the entry, 0 where it has none. Raises AnnotationError."""
    value = entry.get(key)
    found = 0.0 if value is None else number(value)
    if found is None or not 0 <= found <= most:
        raise AnnotationError(
            f'expected "frame" (a count) or "fps" (a rate), got {_given(entry, "frame")} and {_given(entry, "fps")}'
        )
    return found


def _time(value: Any) -> float | None:
    """Return seconds. NaN and infinity pass: such instances are counted, not refused."""
    found = number(value)
    return None if found is None or MAX_SECONDS < abs(found) < math.inf else found
