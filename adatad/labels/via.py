"""VIA 3 (VGG Image Annotator): a project in JSON, a segment an entry of its metadata with two times."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from adatad.files import FileError, listed, parse_json
from adatad.labels.json_values import as_list, as_object, as_text
from adatad.labels.names import one_line
from adatad.labels.problems import LabelError
from adatad.labels.reading import Reading
from adatad.labels.records import VideoLabels
from adatad.labels.score_text import score_text
from adatad.labels.ticks import in_order, seconds_rounded
from adatad.labels.values import brief

TEMPORAL = "FILE1_Z2_XY0"
"""What VIA calls an attribute of segments: of one file, two times, no place."""
LABEL_ID, SCORE_ID = "1", "2"
TEXT, CHECKBOX, SELECT = 1, 2, 4
"""Types of attributes."""
VIDEO = 4
"""Type of a file."""
LOCAL, WEB = 1, 2
"""Where a file is: on the machine of the one who looks, or at an address."""
FIXED_REVISION = "1"
"""The form wants a time; a fixed one makes equal labels equal files."""
SCORE_NAMES = ("score", "confidence")
LABEL_WORDS = ("label", "class", "action", "activity", "behavio", "event", "categor", "temporal")
"""Names of attributes, or parts of them."""
EXPORTED_COLUMNS = (
    "metadata_id", "file_list", "flags", "temporal_coordinates", "spatial_coordinates", "metadata",
)  # fmt: skip
LINES = re.compile(r"\r\n|\r|\n")
COMMENT_VALUE = re.compile(r"#\s*(?P<key>[A-Z_]+)\s*=\s*(?P<value>.*)")
"""A comment of an exported table that says something of its form."""


def write_via(videos: Sequence[VideoLabels]) -> str:
    """Return videos and their segments as a whole project, which VIA opens; it asks for local files when it shows them.

    The label is an option whose number is its name, so that it is right however it is looked up; a score is a text.
    """
    names = [str(number) for number in range(1, len(videos) + 1)]
    labels = sorted({one_line(segment.label) for video in videos for segment in video.segments})
    metadata = {}
    for vid, video in zip(names, videos, strict=True):
        for number, segment in enumerate(in_order(video.segments), 1):
            values = {LABEL_ID: one_line(segment.label)}
            if segment.score is not None:
                values[SCORE_ID] = score_text(segment.score)
            entry = {"vid": vid, "flg": 0, "z": list(seconds_rounded(segment)), "xy": [], "av": values}
            metadata[f"{vid}_{number}"] = entry
    project = {
        "project": {
            "pid": "__VIA_PROJECT_ID__", "rev": "__VIA_PROJECT_REV_ID__", "rev_timestamp": FIXED_REVISION,
            "pname": "AdaTAD", "creator": "AdaTAD", "created": 0, "vid_list": names, "data_format_version": "3.1.1",
        },
        "config": {
            "file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}},
            "ui": {
                "file_content_align": "center", "file_metadata_editor_visible": True,
                "spatial_metadata_editor_visible": False, "temporal_segment_metadata_editor_visible": True,
                "spatial_region_label_attribute_id": "", "gtimeline_visible_row_count": "4",
            },
        },
        "attribute": {
            LABEL_ID: _attribute("TEMPORAL-SEGMENTS", SELECT, {label: label for label in labels}),
            SCORE_ID: _attribute("score", TEXT, {}),
        },
        "file": {vid: _file(vid, video.file or video.name) for vid, video in zip(names, videos, strict=True)},
        "metadata": metadata,
        "view": {vid: {"fid_list": [vid]} for vid in names},
    }  # fmt: skip
    return json.dumps(project, ensure_ascii=False)


def _attribute(name: str, kind: int, options: dict[str, str]) -> dict[str, object]:
    return {
        "aname": name, "anchor_id": TEMPORAL, "type": kind, "desc": "", "options": options, "default_option_id": "",
    }  # fmt: skip


def _file(number: str, file: str) -> dict[str, object]:
    file = one_line(file)
    is_web = file.lower().startswith(("http://", "https://"))
    # A page in a browser can't open paths of the disk: VIA finds a local file by its name when the user adds it.
    name = file if is_web else file.replace("\\", "/").rsplit("/", 1)[-1]
    return {
        "fid": number, "fname": name, "type": VIDEO, "loc": WEB if is_web else LOCAL, "src": file if is_web else "",
    }  # fmt: skip


class Attributes(NamedTuple):
    """Attributes of a project. by_id: name, type and options of each; label: number of the one whose
    values are labels; score: of the one that holds scores, None if there is none."""

    by_id: dict[str, dict[str, Any]]
    label: str
    score: str | None


def read_via(reading: Reading, content: dict[str, Any]) -> None:
    """Read the segments of a project in JSON."""
    files, views = as_object(content.get("file")), as_object(content.get("view"))
    entries = {name: as_object(entry) for name, entry in as_object(content.get("metadata")).items()}
    used = [as_object(entry.get("av")) for entry in entries.values()]
    attributes = _attributes(reading, as_object(content.get("attribute")), used)
    names: dict[str, str] = {}
    for vid in dict.fromkeys([*views, *(as_text(entry.get("vid")) for entry in entries.values())]):
        # Without views an entry names its file itself.
        shown = [as_text(fid) for fid in as_list(as_object(views.get(vid)).get("fid_list"))] or [vid]
        if len(shown) > 1:
            reading.leave_out("further files that a view shows", f"view {vid}")
        file = as_object(files.get(shown[0]))
        names[vid] = _address(file) or f"view {vid}"
        if file:
            reading.video(names[vid])
    for name, entry in entries.items():
        vid = as_text(entry.get("vid"))
        if names[vid] == f"view {vid}":
            reading.problems.append(f"entry {name!r}: its view {vid!r} names no file")
        else:
            times, place, values = as_list(entry.get("z")), as_list(entry.get("xy")), as_object(entry.get("av"))
            _read_entry(reading, attributes, names[vid], f"entry {name!r}", times, place, values)


def read_via_table(reading: Reading, text: str) -> None:
    """Read a table that VIA 3 exported: comments say its columns and attributes, fields hold JSON."""
    attributes: dict[str, Any] = {}
    columns = list(EXPORTED_COLUMNS)
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(LINES.split(text), 1):
        found = COMMENT_VALUE.match(line)
        if found and found["key"].startswith("ATTRIBUTE"):
            attributes = as_object(parse_json(found["value"], f"{reading.path}: line {number}"))
        elif found and found["key"] == "CSV_HEADER":
            columns = [name for name in found["value"].strip().split(",") if name]
        elif line.strip() and not line.startswith("#"):
            try:
                fields = next(csv.reader([line], delimiter="\t" if "\t" in line else ","))
            except csv.Error as error:
                reading.problems.append(f"line {number}: {error}")
                continue
            if fields[0] == columns[0]:
                columns = fields
            else:
                rows.append((number, fields))
    named = {key: value if isinstance(value, dict) else {"aname": value} for key, value in attributes.items()}
    cells = [(number, dict(zip(columns, fields, strict=False))) for number, fields in rows]
    read = [(number, _cells(reading, number, row)) for number, row in cells]
    chosen = _attributes(reading, named, [as_object(row.get("metadata")) for _, row in read if row])
    for number, row in read:
        if row:
            file = as_text(next(iter(as_list(row["file_list"])), ""))
            times, place = as_list(row["temporal_coordinates"]), as_list(row["spatial_coordinates"])
            values = as_object(row["metadata"])
            if file:
                _read_entry(reading, chosen, file, f"line {number}", times, place, values)
            else:
                reading.problems.append(f"line {number}: names no video under file_list")


def _cells(reading: Reading, line: int, row: dict[str, str]) -> dict[str, Any]:
    """Return the values of a row's JSON; an empty object, and a problem, where it is none."""
    found = {}
    for name in ("file_list", "temporal_coordinates", "spatial_coordinates", "metadata"):
        try:
            found[name] = parse_json(row.get(name) or "[]", f"column {name}")
        except FileError as error:
            reading.problems.append(f"line {line}: {error}")
            return {}
    return found


