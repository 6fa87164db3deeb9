"""Official annotation files of public data sets into the form that specs read.

Videos are left out where the reference's own annotation files leave them out. Of instances nothing is dropped but
copies: what is short, late or ambiguous is dropped, and counted, when a spec reads the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adatad.data.annotation_file import AMBIGUOUS, load_database
from adatad.data.verify import seconds_of
from adatad.data.video_index import Heartbeat, read_index
from adatad.errors import UserError
from adatad.files import replacing

Database = dict[str, dict[str, Any]]
EPIC_SUBSETS = {"EPIC_100_train.csv": "train", "EPIC_100_validation.csv": "val"}
EPIC_TEST = "EPIC_100_test_timestamps.csv"
CHARADES_SUBSETS = {"Charades_v1_train.csv": "training", "Charades_v1_test.csv": "testing"}
EGO4D_FILES = ("moments_train.json", "moments_val.json", "moments_test_unannotated.json")
EGO4D_RATES = (10, 100)
"""Frames per second of a clip; others come from wrong frame numbers, and the reference leaves them out too."""
THUMOS_SUBSETS = {"video_validation_": "training", "video_test_": "validation"}
THUMOS_LEFT_OUT = ("video_test_0000270", "video_test_0001292")
"""Test videos that AdaTAD isn't scored on: one is marked far past its end, the other holds nothing but "Ambiguous"."""
NAMED = 10
"""Videos that an error names; it counts the rest."""


class OfficialError(UserError):
    """An official file that isn't as expected; the message names it and the line or key."""


def activitynet(path: Path) -> tuple[Database, list[str]]:
    """Out of the JSON file of ActivityNet-1.3, or of HACS' segments, which has its form, with durations as text."""
    database: Database = {}
    for name, entry in load_database(str(path)).items():
        try:
            items = [
                {"segment": [float(end) for end in item["segment"]], "label": str(item["label"])}
                for item in entry.get("annotations") or ()
            ]
            duration = float(entry["duration"])
            database[name] = {"subset": str(entry["subset"]), "duration": duration, "annotations": _once(items)}
        except (KeyError, TypeError, ValueError) as error:
            raise OfficialError(
                f"{path}: video {name!r}: expected subset, duration in seconds, annotations with segment and label "
                f"({error!r}); is it the official file?"
            ) from error
    return database, _labels(database)


def not_scored(database: Database, scored: Path, subset: str = "validation") -> list[str]:
    """Videos of a subset that BSN's list (video_info_new.csv, names with v_) lacks: as in all work since then,
    ActivityNet's validation is scored without them."""
    known = {row["video"].removeprefix("v_") for _, row in _rows(scored, ("video", "subset"))}
    if known.isdisjoint(database):
        raise OfficialError(f"{scored}: names none of the annotated videos; expected BSN's video_info_new.csv")
    return [name for name, entry in database.items() if entry["subset"] == subset and name not in known]


def charades(folder: Path) -> tuple[Database, list[str]]:
    """Out of Charades' two CSV files: the database and its classes, c000 to c156."""
    database: Database = {}
    for file, subset in CHARADES_SUBSETS.items():
        for where, row in _rows(folder / file, ("id", "actions", "length")):
            actions = [_of(where, _charades_action, text) for text in row["actions"].split(";") if text]
            length = _of(where, float, row["length"])
            database[row["id"]] = {"subset": subset, "duration": length, "annotations": _once(actions)}
    return database, [f"c{number:03d}" for number in range(157)]


def _charades_action(text: str) -> dict[str, Any]:
    label, start, end = text.split()
    return {"segment": [float(start), float(end)], "label": label}


def epic(folder: Path, task: str) -> tuple[Database, list[str]]:
    """Out of EPIC-KITCHENS-100's CSV files, labels by `task` (verb or noun) as names; numbers of both stand beside.

    Classes are lines of number, tab and name, of those that occur: of 300 nouns the models know 293. Test videos are in
    it, without instances, if their file lies there.
    """
    names = {_of(where, int, row["id"]): row["key"] for where, row in
             _rows(folder / f"EPIC_100_{task}_classes.csv", ("id", "key"))}  # fmt: skip
    facts = {row["video_id"]: (where, row) for where, row in
             _rows(folder / "EPIC_100_video_info.csv", ("video_id", "duration", "fps"))}  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    subsets = {}
    columns = ("video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
    for file, subset in EPIC_SUBSETS.items():
        for where, row in _rows(folder / file, columns):
            numbers = {"verb": _of(where, int, row["verb_class"]), "noun": _of(where, int, row["noun_class"])}
            if numbers[task] not in names:
                raise OfficialError(f"{where}: {task} class {numbers[task]} isn't one of {len(names)}")
            if row["video_id"] not in facts:
                raise OfficialError(f"{where}: video {row['video_id']} isn't in EPIC_100_video_info.csv")
            ends = [_of(where, _timestamp, row[key]) for key in ("start_timestamp", "stop_timestamp")]
            item = {"segment": ends, "label": names[numbers[task]], **numbers}
            found.setdefault(row["video_id"], []).append(item)
            subsets[row["video_id"]] = subset
    occurring = sorted({item[task] for items in found.values() for item in items})
    for where, row in _rows(folder / EPIC_TEST, ("video_id",)) if (folder / EPIC_TEST).is_file() else ():
        if row["video_id"] not in facts:
            raise OfficialError(f"{where}: video {row['video_id']} isn't in EPIC_100_video_info.csv")
        found[row["video_id"]], subsets[row["video_id"]] = [], "test"
    database = {}
    for name, items in found.items():
        where, row = facts[name]
        length, rate = _of(where, float, row["duration"]), _of(where, float, row["fps"])
        database[name] = {"subset": subsets[name], "duration": round(length, 4), "fps": round(rate, 2),
                          "annotations": _once(items)}  # fmt: skip
    return database, [f"{number}\t{names[number]}" for number in occurring]


def _timestamp(text: str) -> float:
    """Seconds of HH:MM:SS.ss."""
    hours, minutes, seconds = text.split(":")
    return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 3)


