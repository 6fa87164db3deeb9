"""Label Studio's JSON: tasks with regions of TimelineLabels, which count frames from 1, both ends included."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from adatad.labels.json_values import as_list, as_object, as_text, first_text
from adatad.labels.names import SOUND_ENDINGS, VIDEO_ENDINGS, media_name, one_line
from adatad.labels.reading import Reading
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.ticks import in_order, in_ticks, rate_of
from adatad.labels.values import number

FROM_NAME, TO_NAME = "videoLabels", "video"
"""Names of the tags TimelineLabels and Video in the labelling interface."""
MODEL_VERSION = "adatad"
VIDEO_KEYS = ("video", "video_url", "url", "video_path", "file", "audio")
"""Keys of a task's data under which people have their video."""
LABEL_KEYS = ("timelinelabels", "videotimeline", "videolabels", "labels", "timeserieslabels")
UPLOADED = re.compile(r"/data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?(?P<name>[^/?]+)$")
LOCAL_FILE = re.compile(r"/data/local-files/\?d=(?P<path>[^&]+)")
"""Addresses that Label Studio gives to files on its own disk."""


def write_label_studio(videos: Sequence[VideoLabels]) -> str:
    """Return a task a video: its segments are a prediction if any has a score, and an annotation otherwise.

    The task's data hold the address of the video and its frame rate, which the tag takes by frameRate="$fps". Raises
    LabelError for a video of unknown frame rate.
    """
    return json.dumps([_task(video) for video in videos], ensure_ascii=False, indent=1)


def _task(video: VideoLabels) -> dict[str, Any]:
    fps = rate_of(video, "labelstudio")
    regions = [_region(segment, number, fps) for number, segment in enumerate(in_order(video.segments), 1)]
    task: dict[str, Any] = {"data": {"video": one_line(video.file or video.name), "fps": fps}}
    scores = [region["score"] for region in regions if "score" in region]
    if scores:
        score = sum(scores) / len(scores)
        task["predictions"] = [{"model_version": MODEL_VERSION, "score": score, "result": regions}]
    else:
        task["annotations"] = [{"result": regions}]
    return task


def _region(segment: Segment, number: int, fps: float) -> dict[str, Any]:
    start, end = in_ticks(segment, fps)
    region = {
        "id": f"segment{number}", "type": "timelinelabels", "from_name": FROM_NAME, "to_name": TO_NAME,
        "value": {"ranges": [{"start": start + 1, "end": end}], "timelinelabels": [one_line(segment.label)]},
    }  # fmt: skip
    return region if segment.score is None else {**region, "score": segment.score}


def read_label_studio(reading: Reading, content: Any) -> None:
    """Read exported tasks: regions of frames (TimelineLabels) and of seconds (labels of audio); also the short form
    JSON-MIN.

    Of several annotations of a task the ground truth or the first is read, predictions only where there is none.
    """
    tasks = content if isinstance(content, list) else [content]
    for place, task in enumerate(tasks, 1):
        task = as_object(task)
        name = f"task {as_text(task.get('id')) or place}"
        data = as_object(task.get("data")) or task
        file = _video_of(data)
        if not file:
            reading.problems.append(f"{name}: names no video; expected one under data, as {VIDEO_KEYS[0]!r}")
            continue
        fps = data.get("fps", data.get("frameRate", data.get("frame_rate")))
        reading.video(file, name=_uploaded_name(file))
        for where, region in _regions(reading, task, name):
            _read_region(reading, file, where, region, fps)


def _video_of(data: dict[str, Any]) -> str:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value.strip()}
    named = first_text(texts, *VIDEO_KEYS)
    if named:
        return named
    endings = (*VIDEO_ENDINGS, *SOUND_ENDINGS)
    return next((text for text in texts.values() if text.lower().split("?")[0].endswith(endings)), "")


def _uploaded_name(file: str) -> str | None:
    """Return a video's name without what Label Studio puts before uploaded and around local files."""
    uploaded = UPLOADED.search(file)
    if uploaded:
        return media_name(unquote(uploaded["name"]))
    local = LOCAL_FILE.search(file)
    return media_name("/" + unquote(local["path"])) if local else None


def _regions(reading: Reading, task: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the regions of a task that count, each with its place."""
    # "completions" were annotations before version 1.
    done = [as_object(one) for one in as_list(task.get("annotations", task.get("completions")))]
    canceled = [one for one in done if one.get("was_cancelled")]
    if canceled:
        reading.leave_out("annotations that were skipped", name)
    done = sorted((one for one in done if one not in canceled), key=lambda one: not one.get("ground_truth"))
    guesses = [as_object(one) for one in as_list(task.get("predictions"))]
    if len(done) > 1:
        reading.leave_out("further annotations of a task", f"{name} {len(done) - 1}")
    if done and any(as_list(guess.get("result")) for guess in guesses):
        reading.leave_out("predictions of tasks that have annotations", name)
    elif len(guesses) > 1:
        reading.leave_out("further predictions of a task", f"{name} {len(guesses) - 1}")
    chosen = done or guesses
    if chosen:
        regions = as_list(chosen[0].get("result"))
    else:
        # JSON-MIN: lists of regions stand in the task, under the names of their tags.
        lists = [value for key, value in task.items() if key != "data" and isinstance(value, list)]
        regions = [region for one in lists for region in one if isinstance(region, dict)]
    found = [as_object(region) for region in regions]
    return [(f"{name}, region {as_text(region.get('id')) or n}", region) for n, region in enumerate(found, 1)]


def _read_region(reading: Reading, file: str, where: str, region: dict[str, Any], fps: Any) -> None:
    value = as_object(region.get("value")) or region
    kind = as_text(region.get("type")).lower()
    labels = next((as_list(value[key]) for key in (kind, *LABEL_KEYS) if as_list(value.get(key))), [])
    ranges, score = as_list(value.get("ranges")), region.get("score")
    if not ranges and ("sequence" in value or not {"start", "end"} & set(value)):
        reading.leave_out("regions that are no segments, such as boxes and choices", where)
        return
    if not labels:
        reading.problems.append(f"{where}: has no label")
    for label in labels:
        if not ranges:
            reading.add(file, where, label, value.get("start"), value.get("end"), score)
        # Both ends belong to a range that counts from 1: frame 1 to 25 is the first second at 25 a second.
        for one in map(as_object, ranges):
            first = number(one.get("start"))
            before = one.get("start") if first is None else first - 1
            reading.add_frames(file, where, label, (before, one.get("end")), fps, score)
