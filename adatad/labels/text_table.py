"""Text tables as people have them: divided by commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with blank lines
and comments; each row with the number of its first line.

The meaning of columns is up to the caller (`instance_table`, `official`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from adatad.errors import UserError
from adatad.files import GZIP_START, UTF16_STARTS, read_bytes, read_text, shown, what_it_is

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Millions of rows; a video that was named by mistake is refused before it fills the memory.
MAX_TABLE_BYTES = 256 << 20
MAX_HEADER_CHARACTERS = 300
"""Longest header that an error repeats."""
MAX_COLUMNS = 1000
"""More columns mean that a row of data was taken for the header."""
COMMENT = "#"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""First line by which Excel is told the delimiter."""
# By their first bytes, as endings are often wrong; each has its own advice.
OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook (.xlsx) or another zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls)",
    b"%PDF": "a PDF file",
    b"{\\rtf": "a text with formats (.rtf)",
    b"SQLite format": "an SQLite database",
    b"PAR1": "a Parquet file",
    b"<": "an XML or HTML file",
    b"{": "a JSON file",
    b"[{": "a JSON file",
}
SAVE_AS_CSV = "save the table as CSV (in Excel: File, Save As, CSV UTF-8)"


class TableError(UserError):
    """Raised for an unusable table; the message names the file and the line, and what was expected."""


class TableRow(NamedTuple):
    """Row of a table. line: number of its first line, from 1; fields: without surrounding spaces, one a column."""

    line: int
    fields: list[str]


class Table(NamedTuple):
    """A table. header: column names as found; problems: sentences about lines that aren't among `rows`; comments:
    numbers of lines that are comments."""

    path: Path
    header: list[str]
    delimiter: str
    rows: list[TableRow]
    problems: list[str]
    comments: list[int]

    def header_shown(self) -> str:
        """Return the header as found, for an error."""
        names = self.delimiter.join(self.header[:20])
        return f"{shown(names, MAX_HEADER_CHARACTERS)!r} (divided by {DELIMITERS[self.delimiter]})"


def read_table(path: Path, recognize: Callable[[list[str]], int]) -> Table:
    """Read a file in UTF-8 or UTF-16 as `table_of` reads a text. Raises FileError for what can't be read, too."""
    return table_of(_table_text(path), path, recognize)


def table_of(text: str, path: Path, recognize: Callable[[list[str]], int]) -> Table:
    """Return the table in a text with a header. path: its file, for errors.

    recognize: returns how many of a header's columns the caller knows, which shows the delimiter, whatever the rows
    hold. Rows with too many or too few fields are in `problems`. Raises TableError for what is no table.
    """
    lines = list(io.StringIO(text, newline=""))
    first, delimiter, commented = _find_header(lines, recognize)
    if first == len(lines):
        raise TableError(f"{path}: is empty; expected a first line that names the columns, and one row a line")
    # The csv module alone can't say on which line a row of several lines began.
    reader = _Records(path, lines, first, delimiter)
    if commented:
        # The header is written as a comment: its mark is no part of the first name.
        reader.lines[first] = reader.lines[first].lstrip().lstrip(COMMENT)
    header = _stripped(next(iter(reader)).fields)
    if len(header) > MAX_COLUMNS:
        raise TableError(f"{path}: line {first + 1} has {len(header)} columns; is it a table with a header?")
    rows, problems = [], []
    for row in reader:
        fields = _stripped(row.fields)
        # A line of delimiters alone, as spreadsheets write below a table.
        if not fields:
            continue
        if len(fields) > len(header) or len(row.fields) < len(header):
            problems.append(_wrong_count(row, len(fields), header, delimiter))
            continue
        rows.append(TableRow(row.line, fields + [""] * (len(header) - len(fields))))
    return Table(path, header, delimiter, rows, problems, reader.comments)


