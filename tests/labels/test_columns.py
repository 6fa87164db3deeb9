"""Tests of what the names of columns say."""

import pytest

from adatad.labels.columns import columns_of, recognized
from adatad.labels.text_table import TableError


def read(header: str, **given: str) -> dict[str, tuple[str, str]]:
    columns = columns_of(header.split(","), given, "labels.csv")
    return {role: (column.name, column.unit) for role, column in columns.items()}


@pytest.mark.parametrize(
    ("header", "unit"),
    [
        ("video,start,end,label", "seconds"), ("Video,Start,End,Label", "seconds"),
        ("VIDEO,START,END,LABEL", "seconds"),
        ("filename,start_time,stop_time,class", "seconds"), ("file,begin,stop,action", "seconds"),
        ("path,onset,offset,event", "seconds"), ("video_id,t_start,t_end,activity", "seconds"),
        ("name,start_sec,end_sec,behaviour", "seconds"), ("File Name,Start (s),Stop (s),Behavior", "seconds"),
        ("videoName,startTime,endTime,actionLabel", "seconds"), ("id,from,to,annotation", "seconds"),
        ("video_id,start_timestamp,stop_timestamp,category", "seconds"), ("video,tstart,tend,type", "seconds"),
        ("video,start_ms,end_ms,label", "milliseconds"), ("video,start (ms),end (ms),label", "milliseconds"),
        ("video,Begin Time - msec,End Time - msec,annotation", "milliseconds"),
        ("video,Begin Time - hh:mm:ss.ms,End Time - hh:mm:ss.ms,annotation", "seconds"),
        ("video,Begin Time - ss.msec,End Time - ss.msec,annotation", "seconds"),
        ("video,start_frame,end_frame,label", "frames"), ("video,Start Frame,End Frame,label", "frames"),
        ("video,frame_start,frame_end,label", "frames"), ("video,f-init,f-end,label", "frames"),
        ("video,startframe,endframe,label", "frames"), ("video,start frame number,end frame number,label", "frames"),
        ("video,start [min],end [min],label", "minutes"),
    ],
)  # fmt: skip
def test_synonyms_and_units(header, unit):
    found = read(header)
    assert [found[role][0] for role in ("video", "start", "end", "label")] == header.split(",")
    assert {found["start"][1], found["end"][1]} == {unit}
    assert recognized(header.split(",")) == 4


def test_subsets_and_durations_and_what_is_beside():
    found = read("Video,Start,Duration,Label,Split,annotator")
    assert (found["duration"][0], found["subset"][0]) == ("Duration", "Split")
    assert "end" not in found
    assert "duration" not in read("video,start,end,duration,label"), "the video's, where there is an end"


def test_a_plain_name_goes_before_a_synonym_but_for_labels():
    assert read("video,filename,start,start_frame,end,label,name")["video"] == ("video", "seconds")
    assert read("video,start,start_frame,end,end_frame,label")["start"] == ("start", "seconds")
    with pytest.raises(TableError, match=r"'classname' and 'label' can each be the label; .*--columns label=classname"):
        read("classname,video,start,end,label")


def test_names_that_are_given_go_before_all():
    assert read("classname,video,start,end,label", label="classname")["label"][0] == "classname"
    assert read("a,b,Start_Frame,d", video="a", label="d", start="start frame", end="b")["start"] == (
        "Start_Frame", "frames",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("header", "given", "message"),
    [
        ("a,b", {}, "no column video, start, end, label; expected a first line like video,start,end,label"),
        ("video,start,stop,verb", {}, "no column label; .* --columns label=NAME"),
        ("k0,1,3,pour", {}, "no column video, start, end, label"),
        ("video,start,end,label,Label", {}, "has the column 'Label|label' twice"),
        ("video,start_sec,start_ms,end,label", {}, "'start_sec' and 'start_ms' can each be the start; say which"),
        ("video,start,end,label", {"label": "verb"}, "--columns label=verb: no such column"),
        ("video,start,end,label", {"verb": "label"}, "--columns verb: expected one of video, start, end, label"),
        ("video,start_min,start_sec,end,label", {}, "can each be the start"),
    ],
)
def test_headers_that_do_not_tell(header, given, message):
    with pytest.raises(TableError, match=message):
        read(header, **given)
