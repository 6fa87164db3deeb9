"""FiftyOne's JSON of temporal detections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adatad.labels.json_values import as_list, as_object, first_text, whole
from adatad.labels.names import one_line
from adatad.labels.reading import Reading
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.ticks import in_order, seconds_rounded
from adatad.labels.values import brief, number


def write_fiftyone(videos: Sequence[VideoLabels]) -> str:
    """Return labels.json of FiftyOne's temporal detection data set: times in seconds, so that no rate is needed."""
    labels = {one_line(video.name): [_item(segment) for segment in in_order(video.segments)] for video in videos}
    return json.dumps({"labels": labels}, ensure_ascii=False, indent=1)


def _item(segment: Segment) -> dict[str, Any]:
    item: dict[str, Any] = {"label": one_line(segment.label), "timestamps": list(seconds_rounded(segment))}
    return item if segment.score is None else {**item, "attributes": {"confidence": segment.score}}


def read_fiftyone(reading: Reading, content: dict[str, Any]) -> None:
    """Read a temporal detection data set ("labels" by sample), or exported samples with `TemporalDetections`.

    `support` counts frames from 1, both ends included; `timestamps` are seconds.
    """
    classes = as_list(content.get("classes"))
    for name, items in as_object(content.get("labels")).items():
        reading.video(name)
        for place, item in enumerate(as_list(items), 1):
            _read_item(reading, name, f"sample {name!r}, label {place}", as_object(item), classes, None)
    for place, sample in enumerate(as_list(content.get("samples")), 1):
        sample = as_object(sample)
        file = first_text(sample, "filepath", "name", "id") or f"sample {place}"
        facts = as_object(sample.get("metadata"))
        reading.video(
            file, duration_seconds=number(facts.get("duration")), frame_count=whole(facts.get("total_frame_count"))
        )
        for key, field in sample.items():
            for count, item in enumerate(as_list(as_object(field).get("detections")), 1):
                # Boxes stand under the same key.
                if {"support", "timestamps"} & set(as_object(item)):
                    where = f"sample {file!r}, {key} {count}"
                    _read_item(reading, file, where, item, classes, facts.get("frame_rate"))


def _read_item(reading: Reading, file: str, where: str, item: dict[str, Any], classes: list[Any], fps: Any) -> None:
    label = item.get("label")
    # With a list of classes, labels may be places in it.
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        label = classes[label]
    score = item.get("confidence", as_object(item.get("attributes")).get("confidence"))
    times, frames = as_list(item.get("timestamps")), as_list(item.get("support"))
    if len(times) == 2:
        reading.add(file, where, label, *times, score)
    elif len(frames) == 2 and all(number(frame) is not None for frame in frames):
        first, last = (number(frame) for frame in frames)
        if first < 1:
            reading.problems.append(f"{where}: begins at frame {first:g}; frames of support count from 1")
        else:
            reading.add_frames(file, where, label, (first - 1, last), fps, score)
    else:
        reading.problems.append(f'{where}: expected "support": [first frame, last frame], got {brief(item)}')