def _table_text(path: Path) -> str:
    """Return a table's text. Raises TableError, which says what else the file seems to be."""
    content = read_bytes(path, MAX_TABLE_BYTES)
    if content.startswith(GZIP_START):
        text = read_text(path, MAX_TABLE_BYTES)
    else:
        what = what_it_is(content) or next(
            (f"{what}; {SAVE_AS_CSV}" for start, what in OTHER_FILES.items() if content.lstrip().startswith(start)),
            None,
        )
        if what:
            raise TableError(f"{path}: is {what}")
        try:
            text = content.decode("utf-16" if content.startswith(UTF16_STARTS) else "utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise TableError(f"{path}: line {line} is no text in UTF-8; {SAVE_AS_CSV}") from error
    if "\0" in text:
        raise TableError(f"{path}: is a binary file, or text of another encoding than UTF-8; {SAVE_AS_CSV}")
    return text


def _find_header(lines: list[str], recognize: Callable[[list[str]], int]) -> tuple[int, str, bool]:
    """Return (index of the header's line, delimiter, whether it is written as a comment).

    The header is the first line that is neither blank nor a comment, unless a comment before it holds the names.
    """
    comments, first, told = [], len(lines), None
    for number, line in enumerate(lines):
        text = line.strip()
        # Excel's own line goes before everything: it says the delimiter, and holds no data.
        separator = SEPARATOR_LINE.fullmatch(line.strip("\r\n\ufeff "))
        if separator and separator[1] in DELIMITERS:
            told = separator[1]
        elif text.startswith(COMMENT):
            comments.append(number)
        elif text.strip(";,|"):
            first = number
            break
    # In a tie an uncommented line wins, then the delimiter that gives more columns.
    candidates = [(first, False), *((number, True) for number in comments)]
    best, found = (0, 0, 0), (first, told or ",", False)
    # Every candidate line with every delimiter; the one of which the caller knows most columns is the header.
    for number, commented in candidates:
        for delimiter in (told,) if told else DELIMITERS:
            header = _header_names(lines, number, delimiter, commented)
            quality = (recognize(header), not commented, len(header))
            if quality > best:
                best, found = quality, (number, delimiter, commented)
    return found


def _header_names(lines: list[str], number: int, delimiter: str, commented: bool) -> list[str]:
    """Return a header's names; it may hold line breaks in quotes."""
    # Ten lines: a quoted name may hold line breaks, and a stray quote mustn't swallow the file.
    start = lines[number : number + 10]
    if commented:
        start = [start[0].lstrip().lstrip(COMMENT)]
    try:
        return _stripped(next(csv.reader(start, delimiter=delimiter, skipinitialspace=True), []))
    except csv.Error:
        return []


class _Records:
    """Rows of a table from a certain line on, without comments and blank lines."""

    def __init__(self, path: Path, lines: list[str], first: int, delimiter: str):
        self.path, self.lines, self.first, self.delimiter = path, lines, first, delimiter
        self.comments: list[int] = []
        self._next, self._begins, self._started = first, first, False

    def __iter__(self) -> Iterator[TableRow]:
        # strict: a quote in the middle of a field is an error, not silently part of the text.
        reader = csv.reader(self._fed(), delimiter=self.delimiter, skipinitialspace=True, strict=True)
        while True:
            self._started = False
            try:
                fields = next(reader, None)
            except csv.Error as error:
                said = str(error)
                if "unexpected end" in said:
                    said = "a quote that opens here is never closed"
                raise TableError(f"{self.path}: line {self._begins + 1}: {said}") from error
            if fields is None:
                return
            yield TableRow(self._begins + 1, fields)

    def _fed(self) -> Iterator[str]:
        """Yield lines to csv's reader, which takes as many as a row has: only the first of a row can be a comment."""
        while self._next < len(self.lines):
            number, line = self._next, self.lines[self._next]
            self._next += 1
            if not self._started:
                # A tab before the mark ends an empty field: the mark begins the second one.
                if line.lstrip(" ").startswith(COMMENT):
                    self.comments.append(number + 1)
                    continue
                self._begins, self._started = number, True
            yield line


def _stripped(fields: list[str]) -> list[str]:
    """Return fields without surrounding spaces, and without the empty fields at a line's end."""
    fields = [field.strip().strip("\ufeff") for field in fields]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _wrong_count(row: TableRow, filled: int, header: list[str], delimiter: str) -> str:
    """Return a message on a row with too many or too few fields, with the likely reason."""
    count = max(filled, len(row.fields)) if filled > len(header) else len(row.fields)
    text = f"line {row.line} has {counted(count, 'field')} under {counted(len(header), 'column')}"
    if count > len(header):
        number = ", and so does a decimal comma" if delimiter == "," else ""
        return f"{text}: a label with a {DELIMITERS[delimiter].removesuffix('s')} wants quotes{number}"
    others = [other for other in DELIMITERS if other != delimiter and any(other in field for field in row.fields)]
    if count == 1 and others:
        return f"{text}: the header is divided by {DELIMITERS[delimiter]}, this line by {DELIMITERS[others[0]]}?"
    return f"{text}; the header is {shown(delimiter.join(header))!r}"


def counted(number: int, what: str) -> str:
    """Return a count in words as people write it: "one field", "five fields", "12 fields"."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    ending = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{words[number] if number < len(words) else f'{number:,}'} {what}{ending}"
