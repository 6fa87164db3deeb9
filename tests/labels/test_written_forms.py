"""Files of labels as other programs read them: their own parsers find every segment, whatever it is called."""

import csv
import html
import io
import json
import math
from itertools import pairwise

import pytest
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st
from label_samples import TRICKY_LABELS, segments
from pympi import Eaf

from adatad.labels.forms import COUNTED_IN_FRAMES, FORMS, OF_ONE_VIDEO, write_labels
from adatad.labels.problems import LabelError
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.score_text import with_score

ALL = VideoLabels(
    "clip one",
    tuple(Segment(label, n, n + 1.5, 0.5) for n, label in enumerate(TRICKY_LABELS)),
    file="/data/my clips/clip one.mp4",
    duration_seconds=60,
    fps=25,
)


def milliseconds(video):
    return sorted((round(s.start_seconds * 1000), round(s.end_seconds * 1000)) for s in video.segments)


def milliseconds_in(clock):
    hours, minutes, seconds = clock.split(":")
    return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000)


@given(segments=segments())
def test_the_srt_parser_finds_every_cue(segments):
    video = VideoLabels("k0", segments)
    cues = list(srt.parse(write_labels("srt", [video])))
    found = sorted((round(c.start.total_seconds() * 1000), round(c.end.total_seconds() * 1000)) for c in cues)
    assert found == milliseconds(video)
    texts = sorted(with_score(s.label, s.score).replace("-->", "→") for s in segments)
    assert sorted(cue.content for cue in cues) == texts


@given(segments=segments())
def test_the_webvtt_parser_finds_every_cue(segments):
    video = VideoLabels("k0", segments)
    cues = webvtt.from_string(write_labels("vtt", [video])).captions
    found = sorted((milliseconds_in(c.start), milliseconds_in(c.end), html.unescape(c.raw_text)) for c in cues)
    expected = [
        (round(s.start_seconds * 1000), round(s.end_seconds * 1000), with_score(s.label, s.score)) for s in segments
    ]
    assert found == sorted(expected)


