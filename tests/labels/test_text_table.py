"""Tables of text in the forms that spreadsheets and other programs write."""

import gzip

import pytest

from adatad.files import FileError
from adatad.labels.columns import recognized
from adatad.labels.text_table import TableError, counted, read_table

ROWS = [["k0", "1", "3", "pour"], ["k1", "2", "5", "stir"]]


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes):
        (tmp_path / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(tmp_path / "labels.csv", recognized)

    return read


def text(delimiter: str = ",", end: str = "\n") -> str:
    return "".join(delimiter.join(row) + end for row in (["video", "start", "end", "label"], *ROWS))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", ", " ; "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_are_told_from_the_header(read, delimiter, end):
    table = read(text(delimiter, end))
    assert (table.header, [row.fields for row in table.rows]) == (["video", "start", "end", "label"], ROWS)
    assert [row.line for row in table.rows] == [2, 3]
    assert table.problems == []


def test_what_rows_hold_does_not_tell_the_delimiter(read):
    table = read('video,start,end,label\n"a;b;c;d;e",1,3,x;y;z\n')
    assert table.rows[0].fields == ["a;b;c;d;e", "1", "3", "x;y;z"]


@pytest.mark.parametrize(
    "content",
    [
        text().encode("utf-8-sig"), text("\t").encode("utf-16"), b"\xfe\xff" + text("\t").encode("utf-16-be"),
        gzip.compress(text().encode(), mtime=0), b"sep=;\r\n" + text(";").encode(),
        b"\n \n" + text().encode() + b"\n,,,\n",
        b"# written by a tool\n" + text().encode(), b"#" + text().encode(), b"# 3 videos\n# " + text().encode(),
        text(end=",,\n").encode(), b'"video","start","end","label"\nk0,1,3,pour\nk1,2,5,stir',
    ],
)  # fmt: skip
def test_encodings_marks_blank_lines_and_comments(read, content):
    table = read(content)
    assert (table.header, [row.fields for row in table.rows]) == (["video", "start", "end", "label"], ROWS)


def test_a_mark_of_comments_in_a_later_field_is_text(read):
    table = read("annotator\tlabel\tvideo\n\t#tag\tk0\n#\tpour\tk0\n")
    assert [row.fields for row in table.rows] == [["", "#tag", "k0"]]
    assert table.comments == [3]


def test_fields_in_quotes_hold_commas_and_lines_and_rows_keep_their_line(read):
    table = read(
        'video,start,end,"label\n(text)"\nk0,1,3,"pour, slowly"\n\n# k9,1,2,x\nk1,2,5,"two\nlines"\nk2,3,4,stir\n'
    )
    assert table.header[3] == "label\n(text)"
    assert [(row.line, row.fields[3]) for row in table.rows] == [(3, "pour, slowly"), (6, "two\nlines"), (8, "stir")]
    assert table.comments == [5]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("k0,1,3,pour, slowly", "line 2 has five fields under four columns: a label with a comma wants quotes"),
        ("k0,1,3", "line 2 has three fields under four columns; the header is 'video,start,end,label'"),
        ("k0;1;3;pour",
         "line 2 has one field under four columns: the header is divided by commas, this line by semicolons?"),
    ],
)  # fmt: skip
def test_too_many_or_too_few_fields_are_told_with_their_line(read, line, problem):
    table = read(f"video,start,end,label\n{line}\nk1,2,5,stir\n")
    assert len(table.rows) == 1
    assert table.problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"), (b"\n  \n", "is empty"), (b"# only a comment\n", "is empty"),
        (b"PK\x03\x04rest", r"is an Excel workbook \(.xlsx\).*save the table as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "is an old Excel workbook"),
        (b"<!DOCTYPE html><html>", "is an HTML page"), (b'<?xml version="1.0"?>', "is an XML or HTML file"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 12\n", "is a pointer of Git LFS"),
        (b'{"database": {}}', "is a JSON file"), (b"%PDF-1.7", "is a PDF file"),
        (b"video,start\0,end,label\n", "is a binary file"), (text().encode("utf-16-le"), "is a binary file"),
        ("video,start,end,label\nk0,1,3,gießen\n".encode("latin-1"), "line 2 is no text in UTF-8"),
        (b'video,start,end,label\nk0,1,3,pour\nk1,2,5,"stir\nk2,1,2,x\n', "line 3: a quote that opens here is never"),
        (b'video,start,end,label\nk0,1,3,"pour" x\n', "line 2: "),
        (b"video,start,end,label\nk0,1,3," + b"x" * 140_000 + b"\n", "line 2: field larger than field limit"),
        (b"," .join(b"c%d" % n for n in range(2000)) + b"\n1\n", "line 1 has 2000 columns"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_said_as_what_it_is(read, content, message):
    with pytest.raises((TableError, FileError), match=rf"labels\.csv: {message}"):
        read(content)


def test_a_folder_or_nothing_in_the_place_of_a_table(tmp_path):
    for path in (tmp_path, tmp_path / "gone.csv"):
        with pytest.raises(FileError, match=path.name):
            read_table(path, recognized)


def test_counts_are_written_as_people_write_them():
    assert [counted(n, "field") for n in (0, 1, 5, 1200)] == ["no fields", "one field", "five fields", "1,200 fields"]
