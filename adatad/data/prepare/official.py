"""Official annotation files of public data sets into the form that specs read.

Videos are left out where the reference's own annotation files leave them out. Of instances nothing is dropped but
copies: what is short, late or ambiguous is dropped, and counted, when a spec reads the file. What no spec could read is
refused here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adatad.data.annotation_file import AMBIGUOUS, LINE_BREAKS, load_database
from adatad.data.entry import REFUSED, brief, entry_problems
from adatad.data.video_index import Heartbeat, VideoError, read_index
from adatad.errors import UserError
from adatad.files import atomic_write, listed, read_json, read_text, shown
from adatad.labels.text_table import read_table
from adatad.spec.data_sections import DataSpec, WindowSpec

Database = dict[str, dict[str, Any]]
# Subsets keep each data set's own names, which its specs and published scores use.
EPIC_SUBSETS = {"EPIC_100_train.csv": "train", "EPIC_100_validation.csv": "val"}
EPIC_TEST = "EPIC_100_test_timestamps.csv"
CHARADES_SUBSETS = {"Charades_v1_train.csv": "training", "Charades_v1_test.csv": "testing"}
EGO4D_FILES = ("moments_train.json", "moments_val.json", "moments_test_unannotated.json")
EGO4D_RATES = (10, 100)
"""Plausible frames per second of a clip; others come from wrong frame numbers, and the reference drops them too."""
THUMOS_SUBSETS = {"video_validation_": "training", "video_test_": "validation"}
THUMOS_LEFT_OUT = ("video_test_0000270", "video_test_0001292")
"""Test videos that AdaTAD isn't scored on: one is annotated far past its end, the other has nothing but "Ambiguous"."""
MAX_LISTED = 10
"""Videos that an error names; the rest is counted."""


def activitynet(path: Path) -> tuple[Database, list[str]]:
    """Convert the JSON file of ActivityNet-1.3, or of HACS Segments, which has the same form with durations as text."""
    database: Database = {}
    for name, entry in load_database(str(path)).items():
        try:
            items = [
                {"segment": [float(end) for end in item["segment"]], "label": _text(item["label"])}
                for item in entry.get("annotations") or ()
            ]
            duration, subset = _finite(entry["duration"]), _text(entry["subset"])
            database[name] = {"subset": subset, "duration": duration, "annotations": items}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: video {shown(repr(name))}: expected subset, duration in seconds, annotations with segment "
                f"and label ({error!r}); is it the official file?"
            ) from error
    return _finished(path, database)


def not_scored(database: Database, scored: Path, subset: str = "validation") -> list[str]:
    """Return videos of a subset that BSN's list (video_info_new.csv, names with v_) lacks: as in all work since then,
    ActivityNet's validation is scored without them."""
    # BSN's names carry YouTube's "v_" in front, ActivityNet's don't.
    known = {row["video"].removeprefix("v_") for _, row in _rows(scored, ("video", "subset"))}
    if known.isdisjoint(database):
        raise UserError(f"{scored}: names none of the annotated videos; expected BSN's video_info_new.csv")
    return [name for name, entry in database.items() if entry["subset"] == subset and name not in known]


def charades(folder: Path) -> tuple[Database, list[str]]:
    """Convert Charades' two CSV files: the database and its classes, c000 to c156."""
    database: Database = {}
    for file, subset in CHARADES_SUBSETS.items():
        for where, row in _rows(folder / file, ("id", "actions", "length")):
            actions = [_of(where, _charades_action, text) for text in row["actions"].split(";") if text]
            length, name = _of(where, _finite, row["length"]), _of(where, _text, row["id"])
            if name in database:
                raise UserError(f"{where}: video {name!r} appears twice")
            database[name] = {"subset": subset, "duration": length, "annotations": actions}
    database, _ = _finished(folder, database)
    return database, [f"c{number:03d}" for number in range(157)]


def _charades_action(text: str) -> dict[str, Any]:
    """Read an action, "c092 11.90 21.20": class, start and end in seconds."""
    label, start, end = text.split()
    return {"segment": [_finite(start), _finite(end)], "label": label}


