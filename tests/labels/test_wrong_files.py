"""Files that are wrong: everything is listed at once with its place, and no content ends in anything but a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adatad.labels.forms import read_labels
from adatad.labels.problems import LabelError

FILES = Path(__file__).parent / "files"
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON_FILES = sorted(
    path.name for path in FILES.iterdir() if path.suffix in (".json", ".boris") and path.name != "osl.json"
)
OTHER_FILES = sorted(path.name for path in FILES.iterdir() if path.suffix not in (".json", ".boris"))
ODD = [
    None, [], {}, "", "x", "-1", -1, 0, 3, math.nan, math.inf, 10**400, True, [1], [[]], {"a": 1}, [None, {}], "\ud800",
]  # fmt: skip
ODD_BYTES = [b"", b"-1", b"x", b'"', b"\n", b"\xe9", b"\0", b"9" * 30, b"<", b"&", b"NaN", b",", b"\x1b", b"\t"]


def places(value, path=()):
    """Return the paths of all parts of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def with_part(value, path, part):
    if not path:
        return part
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_part(copy[path[0]], path[1:], part)
    return copy


def problems_of(path):
    """Read a file; return what is wrong with the error that refuses it, or with the segments that are read."""
    try:
        videos = read_labels(path, fps=25, point_seconds=1)
    except LabelError as error:
        wrong = [problem for problem in error.problems if not (isinstance(problem, str) and problem)]
        return wrong + [line for line in str(error).split("\n") if not line.isprintable()]
    return [segment for video in videos for segment in video.segments if not is_valid(segment)]


def is_valid(segment):
    has_score = segment.score is None or 0 <= segment.score <= 1
    return 0 <= segment.start_seconds < segment.end_seconds and bool(segment.label) and has_score


