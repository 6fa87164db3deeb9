"""Tables of segments, one a line: CSV and TSV."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adatad.labels.instance_table import instances_in, line_of, recognizer
from adatad.labels.names import one_line
from adatad.labels.reading import Reading
from adatad.labels.records import VideoLabels
from adatad.labels.score_text import score_text
from adatad.labels.text_table import table_of
from adatad.labels.ticks import in_order, seconds_text

COLUMNS = ("video", "start", "end", "label", "score")
NEEDS_QUOTES = re.compile(r"""[",;\t|\n\r#']|^\s|\s$|^$""")
FORMULA = re.compile(r"'*[=+\-@]")
"""Start of a text that a spreadsheet would compute."""


def write_table(videos: Sequence[VideoLabels], delimiter: str = ",") -> str:
    """Return a table of video, start, end (seconds), label and, where one has it, score.

    An apostrophe goes before a name that a spreadsheet would compute as a formula; `read_table_text` takes it off.
    """
    has_scores = any(segment.score is not None for video in videos for segment in video.segments)
    columns = COLUMNS if has_scores else COLUMNS[:-1]
    lines = [delimiter.join(columns)]
    for video in videos:
        for segment in in_order(video.segments):
            fields = [_field(video.name), *seconds_text(segment), _field(segment.label)]
            if has_scores:
                fields.append("" if segment.score is None else score_text(segment.score))
            lines.append(delimiter.join(fields))
    return "\n".join(lines) + "\n"


def _field(text: str) -> str:
    text = one_line(text)
    if FORMULA.match(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if NEEDS_QUOTES.search(text) else text


def read_table_text(reading: Reading, text: str) -> None:
    """Read a table of instances of any dialect; without a column of videos all rows are of the one called as the file.

    Raises TableError where its columns can't be told.
    """
    given = reading.options.columns
    table = table_of(text, reading.path, recognizer(given))
    found = instances_in(table, given, reading.path.stem, lambda video: reading.known_rate(video))
    reading.notes += found.notes
    reading.problems += found.wrong
    for row in found.instances:
        where = f"line {row.line}"
        file, label, score = plain_text(row.video), plain_text(row.label), row.score or None
        reading.video(file, subset=row.subset or None)
        if row.unit == "frames":
            reading.add_frames(file, where, label, (row.start, row.end), row.fps or None, score)
        else:
            reading.add(file, where, label, row.start, row.end, score)
    reading.problems.sort(key=line_of)


def plain_text(text: str) -> str:
    """Return a name without the apostrophe that `write_table` puts before what would be computed."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