def epic(folder: Path, task: str) -> tuple[Database, list[str]]:
    """Convert EPIC-KITCHENS-100's CSV files, labels by `task` (verb or noun) as names; the numbers of both are kept.

    Classes are lines of number, tab and name, of those that occur: of 300 nouns the models know 293. Test videos are
    included, without instances, if their file is there.
    """
    # Classes and facts first: rows are checked against both.
    names = {_of(where, int, row["id"]): _of(where, _text, row["key"]) for where, row in
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
                raise UserError(f"{where}: {task} class {numbers[task]} isn't one of {len(names)}")
            if row["video_id"] not in facts:
                raise UserError(f"{where}: video {row['video_id']} isn't in EPIC_100_video_info.csv")
            ends = [_of(where, _timestamp, row[key]) for key in ("start_timestamp", "stop_timestamp")]
            item = {"segment": ends, "label": names[numbers[task]], **numbers}
            found.setdefault(row["video_id"], []).append(item)
            subsets[row["video_id"]] = subset
    # Of training and validation; test videos have no labels.
    occurring = sorted({item[task] for items in found.values() for item in items})
    for where, row in _rows(folder / EPIC_TEST, ("video_id",)) if (folder / EPIC_TEST).is_file() else ():
        if row["video_id"] not in facts:
            raise UserError(f"{where}: video {row['video_id']} isn't in EPIC_100_video_info.csv")
        found[row["video_id"]], subsets[row["video_id"]] = [], "test"
    database = {}
    for name, items in found.items():
        where, row = facts[name]
        length, rate = _of(where, _finite, row["duration"]), _of(where, _finite, row["fps"])
        database[name] = {"subset": subsets[name], "duration": round(length, 4), "fps": round(rate, 2),
                          "annotations": items}  # fmt: skip
    database, _ = _finished(folder, database)
    return database, [f"{number}\t{names[number]}" for number in occurring]


def _timestamp(text: str) -> float:
    """Return the seconds of HH:MM:SS.ss."""
    hours, minutes, seconds = text.split(":")
    return round(int(hours) * 3600 + int(minutes) * 60 + _finite(seconds), 3)


def ego4d(folder: Path, say: Callable[[str], None] = print) -> tuple[Database, list[str]]:
    """Convert Ego4D's three files of moments: clips, with all annotators' primary labels, in seconds of the clip.

    Clips of train and val without a primary label aren't part of the task. say: called with how many clips are left
    out.
    """
    database: Database = {}
    without_labels = other_rates = 0
    for file in EGO4D_FILES:
        content = read_json(folder / file)
        try:
            for video in content["videos"]:
                for clip in video["clips"]:
                    name, entry = _text(clip["clip_uid"]), _ego4d_clip(clip, _text(video["split"]))
                    rate = entry["frame"] / entry["duration"] if entry["duration"] > 0 else 0
                    if not entry["annotations"] and video["split"] != "test":
                        without_labels += 1
                    elif not EGO4D_RATES[0] <= rate <= EGO4D_RATES[1]:
                        other_rates += 1
                    else:
                        database[name] = entry
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{folder / file}: not a readable file of moments: {error!r}") from error
    if without_labels or other_rates:
        rates = f"{EGO4D_RATES[0]} to {EGO4D_RATES[1]}"
        say(f"left out: {without_labels} clips without a label, {other_rates} of other than {rates} frames a second")
    return _finished(folder, database, say)


def _ego4d_clip(clip: dict[str, Any], subset: str) -> dict[str, Any]:
    """Return a clip's entry in the annotation file, its times counted from its own start."""
    # Ego4D gives times in the long video; its clips are what is downloaded.
    start = max(_finite(clip["video_start_sec"]), 0.0)
    duration = round(_finite(clip["video_end_sec"]) - start, 4)
    # Counted from the clip's own first frame, as its times are.
    frames = int(clip["video_end_frame"]) - max(int(clip["video_start_frame"]), 0)
    items = [
        {
            "segment": [
                round(_finite(label["video_start_time"]) - start, 4),
                round(_finite(label["video_end_time"]) - start, 4),
            ],
            "label": _text(label["label"]),
        }
        # Every annotator's labels: the task is scored against all of them.
        for annotator in clip.get("annotations", ())
        for label in annotator["labels"]
        if label["primary"]
    ]
    return {"subset": subset, "duration": duration, "frame": frames, "annotations": items}


def thumos(folder: Path, videos: Path, left_out: Collection[str] = ()) -> tuple[Database, list[str]]:
    """Convert the text files of THUMOS-14 or MultiTHUMOS, one a class, and the videos, which give their own length.

    A line has video, start and end in seconds; file names may end in _val or _test. left_out: videos to drop.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise UserError(f"{folder}: holds no text file; expected one a class")
    for file in files:
        label = file.stem.removesuffix("_val").removesuffix("_test")
        for number, line in enumerate(LINE_BREAKS.split(read_text(file)), 1):
            if line.strip():
                name, ends = _of(f"{file}, line {number}", _thumos_line, line)
                found.setdefault(name, []).append({"segment": ends, "label": label})
    found = {name: items for name, items in found.items() if name not in left_out}
    # Before any file is opened: hundreds of them take minutes.
    absent = [name for name in sorted(found) if not (videos / f"{name}.mp4").is_file()]
    if absent:
        raise UserError(
            f"{videos}: {len(absent)} of {len(found)} annotated videos aren't there as NAME.mp4: "
            f"{listed(absent, MAX_LISTED)}; they are needed, for only they tell how long they are"
        )
    database, wrong = {}, []
    for name in sorted(found):
        subset = next((subset for start, subset in THUMOS_SUBSETS.items() if name.startswith(start)), None)
        if subset is None:
            raise UserError(f"{folder}: video {name!r} begins with none of {', '.join(THUMOS_SUBSETS)}")
        try:
            index = read_index(videos / f"{name}.mp4", Heartbeat())
        except VideoError as error:
            wrong.append(str(error))
            continue
        # Hundredths, as other annotation files have durations.
        duration = round(index.timeline.duration_seconds, 2)
        if not duration:
            why = index.unreliable_because or "it has one frame"
            wrong.append(f"{index.path}: doesn't tell how long it lasts ({why}); transcode it to H.264 in MP4")
        database[name] = {"subset": subset, "duration": duration, "frame": index.frame_count,
                          "annotations": found[name]}  # fmt: skip
    if wrong:
        lines = listed(wrong, MAX_LISTED, "\n  ")
        raise UserError(f"{videos}: {len(wrong)} of {len(found)} videos can't be used:\n  {lines}")
    return _finished(folder, database)


def _thumos_line(line: str) -> tuple[str, list[float]]:
    """Read a line: video, start and end in seconds."""
    name, start, end = line.split()
    return name, [_finite(start), _finite(end)]


def _finished(path: Path, database: Database, say: Callable[[str], None] = print) -> tuple[Database, list[str]]:
    """Return the database without exact copies of instances, and its classes. Raises UserError for what no spec
    could read, and for no instance at all."""
    instances = sum(len(entry["annotations"]) for entry in database.values())
    if not instances:
        raise UserError(f"{path}: {len(database)} videos and no instance could be read; is it the official file?")
    # A window of whole videos needs no frame rate: these files need not give one.
    spec = DataSpec(annotations=str(path), videos="", window=WindowSpec(kind="resize"))
    # Sorted, as the reference sorts them.
    labels = sorted({item["label"] for entry in database.values() for item in entry["annotations"]} - {AMBIGUOUS})
    for name, entry in database.items():
        wrong = [text for kind, text, _ in entry_problems(spec, name, entry, labels) if kind in REFUSED]
        ends = [end for item in entry["annotations"] for end in item["segment"]]
        if not all(map(math.isfinite, ends)):
            wrong.append("a segment without finite ends")
        if wrong:
            raise UserError(f"{path}: video {shown(repr(name))}: {wrong[0]}")
        # By their text: copies are equal in every key, and the first one stays.
        entry["annotations"] = list({json.dumps(item): item for item in entry["annotations"]}.values())
    copies = instances - sum(len(entry["annotations"]) for entry in database.values())
    if copies:
        say(f"left out: {copies} exact copies of instances")
    return database, labels


def write(files: dict[Path, str]) -> None:
    """Write texts by path. Files appear only when all of them are complete. Raises FileError."""
    # All files are written before the first is renamed.
    with ExitStack() as stack:
        for path, text in files.items():
            # Renamed when the stack closes, one after another; an error before that leaves none.
            stack.enter_context(atomic_write(path)).write_text(text, encoding="utf-8")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV file, each with the words that name its place in errors."""
    table = read_table(path, lambda header: sum(name in header for name in columns))
    absent = [name for name in columns if name not in table.header]
    if absent:
        there = table.header_shown()
        raise UserError(f"{path}: has no column {absent[0]} in its header {there}; is it the official file?")
    if table.problems:
        raise UserError(f"{path}, {table.problems[0]}")
    if not table.rows:
        raise UserError(f"{path}: holds no rows; is it the official file?")
    for row in table.rows:
        yield f"{path}, line {row.line}", dict(zip(table.header, row.fields, strict=True))


def _finite(value: Any) -> float:
    """Return a finite number. Raises TypeError or ValueError."""
    if isinstance(value, bool):
        raise TypeError(value)
    if not math.isfinite(found := float(value)):
        raise ValueError(value)
    return found


def _text(value: Any) -> str:
    """Return a name. Raises ValueError for none or an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a name, got {brief(value)}")
    return value


def _of(where: str, read: Any, text: str) -> Any:
    """Read a field; raises UserError that names its place."""
    try:
        return read(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: can't read {brief(text)}") from error
