"""The annotation file of ActivityNet, OpenTAD and this project: JSON with a database of videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adatad.labels.json_values import as_list, as_object, as_text, whole
from adatad.labels.names import one_line
from adatad.labels.reading import Reading
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.ticks import in_order
from adatad.labels.values import brief, number


def write_activitynet(videos: Sequence[VideoLabels]) -> str:
    """Return {"database": {name: {duration, annotations: [{segment, label, score}]}}}, times as exact as they are."""
    return json.dumps({"database": {one_line(video.name): _entry(video) for video in videos}}, indent=1)


def _entry(video: VideoLabels) -> dict[str, Any]:
    facts = {
        "subset": video.subset, "duration": video.duration_seconds, "fps": video.fps, "frame": video.frame_count,
        "file": video.file and one_line(video.file),
    }  # fmt: skip
    known = {key: value for key, value in facts.items() if value is not None}
    return {**known, "annotations": [_item(segment) for segment in in_order(video.segments)]}


def _item(segment: Segment) -> dict[str, Any]:
    item: dict[str, Any] = {
        "segment": [segment.start_seconds, segment.end_seconds],
        "label": one_line(segment.label),
    }
    return item if segment.score is None else {**item, "score": segment.score}


def read_activitynet(reading: Reading, content: dict[str, Any]) -> None:
    """Read a database of videos, or the results of a detector by video: {"results": {name: [{segment, label}]}}.

    Segments are cut at the video's start; those that lie wholly before it are left out.
    """
    for name, entry in as_object(content.get("database") or content.get("results")).items():
        # Files of results have the list itself under a video's name.
        if isinstance(entry, list):
            entry = {"annotations": entry}
        if not isinstance(entry, dict):
            reading.problems.append(f"video {name!r}: expected an object with its annotations, got {brief(entry)}")
            continue
        file = as_text(entry.get("file"))
        reading.video(
            name, name=name, file=file or None, duration_seconds=number(entry.get("duration")),
            fps=number(entry.get("fps")), frame_count=whole(entry.get("frame")),
            subset=as_text(entry.get("subset")) or None,
        )  # fmt: skip
        items = entry.get("annotations")
        if not isinstance(items, (list, type(None))):
            reading.problems.append(f"video {name!r}: expected a list of annotations, got {brief(items)}")
        for place, item in enumerate(as_list(items), 1):
            _read_item(reading, name, f"video {name!r}, annotation {place}", item)


def _read_item(reading: Reading, name: str, where: str, item: Any) -> None:
    segment = as_object(item).get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        reading.problems.append(f'{where}: expected {{"segment": [start, end], "label": name}}, got {brief(item)}')
        return
    start, end = number(segment[0]), number(segment[1])
    if start is not None and end is not None and start < 0 and start < end:
        if end <= 0:
            reading.leave_out("segments wholly before the video's start", where)
            return
        reading.leave_out("parts of segments before the video's start", where)
        start = 0.0
    score = item.get("score")
    reading.add(name, where, item.get("label"), segment[0] if start is None else start, segment[1], score)
