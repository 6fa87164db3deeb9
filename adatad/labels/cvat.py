"""CVAT, which has no segments: people take tracks over the whole frame, or a tag a frame. XML 1.1 and Datumaro's JSON.

Frames are those of the video, counted from 0; a task may show only every n-th of a part of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

from adatad.labels.json_values import as_list, as_object, as_text
from adatad.labels.names import one_line
from adatad.labels.problems import LabelError
from adatad.labels.reading import Reading
from adatad.labels.records import VideoLabels
from adatad.labels.ticks import by_label, in_ticks, rate_of
from adatad.labels.values import brief
from adatad.labels.xml_text import parse_xml

MAX_TAGS = 5_000_000
"""Tags in a written file, some 300 MB."""
STEP = re.compile(r"step\s*=\s*(\d{1,6})")
FRAME_NAME = re.compile(r"frame_(\d{1,9})(?:\.\w+)?")
"""What CVAT calls a frame of a video, by the video's own count."""
FRAME_IN_NAME = re.compile(r"(\d{1,9})(?=\D*$)")


def write_cvat(video: VideoLabels) -> str:
    """Return a video's segments as tags of frames, XML 1.1: CVAT has no segments, and tracks would want a size.

    Segments of a class that touch or overlap become one, and scores are lost. Raises LabelError for a video of unknown
    frame rate, and for too many frames.
    """
    fps = rate_of(video, "cvat")
    # A wrong time must not fill the memory.
    count = sum(end - start for start, end in (in_ticks(segment, fps) for segment in video.segments))
    if count > MAX_TAGS:
        problem = f"video {video.name!r}: {count:,} frames would have a tag, at most {MAX_TAGS:,} are written"
        raise LabelError("cvat", [problem])
    labels_at: dict[int, list[str]] = defaultdict(list)
    for label, segments in by_label(video.segments).items():
        for frame in sorted({frame for segment in segments for frame in range(*in_ticks(segment, fps))}):
            labels_at[frame].append(label)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    size = max(video.frame_count or 0, max(labels_at, default=0) + 1)
    source = video.file or video.name
    facts = {"name": video.name, "size": size, "start_frame": 0, "stop_frame": size - 1, "source": source}
    for key, value in facts.items():
        ElementTree.SubElement(task, key).text = one_line(str(value))
    for frame, labels in sorted(labels_at.items()):
        image = ElementTree.SubElement(root, "image", {"id": str(frame), "name": f"frame_{frame:06d}"})
        for label in labels:
            ElementTree.SubElement(image, "tag", {"label": label, "source": "auto"})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


class CvatTask(NamedTuple):
    """A task. first, last: frames of the video that it shows, by a step; last is None where nobody says it;
    is_own_count: the file counts the task's frames, from 0, instead of the video's."""

    file: str
    first: int
    last: int | None
    step: int
    is_own_count: bool

    def video_frame(self, frame: int) -> int:
        """Return a frame in the file as a frame of the video."""
        return self.first + frame * self.step if self.is_own_count else frame


def read_cvat(reading: Reading, text: str) -> None:
    """Read tracks, each visible part of which is a segment, and tags, of which a run of frames is one."""
    root = parse_xml(text, reading.path)
    count = sum(1 for _ in root.iter("task"))
    if count > 1:
        raise LabelError(reading.path, [f"holds {count} tasks; export each of them for itself"])
    task = _task(reading, root)
    for number, track in enumerate(root.iter("track")):
        _read_track(reading, task, track, f"track {track.get('id', number)}")
    tags: dict[str, set[int]] = defaultdict(set)
    for image in root.iter("image"):
        named = FRAME_NAME.fullmatch(PurePosixPath(image.get("name", "")).name)
        frame = int(named[1]) if named else _frame(reading, task, image, "id", "image")
        for part in image:
            if part.tag != "tag":
                reading.leave_out("shapes in single frames", f"image {image.get('id')}")
            elif frame is not None:
                tags[part.get("label", "")].add(frame)
    for tag in root.findall("tag"):
        frame = _frame(reading, task, tag, "frame", "tag")
        if frame is not None:
            tags[tag.get("label", "")].add(frame)
    for label, frames in tags.items():
        for part in runs(frames, task.step):
            reading.add_frames(task.file, f"tag {label!r}, frame {part[0]}", label, part, None)


def _task(reading: Reading, root: ElementTree.Element) -> CvatTask:
    """Return what the file says of its task, and say it where the task shows a part of the video alone."""
    found = next((part for name in ("task", "job") for part in root.iter(name)), None)
    facts = {} if found is None else {part.tag: (part.text or "").strip() for part in found}
    file = reading.video((root.findtext(".//source") or facts.get("name") or reading.path.stem).strip())
    told = STEP.search(facts.get("frame_filter", ""))
    step, first = max(1, int(told[1])) if told else 1, _whole(facts.get("start_frame")) or 0
    last, size = _whole(facts.get("stop_frame")), _whole(facts.get("size"))
    if last is None and size:
        last = first + (size - 1) * step
    # A frame before the task's first can only be one of the task's own count.
    counted = [_whole(part.get("frame")) for part in root.iter() if part.get("frame")]
    is_own_count = any(frame is not None and frame < first for frame in counted)
    if first or step > 1:
        whose = "the task counts them, from 0" if is_own_count else "the video counts them"
        shown = f"every frame from {first} on" if step == 1 else f"one frame of {step} from {first} on"
        reading.notes.append(f"the task shows {shown}; frames are taken as {whose}")
    return CvatTask(file, first, last, step, is_own_count)


