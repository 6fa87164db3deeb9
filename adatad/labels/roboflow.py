"""Roboflow's JSON of segments in frames, counted from 0, both ends included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adatad.labels.json_values import first_text, whole
from adatad.labels.names import one_line
from adatad.labels.reading import Reading
from adatad.labels.records import VideoLabels
from adatad.labels.ticks import in_order, in_ticks, rate_of
from adatad.labels.values import number

VIDEO_KEYS = ("video", "video_name", "file_name", "filename", "file", "path", "source", "name", "url")
"""Keys under which an object names its video."""
SEGMENT_KEYS = {"start_frame_idx", "end_frame_idx"}


def write_roboflow(videos: Sequence[VideoLabels]) -> str:
    """Return a list of videos with their segments. Raises LabelError for a video of unknown frame rate."""
    labels = sorted({one_line(segment.label) for video in videos for segment in video.segments})
    numbers = {label: number for number, label in enumerate(labels)}
    return json.dumps([_video(video, numbers) for video in videos], ensure_ascii=False, indent=1)


def _video(video: VideoLabels, numbers: dict[str, int]) -> dict[str, Any]:
    fps = rate_of(video, "roboflow")
    items = []
    for segment in in_order(video.segments):
        start, end = in_ticks(segment, fps)
        label = one_line(segment.label)
        item = {"start_frame_idx": start, "end_frame_idx": end - 1, "class": label, "class_id": numbers[label]}
        items.append(item if segment.score is None else {**item, "confidence": segment.score})
    return {"video": one_line(video.file or video.name), "fps": fps, "annotations": items}


def read_roboflow(reading: Reading, content: Any) -> None:
    """Read segments by `start_frame_idx` and `end_frame_idx`, which stand in lists anywhere in the file.

    The video is what the nearest object around them names, or the file of labels itself.
    """
    reading.notes.append("frames are counted from 0, and the last one belongs to its segment")
    # A list of what is still to do, since files may be nested deeper than functions may call themselves.
    to_do: list[tuple[Any, str, Any, str]] = [(content, reading.path.stem, None, "")]
    while to_do:
        part, file, fps, where = to_do.pop()
        if isinstance(part, list):
            inner = [(one, file, fps, f"{where} {place}") for place, one in enumerate(part, 1)]
        elif isinstance(part, dict):
            named = first_text(part, *VIDEO_KEYS)
            file, fps = named or file, part.get("fps", part.get("frame_rate", fps))
            if SEGMENT_KEYS & set(part):
                _read_segment(reading, file, fps, f"item{where}", part)
            elif named:
                reading.video(file, frame_count=whole(part.get("frame_count")))
            inner = [(one, file, fps, f"{where} {key}") for key, one in part.items()]
        else:
            continue
        # Backwards: the last one of the list is the next one.
        to_do += reversed(inner)


def _read_segment(reading: Reading, file: str, fps: Any, where: str, item: dict[str, Any]) -> None:
    label = item.get("class", item.get("class_name", item.get("label")))
    first, last = item.get("start_frame_idx"), number(item.get("end_frame_idx"))
    after = item.get("end_frame_idx") if last is None else last + 1
    reading.add_frames(file, where, label, (first, after), fps, item.get("confidence"))
