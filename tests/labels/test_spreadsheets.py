"""Tables as spreadsheets write them: any delimiter, encoding, unit and clock; what is guessed is said."""

from __future__ import annotations

import pytest

from adatad.labels.forms import read_labels
from adatad.labels.problems import LabelError
from adatad.labels.records import Segment

POUR = [Segment("pour", 3.2, 7.9)]


def read(tmp_path, content, name="table.csv", **options):
    """Return the videos of a table by name, and the notes."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    notes = []
    videos = read_labels(path, notes=notes, **options)
    return {video.name: list(video.segments) for video in videos}, "\n".join(notes)


@pytest.mark.parametrize(
    "content",
    [
        "video,start,end,label\nk0.mp4,3.2,7.9,pour\n",
        "File Name;Onset;Offset;Behaviour\r\nk0.mp4;3,2;7,9;pour\r\n",
        "sep=;\nvideo;begin;stop;class\nk0.mp4;3,2;7,9;pour\n",
        "video_id\tstart_ms\tend_ms\taction\nk0\t3200\t7900\tpour\n",
        "video|start (s)|duration (s)|event\nk0|3.2|4.7|pour\n",
        "filename,start time,end time,category\nk0.mov,0:00:03.200,0:00:07.900,pour\n",
        "video,start,end,label\nk0,3.2 s,7900 ms,pour\n",
        "video,start_frame,end_frame,label,fps\nk0,32,79,pour,10\n",
        "# by hand\n\nvideo,start,end,label\n\nk0,3.2,0:07.9,pour\n,,,\n",
    ],
)
def test_dialects(tmp_path, content):
    assert read(tmp_path, content)[0] == {"k0": POUR}


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf-8", False), ("utf-8-sig", False), ("utf-16", False), ("utf-16-le", False), ("utf-16-be", False),
        ("cp1252", True), ("latin-1", True),
    ],
)  # fmt: skip
def test_encodings(tmp_path, encoding, says):
    found, notes = read(tmp_path, "video,start,end,label\nk0,3.2,7.9,gießen\n".encode(encoding))
    assert found == {"k0": [Segment("gießen", 3.2, 7.9)]}
    assert ("read as Windows-1252" in notes) == says


def test_timecodes_want_the_frame_rate_and_count_frames_at_it(tmp_path):
    content = "video,start,end,label\nk0,00:00:03:05,00:00:07:10,pour\nk0,1.5,0:00:02;10,stir\n"
    with pytest.raises(LabelError, match=r"line 2.*behind a third colon stand frames"):
        read(tmp_path, content)
    found, _ = read(tmp_path, content, fps=25)
    assert found == {"k0": [Segment("pour", 3.2, 7.4), Segment("stir", 1.5, 2.4)]}


def test_frames_want_a_rate_that_may_be_each_video_s_own(tmp_path):
    content = "video,start frame,end frame,label\nk0,32,79,pour\nk1.mp4,32,79,pour\n"
    with pytest.raises(LabelError) as caught:
        read(tmp_path, content)
    assert [problem[:10] for problem in caught.value.problems] == ["video 'k0'", "video 'k1'"]
    rates = {"k0": 10.0, "k1.mp4": 20.0}
    found, notes = read(tmp_path, content, fps=rates.get)
    assert found == {"k0": POUR, "k1": [Segment("pour", 1.6, 3.95)]}
    assert "frames are counted from 0" in notes


def test_without_a_column_of_videos_the_file_s_name_is_the_video(tmp_path):
    found, notes = read(tmp_path, "start,end,label\n3.2,7.9,pour\n", name="k0.mp4.csv")
    assert found == {"k0": POUR}
    assert "all rows are of 'k0.mp4'" in notes


def test_scores_subsets_and_named_columns(tmp_path):
    content = "clip,t1,t2,verb,confidence,split\nk0,3.2,7.9,pour,0.5,val\nk1,3.2,7.9,pour,1.5,train\n"
    columns = {"start": "t1", "end": "t2", "label": "verb", "video": "clip"}
    path = tmp_path / "t.csv"
    path.write_text(content)
    notes = []
    first, second = read_labels(path, columns=columns, notes=notes)
    assert first.segments == (Segment("pour", 3.2, 7.9, 0.5),)
    assert (first.subset, second.subset) == ("validation", "training")
    assert second.segments[0].score is None
    assert any("1 left out: scores that aren't numbers from 0 to 1: line 3 '1.5'" in note for note in notes)


def test_all_wrong_rows_are_listed_by_line(tmp_path):
    rows = ["k0,7,3,pour", "k0,soon,3,pour", "k0,1,2,", ",1,2,pour", "k0,1,2", "k0,nan,2,pour", "k0,1,2,pour"]
    with pytest.raises(LabelError) as caught:
        read(tmp_path, "video,start,end,label\n" + "\n".join(rows) + "\n")
    assert sorted(int(problem.split()[1].rstrip(":")) for problem in caught.value.problems) == [2, 3, 4, 5, 6, 7]
