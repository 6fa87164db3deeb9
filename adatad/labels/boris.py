"""BORIS: a project in JSON, in which a segment is a pair of events of a state."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from adatad.files import listed
from adatad.labels.json_values import as_list, as_object, as_text
from adatad.labels.names import one_line
from adatad.labels.reading import Reading
from adatad.labels.records import VideoLabels
from adatad.labels.score_text import score_text
from adatad.labels.ticks import by_label, in_ticks, in_tracks
from adatad.labels.values import brief, number

PER_SECOND = 1000
"""BORIS keeps milliseconds."""
FIXED_DATE = "1970-01-01T00:00:00"
"""The form wants a date; a fixed one makes equal labels equal files."""
STATE = "State event"
PLAYERS = tuple("12345678")
"""Places for media that play side by side."""
SCORE = "score "
"""Comment of a start event that has a score."""


def write_boris(videos: Sequence[VideoLabels]) -> str:
    """Return a whole project, the only way by which BORIS takes events: an observation a video, a state a class.

    Segments of a class that overlap go to further subjects, "2" and so on: BORIS pairs starts and stops by subject and
    behaviour. Scores stand in the comments of the starts.
    """
    labels = sorted({one_line(segment.label) for video in videos for segment in video.segments})
    subjects = 1
    observations: dict[str, Any] = {}
    for video in videos:
        events, used = _events(video)
        subjects = max(subjects, used)
        observations[one_line(video.name)] = _observation(video, events)
    project = {
        "time_format": "hh:mm:ss", "project_date": FIXED_DATE, "project_name": "AdaTAD", "project_description": "",
        "project_format_version": "7.0",
        "subjects_conf": {
            str(number): {"key": "", "name": str(number + 2), "description": "segments that overlap"}
            for number in range(subjects - 1)
        },
        "behaviors_conf": {str(number): _behavior(label) for number, label in enumerate(labels)},
        "observations": observations, "behavioral_categories": [], "behavioral_categories_config": {},
        "independent_variables": {}, "coding_map": {}, "behaviors_coding_map": [], "converters": {},
    }  # fmt: skip
    return json.dumps(project, ensure_ascii=False, indent=1)


def _events(video: VideoLabels) -> tuple[list[list[Any]], int]:
    """Return rows of events, [seconds, subject, behaviour, modifiers, comment, frame], and the number of subjects."""
    rows: list[tuple[int, int, list[Any]]] = []
    subjects = 1
    for label, segments in by_label(video.segments).items():
        tracks = in_tracks(segments, PER_SECOND)
        subjects = max(subjects, len(tracks))
        for place, track in enumerate(tracks, 1):
            # An empty subject is BORIS' "No focal subject".
            subject = "" if place == 1 else str(place)
            for segment in track:
                comment = "" if segment.score is None else SCORE + score_text(segment.score)
                for turn, time in enumerate(in_ticks(segment, PER_SECOND)):
                    frame = round(time / PER_SECOND * video.fps) if video.fps else "NA"
                    row = [time / PER_SECOND, subject, label, "", "" if turn else comment, frame]
                    # At equal times a stop goes before a start, as pairs are made in this order.
                    rows.append((time, 1 - turn, row))
    return [row for _, _, row in sorted(rows, key=lambda entry: (entry[0], entry[1], entry[2][1:5]))], subjects


def _observation(video: VideoLabels, events: list[list[Any]]) -> dict[str, Any]:
    file = one_line(video.file or video.name)
    last = max((segment.end_seconds for segment in video.segments), default=0.0)
    length = video.duration_seconds or last
    return {
        "file": {player: [file] if player == "1" else [] for player in PLAYERS},
        "type": "MEDIA", "date": FIXED_DATE, "description": "", "time offset": 0.0, "events": events,
        "observation time interval": [0, 0], "independent_variables": {}, "visualize_spectrogram": False,
        "visualize_waveform": False, "media_creation_date_as_offset": False, "media_scan_sampling_duration": 0,
        "image_display_duration": 1, "close_behaviors_between_videos": False,
        "media_info": {
            "length": {file: length}, "fps": {file: video.fps} if video.fps else {}, "hasVideo": {file: True},
            "hasAudio": {file: False}, "offset": {"1": 0.0},
        },
    }  # fmt: skip


def _behavior(label: str) -> dict[str, str]:
    return {
        "type": STATE, "key": "", "code": label, "description": "", "color": "", "category": "", "modifiers": "",
        "excluded": "", "coding map": "",
    }  # fmt: skip


class BehaviorEvent(NamedTuple):
    """An event of an observation. seconds: of all its media, one after the other; turn: "START", "STOP" or "POINT",
    empty where only the order tells."""

    where: str
    seconds: float
    subject: str
    behavior: str
    modifiers: str
    comment: str
    turn: str = ""


def read_boris(reading: Reading, content: dict[str, Any]) -> None:
    """Read the observations of a project: pairs of events of a state, by subject, behaviour and modifiers."""
    points = {
        as_text(one.get("code"))
        for one in map(as_object, as_object(content.get("behaviors_conf")).values())
        if as_text(one.get("type")).casefold().startswith("point")
    }
    for name, observation in as_object(content.get("observations")).items():
        observation = as_object(observation)
        media = _media(reading, name, observation)
        offset = number(observation.get("time offset")) or 0.0
        if offset:
            reading.count("observations whose time offset was taken off their times", f"{name} ({offset:g} s)")
        events = []
        for place, row in enumerate(as_list(observation.get("events")), 1):
            where = f"observation {name!r}, event {place}"
            row = as_list(row)
            seconds = number(row[0]) if len(row) >= 3 else None
            if seconds is None or not math.isfinite(seconds):
                reading.problems.append(f"{where}: expected [time, subject, behaviour, ...], got {brief(row)}")
                continue
            subject, behavior, modifiers, comment = (as_text(part) for part in (*row[1:5], "", "")[:4])
            turn = "POINT" if behavior in points else ""
            events.append(BehaviorEvent(where, seconds - offset, subject, behavior, modifiers, comment, turn))
        add_events(reading, media, events)


def _media(reading: Reading, name: str, observation: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Return the media of an observation that run one after the other, with their lengths in seconds."""
    players = as_object(observation.get("file"))
    lists = [[as_text(one) for one in as_list(players.get(player)) if as_text(one)] for player in PLAYERS]
    lists = [one for one in lists if one]
    if not lists:
        reading.count("observations without media, taken for the names of their videos", name)
        return [(reading.video(name), None)]
    if len(lists) > 1:
        reading.leave_out("media that play beside others", f"observation {name!r} {listed(lists[1])}")
    info = as_object(observation.get("media_info"))
    lengths, rates = as_object(info.get("length")), as_object(info.get("fps"))
    for file in lists[0]:
        reading.video(file, duration_seconds=known_length(lengths.get(file)), fps=known_length(rates.get(file)))
    return [(file, known_length(lengths.get(file))) for file in lists[0]]