def _attributes(reading: Reading, by_id: dict[str, Any], used: list[dict[str, Any]]) -> Attributes:
    """Return which attribute holds labels: the one that was named, or by a guess that is said."""
    by_id = {key: as_object(value) for key, value in by_id.items()}
    counts = Counter(key for values in used for key in values)
    names = {key: as_text(by_id.get(key, {}).get("aname")) or key for key in [*by_id, *counts]}
    score = next((key for key, name in names.items() if name.casefold() in SCORE_NAMES), None)
    told = reading.options.labels_from
    if told is not None:
        label = next((key for key, name in names.items() if told in (name, key)), None)
        if label is None:
            there = listed(list(names.values()), 10)
            raise LabelError(reading.path, [f"labels_from: there is no attribute {told!r}, but {there}"])
        return Attributes(by_id, label, score)
    # Shapes in frames have attributes of their own, which other anchors tell.
    temporal = [key for key in names if key != score and by_id.get(key, {}).get("anchor_id", TEMPORAL) == TEMPORAL]
    likely = [key for key in temporal if any(word in names[key].casefold() for word in LABEL_WORDS)]
    choice = [key for key in likely or temporal if counts[key]] or likely or temporal or [LABEL_ID]
    label = max(choice, key=lambda key: counts[key])
    others = [names[key] for key in temporal if key != label]
    if others:
        reading.notes.append(
            f"labels are the attribute {names[label]!r}, not {listed(others)} (otherwise: labels_from=NAME)"
        )
    return Attributes(by_id, label, score)


def _address(file: dict[str, Any]) -> str:
    """Return a file's address where it has one that others can use, otherwise its name."""
    source = as_text(file.get("src"))
    return as_text(file.get("fname")) if not source or source.startswith(("blob:", "data:")) else source


def _read_entry(
    reading: Reading, attributes: Attributes, file: str, where: str, times: list, place: list, values: dict[str, Any]
) -> None:
    if place:
        reading.leave_out("shapes in a frame", where)
        return
    if not times:
        reading.leave_out("values of whole videos", where)
        return
    if attributes.label not in values:
        reading.leave_out("entries without a value of the attribute that holds labels", where)
        return
    score = values.get(attributes.score) if attributes.score else None
    for label in _options(attributes.by_id.get(attributes.label, {}), as_text(values[attributes.label])):
        if len(times) == 1:
            reading.add_moment(file, where, label, times[0], score)
        elif len(times) == 2:
            reading.add(file, where, label, *times, score)
        else:
            reading.problems.append(f"{where}: expected one or two times, got {brief(times)}")


def _options(attribute: dict[str, Any], value: str) -> list[str]:
    """Return the texts of the options that a value names; a value that names none is a text itself."""
    options = as_object(attribute.get("options"))
    # People type labels that are no option, some of them with commas: then the whole value is the label.
    chosen = value.split(",") if attribute.get("type") == CHECKBOX else [value]
    if not all(one in options for one in chosen):
        return [value]
    return [as_text(options[one]) or one for one in chosen]
