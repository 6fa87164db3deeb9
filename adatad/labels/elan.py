"""ELAN's .eaf: XML with tiers of time-aligned annotations.

ELAN leaves it to its users whether a class is a tier, or the value of annotations on one tier. Written is the first
with the values of the second; read is either, by a guess that is said.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from adatad.files import listed
from adatad.labels.names import VIDEO_ENDINGS, WINDOWS_PATH, media_path, one_line
from adatad.labels.problems import LabelError
from adatad.labels.reading import Reading
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.score_text import split_score, with_score
from adatad.labels.ticks import by_label, in_ticks, in_tracks
from adatad.labels.xml_text import parse_xml

PER_SECOND = 1000
"""Times are milliseconds."""
FIXED_DATE = "1970-01-01T00:00:00+00:00"
"""The form wants a date; a fixed one makes equal labels equal files."""
TYPE = "default-lt"
SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
MIME_TYPES = {".mp4": "video/mp4", ".mpg": "video/mpeg", ".mpeg": "video/mpeg", ".mov": "video/quicktime"}
TIERS, VALUES = "tiers", "values"
FURTHER = re.compile(r"(?P<base>.+) \(\d+\)", re.DOTALL)
"""Name of a tier that takes what overlaps on another one."""


def write_elan(video: VideoLabels) -> str:
    """Return a video's segments as an ELAN document: a tier a class, the value of an annotation its label and score.

    Annotations of a tier can't overlap: overlapping ones of a class go to further tiers, "pour (2)" and so on.
    """
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "", "DATE": FIXED_DATE, "FORMAT": "3.0", "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance", "xsi:noNamespaceSchemaLocation": SCHEMA,
        },
    )  # fmt: skip
    header = ElementTree.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", _descriptor(video.file or video.name))
    used = ElementTree.SubElement(header, "PROPERTY", {"NAME": "lastUsedAnnotationId"})
    used.text = str(len(video.segments))
    order = ElementTree.SubElement(root, "TIME_ORDER")
    tiers = _tiers(video.segments)
    _write_tiers(root, order, tiers or {"default": []})
    kind = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": TYPE, "TIME_ALIGNABLE": "true"}
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", kind)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _write_tiers(root: ElementTree.Element, order: ElementTree.Element, tiers: dict[str, list[Segment]]) -> None:
    number = 0
    times: list[tuple[int, str]] = []
    for name, segments in tiers.items():
        tier = ElementTree.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": TYPE, "TIER_ID": name})
        for segment in segments:
            number += 1
            slots = [f"ts{2 * number - 1}", f"ts{2 * number}"]
            times += zip(in_ticks(segment, PER_SECOND), slots, strict=True)
            keys = {"ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": slots[0], "TIME_SLOT_REF2": slots[1]}
            holder = ElementTree.SubElement(tier, "ANNOTATION")
            aligned = ElementTree.SubElement(holder, "ALIGNABLE_ANNOTATION", keys)
            value = ElementTree.SubElement(aligned, "ANNOTATION_VALUE")
            value.text = with_score(one_line(segment.label), segment.score)
    # The form wants slots in order of time.
    for milliseconds, slot in sorted(times, key=lambda pair: pair[0]):
        ElementTree.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(milliseconds)})


def _tiers(segments: tuple[Segment, ...]) -> dict[str, list[Segment]]:
    """Return segments by tier, none of a tier overlapping."""
    found = by_label(segments)
    tiers: dict[str, list[Segment]] = {}
    for label, those in found.items():
        number = 1
        for track in in_tracks(those, PER_SECOND):
            name = label if number == 1 else f"{label} ({number})"
            # A class may itself be called "pour (2)".
            while number > 1 and (name in found or name in tiers):
                number += 1
                name = f"{label} ({number})"
            tiers[name] = track
            number += 1
    return tiers


def _descriptor(file: str) -> dict[str, str]:
    """Return what a media descriptor says of a path, an address or a mere name."""
    file = one_line(file)
    address = file
    if WINDOWS_PATH.match(file):
        path = file.replace("\\", "/")
        address = f"file:{quote(path)}" if path.startswith("//") else f"file:///{quote(path, safe='/:')}"
    elif file.startswith("/"):
        address = f"file://{quote(file)}"
    elif "://" not in file:
        address = quote(file)
    keys = {"MEDIA_URL": address, "MIME_TYPE": MIME_TYPES.get(PurePosixPath(file).suffix.lower(), "unknown")}
    if address != file or "://" not in file:
        keys["RELATIVE_MEDIA_URL"] = f"./{quote(file.replace(chr(92), '/').rsplit('/', 1)[-1])}"
    return keys


class Annotation(NamedTuple):
    """An annotation with times of its own. where: its tier and id; times: milliseconds; value: without its score."""

    tier: str
    where: str
    times: tuple[int, int]
    value: str
    score: float | None


def read_elan(reading: Reading, text: str) -> None:
    """Read the time-aligned annotations of a document. Raises LabelError for what is no XML."""
    root = parse_xml(text, reading.path)
    header = root.find("HEADER")
    unit = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
    if unit != "milliseconds":
        reading.problems.append(f"times are in {unit}; save it by a newer ELAN, which writes milliseconds")
    file, origin = _media(reading, header)
    found = _annotations(reading, root)
    names = [tier.get("TIER_ID", "") for tier in root.iter("TIER")]
    by = _labels_from(reading, found, names)
    reading.video(file)
    for one in found:
        base = _base(one.tier, names)
        label = one.value
        if by == TIERS:
            if one.value and one.value not in (base, one.tier):
                reading.leave_out("values of annotations, as labels are the names of tiers", one.where)
            label = one.value if one.value in (base, one.tier) else base
        start, end = ((time + origin) / 1000 for time in one.times)
        reading.add(file, one.where, label, start, end, one.score)


def _media(reading: Reading, header: ElementTree.Element | None) -> tuple[str, int]:
    """Return the video of a document, and the milliseconds of it at which the document's time begins."""
    media = [] if header is None else header.findall("MEDIA_DESCRIPTOR")
    addresses = [one.get("MEDIA_URL") or one.get("RELATIVE_MEDIA_URL") or "" for one in media]
    paths = [media_path(address) if ":" in address[1:] else _unescaped(address) for address in addresses]
    chosen = next((n for n, path in enumerate(paths) if PurePosixPath(path).suffix.lower() in VIDEO_ENDINGS), 0)
    if len(media) > 1:
        reading.notes.append(f"of {len(media)} media the labels are taken for {paths[chosen]}")
    path = paths[chosen] if paths else ""
    if not path and header is not None:
        path = header.get("MEDIA_FILE", "")
    if not path:
        reading.notes.append("names no video; the labels are taken for the one that is called as this file")
        path = reading.path.stem
    # ELAN shifts media against each other: the document's times are those of the chosen one less this.
    told = media[chosen].get("TIME_ORIGIN") if media else None
    if told in (None, "", "0"):
        return path, 0
    if not re.fullmatch(r"-?\d{1,12}", told):
        reading.problems.append(f"TIME_ORIGIN: expected milliseconds, got {told!r}")
        return path, 0
    reading.notes.append(f"times begin at {int(told)} ms of the video (TIME_ORIGIN)")
    return path, int(told)


