"""OSL JSON 2.0 (SoccerNet): events at a moment; they are segments only by a length that the user gives."""

from __future__ import annotations

from typing import Any

from adatad.labels.json_values import as_list, as_object, as_text, first_text
from adatad.labels.reading import Reading
from adatad.labels.values import brief, number


def read_osl(reading: Reading, content: dict[str, Any]) -> None:
    """Read the events of all videos, each with a label and `position_ms`, milliseconds."""
    for place, item in enumerate(as_list(content.get("data")), 1):
        item = as_object(item)
        inputs = [as_object(one) for one in as_list(item.get("inputs"))]
        videos = [one for one in inputs if one.get("type", "video") == "video"]
        name = first_text(item, "id", "video_id", "name") or f"video {place}"
        file = first_text(videos[0], "path", "name", "url") if videos else ""
        file = reading.video(file or name, fps=number(videos[0].get("fps")) if videos else None)
        if len(videos) > 1:
            reading.leave_out("further views of a video", name)
        for count, event in enumerate(as_list(item.get("events")), 1):
            event = as_object(event)
            head = as_text(event.get("head"))
            where = f"{name}, event {count}" + (f" of {head}" if head else "")
            time = number(event.get("position_ms"))
            if time is None:
                reading.problems.append(f'{where}: expected "position_ms", milliseconds, got {brief(event)}')
            else:
                score = event.get("confidence", event.get("score"))
                reading.add_moment(file, where, event.get("label"), time / 1000, score)