def known_length(value: Any) -> float | None:
    """Return a length in seconds; None for what is none."""
    seconds = number(value)
    return seconds if seconds is not None and math.isfinite(seconds) and seconds > 0 else None


def add_events(reading: Reading, media: list[tuple[str, float | None]], events: list[BehaviorEvent]) -> None:
    """Pair starts and stops in order of time, and add them. A start without a stop is a problem."""
    begun: dict[tuple[str, str, str], BehaviorEvent] = {}
    lone_stops: dict[tuple[str, str, str], list[BehaviorEvent]] = {}
    # At equal times the order of the file holds, but a stop that is called so goes first: a state may begin again.
    for event in sorted(events, key=lambda event: (event.seconds, event.turn != "STOP")):
        key = (event.subject, event.behavior, event.modifiers)
        if event.turn == "POINT":
            add_pair(reading, media, event, event)
        elif event.turn == "STOP" and key not in begun:
            lone_stops.setdefault(key, []).append(event)
        elif event.turn == "START" and lone_stops.get(key) and lone_stops[key][-1].seconds == event.seconds:
            # A state that begins and ends at one time.
            add_pair(reading, media, event, lone_stops[key].pop())
        elif event.turn != "START" and key in begun:
            add_pair(reading, media, begun.pop(key), event)
        else:
            if key in begun:
                reading.problems.append(_unpaired(begun[key]))
            begun[key] = event
    reading.problems += [
        f"{stop.where}: {_named(stop)} stops at {stop.seconds:g} s without a start"
        for stops in lone_stops.values()
        for stop in stops
    ]
    reading.problems += map(_unpaired, begun.values())
    subjects = {event.subject for event in events}
    if len(subjects) > 1:
        reading.count("videos in which several subjects are taken together", f"{media[0][0]} ({len(subjects)})")
    if any(event.modifiers not in ("", "None") for event in events):
        reading.leave_out("modifiers of behaviours", str(sum(event.modifiers not in ("", "None") for event in events)))


def _unpaired(event: BehaviorEvent) -> str:
    return (
        f"{event.where}: {_named(event)} starts at {event.seconds:g} s without a stop: an event is missing or too many "
        "(BORIS lists them under Observations, Check state events)"
    )


def _named(event: BehaviorEvent) -> str:
    return f"{event.behavior!r}" + (f" of {event.subject!r}" if event.subject else "")


def add_pair(
    reading: Reading, media: list[tuple[str, float | None]], start: BehaviorEvent, stop: BehaviorEvent
) -> None:
    """Add a segment to the media files that it lies in, cut where one ends and the next begins."""
    score = number(start.comment.removeprefix(SCORE)) if start.comment.startswith(SCORE) else None
    begin = 0.0
    for place, (file, length) in enumerate(media):
        is_last = place == len(media) - 1
        if length is None and not is_last:
            reading.problems.append(f"{start.where}: the length of {file!r} isn't known, and media follow it")
            return
        end = math.inf if length is None or is_last else begin + length
        # A time before the first file isn't cut: it is a wrong one, which `add` refuses.
        least = begin if place else -math.inf
        if start.seconds < end and (stop.seconds > least or start.seconds == stop.seconds >= least):
            times = [_precise(time - begin) for time in (max(start.seconds, least), min(stop.seconds, end))]
            if start.turn == "POINT":
                reading.add_moment(file, start.where, start.behavior, times[0], score)
            else:
                reading.add(file, start.where, start.behavior, *times, score)
            if stop.seconds > end:
                reading.count("segments that were cut where a file ends and the next begins", start.where)
        begin = end


def _precise(seconds: float) -> float:
    """Return seconds to a nanosecond: the rounding error of a difference must not show in files."""
    return round(seconds, 9)