def _unescaped(address: str) -> str:
    """Return a relative address as a path."""
    return media_path(f"file:///{address}")[1:] if "%" in address else address


def _annotations(reading: Reading, root: ElementTree.Element) -> list[Annotation]:
    """Return annotations with two times; those without are counted, and wrong ones are problems."""
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    found = []
    for tier in root.iter("TIER"):
        name = tier.get("TIER_ID", "")
        for _ in tier.iter("REF_ANNOTATION"):
            reading.leave_out("annotations of dependent tiers, which have no times of their own", f"tier {name!r}")
        for one in tier.iter("ALIGNABLE_ANNOTATION"):
            where = f"tier {name!r}, {one.get('ANNOTATION_ID', 'an annotation')}"
            ends = [one.get("TIME_SLOT_REF1"), one.get("TIME_SLOT_REF2")]
            gone = [str(end) for end in ends if end not in slots]
            times = [slots.get(end) for end in ends]
            if gone:
                reading.problems.append(f"{where}: its time slot {' and '.join(gone)} isn't in the file")
            elif None in times:
                reading.leave_out("annotations whose time slots have no value, within others", where)
            elif not all(re.fullmatch(r"-?\d{1,12}", time) for time in times):
                reading.problems.append(f"{where}: expected times in milliseconds, got {' and '.join(times)}")
            else:
                value = one.findtext("ANNOTATION_VALUE") or ""
                found.append(Annotation(name, where, (int(times[0]), int(times[1])), *split_score(value)))
    return found


def _labels_from(reading: Reading, found: list[Annotation], names: list[str]) -> str:
    """Return where labels stand, in the names of tiers or in values: as told, or by a guess that is said."""
    told = reading.options.labels_from
    if told is not None:
        if told not in (TIERS, VALUES):
            raise LabelError(reading.path, [f"labels_from: in ELAN labels are {TIERS} or {VALUES}, got {told!r}"])
        return told
    named = sum(one.value in (one.tier, _base(one.tier, names)) for one in found)
    empty = sum(not one.value for one in found)
    # Where half of the annotations say nothing, or their tier's name, the others are remarks.
    by = TIERS if 2 * (named + empty) >= len(found) else VALUES
    if found:
        used = sorted({one.tier for one in found})
        what = "the names of tiers" if by == TIERS else "the values of annotations"
        reading.notes.append(
            f"labels are {what}, on {listed(used, 10)} (otherwise: labels_from={VALUES if by == TIERS else TIERS})"
        )
    return by


def _base(tier: str, names: list[str]) -> str:
    """Return the tier whose overlaps this one takes; the tier itself where it is none such."""
    further = FURTHER.fullmatch(tier)
    return further["base"] if further and further["base"] in names else tier