def _read_track(reading: Reading, task: CvatTask, track: ElementTree.Element, where: str) -> None:
    is_shown: dict[int, bool] = {}
    for shape in track:
        frame = _frame(reading, task, shape, "frame", where)
        if frame is not None:
            is_shown[frame] = shape.get("outside") != "1"
    for begin, after in _visible(is_shown, task.last, task.step):
        if after is None:
            reading.problems.append(f"{where}: doesn't end, and the file doesn't say how long the task is")
        else:
            reading.add_frames(task.file, where, track.get("label"), (begin, after), None)


def _frame(reading: Reading, task: CvatTask, part: ElementTree.Element, key: str, where: str) -> int | None:
    """Return the frame of the video that a part names; None, and a problem, where it names none."""
    frame = _whole(part.get(key))
    if frame is None:
        reading.problems.append(f"{where}: expected the number of a frame as {key}, got {brief(part.get(key))}")
        return None
    return task.video_frame(frame)


def _visible(shown: dict[int, bool], end: int | None, step: int) -> list[tuple[int, int | None]]:
    """Return (first frame, frame after the last) of each visible part of a track.

    shown: whether it is visible from a frame on; end: the last frame of the task, None if unknown.
    """
    parts: list[tuple[int, int | None]] = []
    begin = None
    for frame, is_visible in sorted(shown.items()):
        if is_visible and begin is None:
            begin = frame
        elif not is_visible and begin is not None:
            parts.append((begin, frame))
            begin = None
    if begin is not None:
        parts.append((begin, None if end is None else max(end, begin) + step))
    return parts


def runs(frames: set[int], step: int = 1) -> list[tuple[int, int]]:
    """Return (first frame, frame after the last) of runs of frames that follow each other by a step."""
    found: list[tuple[int, int]] = []
    for frame in sorted(frames):
        if found and frame <= found[-1][1]:
            found[-1] = (found[-1][0], frame + step)
        else:
            found.append((frame, frame + step))
    return found


def read_datumaro(reading: Reading, content: dict[str, Any]) -> None:
    """Read labels of frames and boxes of tracks from Datumaro's JSON: a run of frames is a segment."""
    names = [
        as_text(as_object(one).get("name"))
        for one in as_list(as_object(as_object(content.get("categories")).get("label")).get("labels"))
    ]
    frames: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    seen: dict[str, set[int]] = defaultdict(set)
    for place, item in enumerate(as_list(content.get("items")), 1):
        item = as_object(item)
        file, frame = _frame_of(reading, item, place)
        if frame is None:
            continue
        seen[file].add(frame)
        for count, one in enumerate(as_list(item.get("annotations")), 1):
            one = as_object(one)
            number, more = one.get("label_id"), as_object(one.get("attributes"))
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(names):
                reading.problems.append(f"item {place}, annotation {count}: label_id {number!r} names no category")
            elif one.get("type") == "label" or "track_id" in more:
                if not more.get("outside"):
                    frames[file, names[number], as_text(more.get("track_id"))].add(frame)
            else:
                reading.leave_out("shapes that belong to no track", f"item {place}")
    for (file, label, track), those in frames.items():
        step = _step(seen[file])
        for begin, after in runs(those, step):
            where = f"{label!r}" + (f", track {track}" if track else "") + f", frame {begin}"
            reading.add_frames(file, where, label, (begin, after), None)


def _frame_of(reading: Reading, item: dict[str, Any], place: int) -> tuple[str, int | None]:
    """Return the video and the frame of an item; None, and a problem, where it has no number."""
    name = as_text(item.get("id")) or f"item {place}"
    media = as_object(item.get("video") or item.get("media"))
    frame = as_object(item.get("attr")).get("frame", media.get("frame_index"))
    folder = str(PurePosixPath(name).parent)
    file = as_text(media.get("path")) if "frame_index" in media else ""
    file = reading.video(file or (folder if folder != "." else reading.path.stem))
    if isinstance(frame, int) and not isinstance(frame, bool) and frame >= 0:
        return file, frame
    found = FRAME_IN_NAME.search(PurePosixPath(name).name)
    if not found:
        reading.problems.append(f"item {place}: expected the number of a frame, got {name!r}")
    return file, int(found[1]) if found else None


def _step(frames: set[int]) -> int:
    """Return the step by which the frames of a task follow each other: the least between two of them."""
    ordered = sorted(frames)
    return min((b - a for a, b in pairwise(ordered)), default=1)


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\s*\d{1,9}\s*", text) else None