@given(segments=segments())
def test_pympi_finds_every_annotation_and_no_tier_overlaps(segments, tmp_path_factory):
    path = tmp_path_factory.mktemp("eaf") / "k0.eaf"
    path.write_text(write_labels("eaf", [VideoLabels("k0", segments)]), encoding="utf-8")
    document = Eaf(str(path))
    found = []
    for tier in document.get_tier_names():
        rows = sorted(document.get_annotation_data_for_tier(tier))
        assert all(before[1] <= after[0] for before, after in pairwise(rows))
        found += [(start, end, value) for start, end, value, *_ in rows]
    expected = [
        (round(s.start_seconds * 1000), round(s.end_seconds * 1000), with_score(s.label, s.score)) for s in segments
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_table_is_read_by_csv_and_computes_nothing(form, delimiter):
    rows = list(csv.DictReader(io.StringIO(write_labels(form, [ALL])), delimiter=delimiter))
    assert [row["label"].lstrip("'") for row in rows] == [label.lstrip("'") for label in TRICKY_LABELS]
    assert not any(row["label"].startswith(("=", "+", "-", "@")) for row in rows)
    assert {row["video"] for row in rows} == {"clip one"}
    assert [float(row["end"]) - float(row["start"]) for row in rows] == [1.5] * len(rows)
    assert {row["score"] for row in rows} == {"0.5"}


@pytest.mark.parametrize("form", FORMS)
def test_no_segment_gets_zero_length_or_ends_before_it_starts(form):
    short = VideoLabels("k0", (Segment("blink", 3.00001, 3.00002), Segment("blink", 5, 5)), fps=25)
    text = write_labels(form, [short])
    if form in ("srt", "vtt"):
        cues = srt.parse(text) if form == "srt" else webvtt.from_string(text).captions
        assert all(cue.start < cue.end for cue in cues)
    if form == "labelstudio":
        ranges = [region["value"]["ranges"][0] for region in json.loads(text)[0]["annotations"][0]["result"]]
        assert ranges == [{"start": 76, "end": 76}, {"start": 126, "end": 126}]
    if form == "eaf":
        assert 'TIME_VALUE="3000"' in text
        assert 'TIME_VALUE="3001"' in text


@pytest.mark.parametrize("form", FORMS)
def test_control_characters_and_halves_of_characters_leave_a_valid_file(form, tmp_path):
    odd = VideoLabels("k\x000", (Segment("a\x0bb\r\nc\ud800\x01", 1, 2, 0.5),), file="/data/k\udcff.mp4", fps=10)
    text = write_labels(form, [odd])
    text.encode("utf-8")
    if form == "eaf":
        (tmp_path / "k.eaf").write_text(text, encoding="utf-8")
        assert "a b c\ufffd\ufffd" in Eaf(str(tmp_path / "k.eaf")).get_tier_names()


@pytest.mark.parametrize("form", FORMS)
def test_a_video_without_segments_has_a_file(form):
    assert isinstance(write_labels(form, [VideoLabels("k0", fps=30)]), str)


@pytest.mark.parametrize("form", sorted(set(FORMS) - OF_ONE_VIDEO))
def test_several_videos_go_into_one_file(form):
    text = write_labels(form, [VideoLabels(name, (Segment("pour", 1, 2),), fps=30) for name in ("k0", "k1")])
    assert "k0" in text
    assert "k1" in text


@pytest.mark.parametrize("form", sorted(COUNTED_IN_FRAMES))
def test_a_form_of_frames_says_that_the_rate_is_missing(form):
    with pytest.raises(LabelError, match=r"k0.*frame rate"):
        write_labels(form, [VideoLabels("k0", (Segment("pour", 1, 2),))])


@given(start=st.floats(), end=st.floats(), score=st.none() | st.floats(), form=st.sampled_from(sorted(FORMS)))
def test_any_numbers_give_a_file_or_one_error(start, end, score, form):
    video = VideoLabels("k0", (Segment("pour", start, end, score),), fps=30)
    try:
        text = write_labels(form, [video])
    except LabelError:
        return
    assert start <= end
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_wrong_time_in_a_form_of_frames_does_not_fill_the_memory():
    with pytest.raises(LabelError, match="300,000,000 frames would have a tag"):
        write_labels("cvat", [VideoLabels("k0", (Segment("pour", 0, 1e7),), fps=30)])


def test_every_wrong_segment_is_listed():
    wrong = (Segment("pour", 2, 1), Segment("stir", math.nan, 3), Segment(" ", 1, 2), Segment("cut", 1, 2, 3))
    with pytest.raises(LabelError) as caught:
        write_labels("csv", [VideoLabels("k0", wrong)])
    assert len(caught.value.problems) == 4


def test_an_unknown_form_and_several_videos_in_a_form_of_one_are_refused():
    with pytest.raises(LabelError, match="there are activitynet, csv"):
        write_labels("docx", [])
    with pytest.raises(LabelError, match="one video"):
        write_labels("srt", [VideoLabels("a"), VideoLabels("b")])
    with pytest.raises(LabelError, match="2 videos are called 'a'"):
        write_labels("csv", [VideoLabels("a"), VideoLabels("a")])


def test_label_studio_tells_guesses_from_labels_by_hand():
    video = VideoLabels("k0", (Segment("pour", 0, 1, 0.9), Segment("stir", 2, 3, 0.5)), file="s3://b/k0.mp4", fps=10)
    (task,) = json.loads(write_labels("labelstudio", [video]))
    assert task["data"] == {"video": "s3://b/k0.mp4", "fps": 10}
    first = task["predictions"][0]["result"][0]
    assert first["value"] == {"ranges": [{"start": 1, "end": 10}], "timelinelabels": ["pour"]}
    assert first["score"] == 0.9
    assert {"from_name", "to_name", "type", "id"} <= set(first)
    assert task["predictions"][0]["model_version"] == "adatad"
    by_hand = VideoLabels("k0", (Segment("stir", 2, 3),), fps=10)
    (task,) = json.loads(write_labels("labelstudio", [by_hand]))
    assert "predictions" not in task
    assert [region["value"]["timelinelabels"] for region in task["annotations"][0]["result"]] == [["stir"]]


def test_boris_pairs_starts_and_stops_by_subject_and_behaviour():
    video = VideoLabels("k0", (Segment("pour", 0, 5, 0.9), Segment("pour", 3, 8), Segment("pour", 8, 9)), fps=10)
    project = json.loads(write_labels("boris", [video]))
    events = project["observations"]["k0"]["events"]
    assert [row[:3] for row in events] == [
        [0, "", "pour"], [3, "2", "pour"], [5, "", "pour"], [8, "2", "pour"], [8, "", "pour"], [9, "", "pour"],
    ]  # fmt: skip
    assert [row[4] for row in events] == ["score 0.9", "", "", "", "", ""]
    assert [subject["name"] for subject in project["subjects_conf"].values()] == ["2"]
    assert [behavior["code"] for behavior in project["behaviors_conf"].values()] == ["pour"]


def test_via_names_the_video_and_has_the_label_as_an_option():
    project = json.loads(write_labels("via", [ALL]))
    assert project["project"]["vid_list"] == ["1"]
    assert project["file"]["1"]["fname"] == "clip one.mp4"
    entry = project["metadata"]["1_1"]
    assert entry["z"] == [0, 1.5]
    assert project["attribute"]["1"]["options"][entry["av"]["1"]] == "pour"
