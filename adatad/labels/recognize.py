"""Which form an annotation file has, by its content: endings are .json or .csv for many of them."""

from __future__ import annotations

import re
from typing import Any

from adatad.labels.boris_export import header_line
from adatad.labels.columns import column_key
from adatad.labels.json_values import as_list, as_object
from adatad.labels.subtitles import CUE
from adatad.labels.text_table import DELIMITERS
from adatad.labels.xml_text import BEFORE_ROOT

NAMES = {
    "activitynet": "annotations in the ActivityNet form", "table": "a table", "boris table": "events exported by BORIS",
    "subtitles": "subtitles (SRT or WebVTT)", "eaf": "an ELAN document", "labelstudio": "Label Studio's JSON",
    "via": "a VIA 3 project", "via table": "a table exported by VIA 3", "boris": "a BORIS project",
    "cvat": "CVAT's XML", "datumaro": "Datumaro's JSON", "fiftyone": "FiftyOne's JSON",
    "roboflow": "Roboflow's JSON", "osl": "OSL's JSON",
}  # fmt: skip
"""Forms that are recognized, as messages call them."""
NOT_RECOGNIZED = (
    "is of no form that is known here. Looked for: a table (CSV, TSV) whose first line names video, start, end and "
    "label; XML of ELAN (<ANNOTATION_DOCUMENT>) or CVAT (<annotations>); JSON with a database (ActivityNet), "
    "observations (BORIS), metadata and file (VIA 3), tasks with data and annotations (Label Studio), labels or "
    "samples (FiftyOne), categories and items (Datumaro), start_frame_idx (Roboflow), data with events (OSL); "
    "subtitles (SRT, WebVTT)"
)
VIA_COLUMNS = "temporal_coordinates"
MAX_LINES = 40
"""Lines at the beginning of a text in which the first times of subtitles, or a header, are looked for."""
MAX_DEPTH = 6
"""Depth of JSON to which Roboflow's keys are looked for."""


def form_of(text: str, content: Any = None) -> str | None:
    """Return a key of NAMES; None for an unknown form. content: the value of a text that is JSON."""
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("<"):
        return _xml_form(text)
    if content is not None:
        return _object_form(content) if isinstance(content, dict) else _list_form(content)
    if start.startswith("WEBVTT"):
        return "subtitles"
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", start[:100_000])[:MAX_LINES]]
    if any(CUE.fullmatch(line) for line in lines):
        return "subtitles"
    if any(VIA_COLUMNS in line for line in lines):
        return "via table"
    if header_line(start) is not None:
        return "boris table"
    # The reader of tables says itself what a header lacks.
    return "table" if any(_is_header(line) for line in lines) else None


def _xml_form(text: str) -> str | None:
    before = BEFORE_ROOT.match(text)
    root = re.compile(r"(?:<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>\s*)?<([A-Za-z_]+)", re.DOTALL).match(
        text, before.end() if before else 0
    )
    return {"ANNOTATION_DOCUMENT": "eaf", "annotations": "cvat"}.get(root[1]) if root else None


def _object_form(content: dict[str, Any]) -> str | None:
    # The most telling keys first: "data", "labels" and "metadata" stand in several forms.
    keys = set(content)
    if isinstance(content.get("database"), dict):
        return "activitynet"
    if "observations" in keys and {"behaviors_conf", "subjects_conf", "project_format_version"} & keys:
        return "boris"
    if "metadata" in keys and {"file", "view"} & keys:
        return "via"
    if {"categories", "items"} <= keys:
        return "datumaro"
    if isinstance(content.get("results"), dict):
        return "activitynet"
    if isinstance(content.get("data"), list) and any("events" in as_object(one) for one in content["data"]):
        return "osl"
    if _is_task(content):
        return "labelstudio"
    if isinstance(content.get("samples"), list) or _are_detections(content.get("labels")):
        return "fiftyone"
    return "roboflow" if _holds(content, "start_frame_idx") else None


def _list_form(content: list[Any]) -> str | None:
    if any(_is_task(as_object(one)) for one in content):
        return "labelstudio"
    return "roboflow" if _holds(content, "start_frame_idx") else None


def _is_task(content: dict[str, Any]) -> bool:
    """Return whether an object is a task of Label Studio, whole or in its short form."""
    if isinstance(content.get("data"), dict) and {"annotations", "predictions", "completions", "id"} & set(content):
        return True
    lists = [value for value in content.values() if isinstance(value, list)]
    return any({"timelinelabels", "ranges"} & set(as_object(one)) for values in lists for one in values)


def _are_detections(labels: Any) -> bool:
    """Return whether a value holds the temporal detections of samples; also where all samples have none."""
    items = [one for values in as_object(labels).values() for one in as_list(values)]
    return isinstance(labels, dict) and all({"support", "timestamps"} & set(as_object(one)) for one in items)


def _holds(content: Any, key: str) -> bool:
    """Return whether an object within a value has a key, to a depth."""
    parts = [content]
    for _ in range(MAX_DEPTH):
        if any(isinstance(part, dict) and key in part for part in parts):
            return True
        inner = [part.values() if isinstance(part, dict) else part for part in parts if isinstance(part, (dict, list))]
        parts = [one for values in inner for one in values]
    return False


def _is_header(line: str) -> bool:
    """Return whether a line may name the columns of a table: two words or more, divided by a sign, no number first."""
    for sign in DELIMITERS:
        names = [name.strip("\"' ") for name in line.lstrip("# ").split(sign)]
        if len(names) >= 2 and sum(bool(re.search(r"[^\W\d]", column_key(name))) for name in names) >= 2:
            return True
    return False