def ego4d(folder: Path) -> tuple[Database, list[str]]:
    """Out of Ego4D's three files of moments: clips, with all annotators' primary labels, in seconds of the clip.

    Clips of train and val without a primary label aren't part of the task.
    """
    database: Database = {}
    for file in EGO4D_FILES:
        try:
            for video in json.loads((folder / file).read_text(encoding="utf-8"))["videos"]:
                for clip in video["clips"]:
                    entry = _ego4d_clip(clip, video["split"])
                    rate = entry["frame"] / entry["duration"] if entry["duration"] > 0 else 0
                    wanted = entry["annotations"] or video["split"] == "test"
                    if wanted and EGO4D_RATES[0] <= rate <= EGO4D_RATES[1]:
                        database[clip["clip_uid"]] = entry
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OfficialError(f"{folder / file}: not a readable file of moments: {error!r}") from error
    return database, _labels(database)


def _ego4d_clip(clip: dict[str, Any], subset: str) -> dict[str, Any]:
    start = max(float(clip["video_start_sec"]), 0.0)
    duration = round(float(clip["video_end_sec"]) - start, 4)
    frames = int(clip["video_end_frame"]) - max(int(clip["video_start_frame"]), 0)
    items = [
        {
            "segment": [
                round(float(label["video_start_time"]) - start, 4),
                round(float(label["video_end_time"]) - start, 4),
            ],
            "label": label["label"],
        }
        for annotator in clip.get("annotations", ())
        for label in annotator["labels"]
        if label["primary"]
    ]
    return {"subset": subset, "duration": duration, "frame": frames, "annotations": _once(items)}


def thumos(folder: Path, videos: Path, left_out: Collection[str] = ()) -> tuple[Database, list[str]]:
    """Out of the text files of THUMOS-14 or MultiTHUMOS, one a class (a line: video, start, end in seconds; names may
    end in _val or _test), and the videos, which tell their own length. left_out: videos."""
    found: dict[str, list[dict[str, Any]]] = {}
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise OfficialError(f"{folder}: holds no text file; expected one a class")
    for file in files:
        label = file.stem.removesuffix("_val").removesuffix("_test")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                name, ends = _of(f"{file}, line {number}", _thumos_line, line)
                found.setdefault(name, []).append({"segment": ends, "label": label})
    found = {name: items for name, items in found.items() if name not in left_out}
    absent = [name for name in sorted(found) if not (videos / f"{name}.mp4").is_file()]
    if absent:
        named = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED} more" if len(absent) > NAMED else "")
        raise OfficialError(
            f"{videos}: {len(absent)} of {len(found)} annotated videos aren't there as NAME.mp4: {named}; they are "
            "needed, for only they tell how long they are"
        )
    database = {}
    for name in sorted(found):
        subset = next((subset for start, subset in THUMOS_SUBSETS.items() if name.startswith(start)), None)
        if subset is None:
            raise OfficialError(f"{folder}: video {name!r} begins with none of {', '.join(THUMOS_SUBSETS)}")
        index = read_index(videos / f"{name}.mp4", Heartbeat())
        duration = round(seconds_of(index), 2)
        database[name] = {"subset": subset, "duration": duration, "frame": index.frame_count,
                          "annotations": _once(found[name])}  # fmt: skip
    return database, _labels(database)


def _thumos_line(line: str) -> tuple[str, list[float]]:
    name, start, end = line.split()
    return name, [float(start), float(end)]


def write(files: dict[Path, str]) -> None:
    """Write texts by path. Files appear only when all of them are whole. Raises FileError."""
    with ExitStack() as stack:
        for path, text in files.items():
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def _rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file, each with the words that name its place in errors."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise OfficialError(f"{path}: not a readable CSV file: {error}") from error
    absent = [name for name in columns if name not in (reader.fieldnames or ())]
    if absent or not rows:
        raise OfficialError(
            f"{path}: {f'has no column {absent[0]}' if absent else 'holds no rows'}; is it the official file?"
        )
    yield from rows


def _of(where: str, read: Any, text: str) -> Any:
    try:
        return read(text)
    except (TypeError, ValueError) as error:
        raise OfficialError(f"{where}: can't read {text!r}") from error


def _labels(database: Database) -> list[str]:
    """Sorted, as the reference sorts them, without the label that is no class."""
    return sorted({item["label"] for entry in database.values() for item in entry["annotations"]} - {AMBIGUOUS})


def _once(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without exact copies."""
    return list({json.dumps(item): item for item in items}.values())
