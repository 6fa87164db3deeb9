"""Rows of tables: what was written in any dialect comes back; no content ends in anything but a sentence."""

import csv
import io

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adatad.errors import UserError
from adatad.labels.instance_table import Instance, read_instances

ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADERS = [
    (["video", "start", "end", "label"], "seconds"),
    (["File Name", "Start (s)", "Stop (s)", "Behavior"], "seconds"),
    (["video_id", "start_ms", "end_ms", "class"], "milliseconds"),
    (["Video", "Start Frame", "End Frame", "Action"], "frames"),
]
PER_UNIT = {"seconds": 1, "milliseconds": 1000, "frames": 1}
labels = st.text("abc,;|'\"# []{}\u00e9\u65e5-", min_size=1, max_size=8).map(str.strip).filter(bool)
rows = st.lists(st.tuples(labels, st.integers(0, 90), st.integers(1, 9), labels), min_size=1, max_size=6)


@ONE_FOLDER
@given(
    rows=rows, header=st.sampled_from(HEADERS), delimiter=st.sampled_from(",;\t|"), comma=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)  # fmt: skip
def test_every_dialect_comes_back(tmp_path, rows, header, delimiter, comma, encoding, end):
    names, unit = header
    expected = [
        Instance(0, video, float(start), float(start + length), label, "", "") for video, start, length, label in rows
    ]

    def number(seconds: float) -> str:
        if unit != "seconds":
            return str(int(seconds * PER_UNIT[unit]))
        return f"{seconds:.1f}".replace(".", "," if comma else ".")

    text = io.StringIO()
    # All in quotes, so that no field begins a comment.
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(names)
    writer.writerows([row.video, number(row.start), number(row.end), row.label] for row in expected)
    (tmp_path / "labels.csv").write_bytes(text.getvalue().encode(encoding))
    instances, _, wrong = read_instances(tmp_path / "labels.csv", {})
    assert wrong == []
    assert [row._replace(line=0, unit="") for row in instances] == expected


@ONE_FOLDER
@given(
    lines=st.lists(
        st.text(st.sampled_from("k0,;\t|\"'#:.-+eE159 \r\x00\x1b\u2028\ufeffnaif"), max_size=24), max_size=6
    ),
    header=st.sampled_from(["video,start,end,label", "video;start;end;label", "", "video,start_frame,end_frame,label"]),
)
def test_any_content_gives_rows_and_sentences_or_one_error(tmp_path, lines, header):
    (tmp_path / "labels.csv").write_bytes("\n".join([header, *lines]).encode())
    instances, sentences = [], []
    try:
        instances, notes, wrong = read_instances(tmp_path / "labels.csv", {})
        sentences = notes + wrong
    except UserError as error:
        sentences = [str(error)]
    assert all(0 <= row.start < row.end for row in instances)
    assert all(sentence.isprintable() for sentence in sentences), sentences
    assert len({row.line for row in instances}) == len(instances)


def test_labels_whose_accents_are_written_in_two_ways_are_one_class(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("video,start,end,label\na,0,1,caf\u00e9\na,1,2,cafe\u0301\n", encoding="utf-8")
    instances, _, wrong = read_instances(table, {})
    assert wrong == []
    assert {row.label for row in instances} == {"caf\u00e9"}