@pytest.mark.parametrize("name", JSON_FILES)
@ONE_FOLDER
@given(data=st.data())
def test_any_part_of_a_json_file_may_be_anything(name, data, tmp_path):
    content = json.loads((FILES / name).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        content = with_part(content, data.draw(st.sampled_from(places(content))), data.draw(st.sampled_from(ODD)))
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert problems_of(tmp_path / "labels.json") == []


@pytest.mark.parametrize("name", OTHER_FILES)
@ONE_FOLDER
@given(data=st.data())
def test_any_part_of_a_text_may_be_gone_or_anything(name, data, tmp_path):
    text = (FILES / name).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.sampled_from([0, 1, 5, 40, 400]))
        put = data.draw(st.sampled_from(ODD_BYTES))
        text = text[:start] + put + text[start + gone :]
    (tmp_path / "labels").write_bytes(text)
    assert problems_of(tmp_path / "labels") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"), (b" \n\t\n", "is empty"), (b"\x00\x01\x02\x03\x80", "is a binary file"),
        (b"hello", "of no form that is known here. Looked for: a table"), (b"{}", "of no form that is known"),
        (b"[]", "of no form that is known"), (b"<svg/>", "of no form that is known"),
        (b"[1, 2", "not readable as JSON"),
        (b'{"a": 1, "a": 2}', "stands twice"), (b"[" * 100_000, "nested too deeply"),
        (b"<html><body>", "is an HTML page"), (b"PK\x03\x04rest", "is an Excel workbook"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 12\n", "is a pointer of Git LFS"),
        (b"<ANNOTATION_DOCUMENT><TIER>", "line 1: is not readable as XML"),
        (b'{"database": \xff}', "is a binary file, or text of another encoding"),
        (b"name,colour\na,b\n", "no column start, end, label"),
        (b"\x1f\x8bbroken", "can't be unpacked"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_labels_is_said_as_what_it_is(content, message, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_folder_and_nothing_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone.eaf"):
        with pytest.raises(LabelError, match=path.name):
            read_labels(path)


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;">]>',
        '<?xml version="1.0"?><!-- x --><!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "http://host/x.dtd">',
    ],
)
@pytest.mark.parametrize("root", ["ANNOTATION_DOCUMENT", "annotations"])
def test_xml_with_a_document_type_is_refused(head, root, tmp_path):
    path = tmp_path / "labels.eaf"
    path.write_text(f"{head}<{root}>&lol2;&file;</{root}>")
    with pytest.raises(LabelError, match="has a document type"):
        read_labels(path)


def test_everything_wrong_in_an_elan_file_is_listed(tmp_path):
    text = (FILES / "values.eaf").read_text()
    text = text.replace('TIME_VALUE="2600"', 'TIME_VALUE="soon"').replace('TIME_SLOT_ID="ts2"', 'TIME_SLOT_ID="ts9"')
    (tmp_path / "k.eaf").write_text(text)
    with pytest.raises(LabelError) as caught:
        read_labels(tmp_path / "k.eaf")
    assert caught.value.problems == (
        "tier 'action', a1: its time slot ts2 isn't in the file",
        "tier 'action', a2: expected times in milliseconds, got 1200 and soon",
    )


def test_states_without_a_pair_are_listed(tmp_path):
    project = json.loads((FILES / "project.boris").read_text())
    events = project["observations"]["day 1"]["events"]
    del events[2], events[0]
    events.append(["soon", "", "groom", "", ""])
    (tmp_path / "p.boris").write_text(json.dumps(project))
    with pytest.raises(LabelError) as caught:
        read_labels(tmp_path / "p.boris")
    assert len(caught.value.problems) == 1
    assert "event 6: expected [time, subject, behaviour" in caught.value.problems[0]
    del events[0], events[-1]
    (tmp_path / "p.boris").write_text(json.dumps(project))
    with pytest.raises(LabelError, match=r"'groom' of 'Bob' starts at 12.5 s without a stop"):
        read_labels(tmp_path / "p.boris")


def test_a_field_without_end_is_a_problem_of_its_line(tmp_path):
    (tmp_path / "via.csv").write_text((FILES / "via3.csv").read_text() + '"' + "x" * 200_000 + '"\n')
    with pytest.raises(LabelError, match="line 12: field larger than field limit"):
        read_labels(tmp_path / "via.csv")


def test_a_later_medium_needs_the_length_of_the_one_before(tmp_path):
    project = json.loads((FILES / "project.boris").read_text())
    project["observations"]["day 1"]["media_info"] = {}
    (tmp_path / "p.boris").write_text(json.dumps(project))
    with pytest.raises(LabelError, match=r"the length of 'C:/mice/part 1.mp4' isn't known"):
        read_labels(tmp_path / "p.boris")


def test_a_stop_without_a_start_is_listed_with_its_line(tmp_path):
    text = (FILES / "boris_tabular.tsv").read_text().replace("START", "STOP", 1)
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(LabelError, match=r"line 9: 'groom' stops at 1.5 s without a start"):
        read_labels(tmp_path / "t.tsv")


def test_a_state_may_begin_again_when_it_ends_and_last_no_time(tmp_path):
    head = "Observation id\tMedia file path\tTime\tBehavior\tStatus\n"
    rows = [(1, "START"), (2, "START"), (2, "STOP"), (3, "STOP"), (5, "START"), (5, "STOP")]
    lines = "".join(f"day 1\tk0.mp4\t{time}\tgroom\t{turn}\n" for time, turn in rows)
    (tmp_path / "t.tsv").write_text(head + lines)
    notes = []
    (video,) = read_labels(tmp_path / "t.tsv", notes=notes)
    assert [(s.start_seconds, s.end_seconds) for s in video.segments] == [(1, 2), (2, 3)]
    assert "1 left out: segments that end where they begin: line 6" in notes


def test_wrong_cues_are_listed_by_line(tmp_path):
    text = "1\n00:00:05,000 --> 00:00:01,000\nlate\n\n2\nsoon --> later\nx\n\n3\n00:00:01,000 --> 00:00:02,000\n\n"
    (tmp_path / "k.srt").write_text(text)
    with pytest.raises(LabelError) as caught:
        read_labels(tmp_path / "k.srt")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 2", "line 6", "line 10"]


def test_only_the_first_problems_are_printed_and_all_are_kept(tmp_path):
    rows = "\n".join(f"k0,{n + 1},{n},pour" for n in range(1000))
    (tmp_path / "many.csv").write_text(f"video,start,end,label\n{rows}\n")
    with pytest.raises(LabelError) as caught:
        read_labels(tmp_path / "many.csv")
    assert len(caught.value.problems) == 1000
    assert "1000 problems" in str(caught.value)
    assert "and 980 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 30
