"""Files as each tool writes them, by its own description: every segment is found, everything else is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatad.labels.forms import read_labels
from adatad.labels.problems import LabelError

FILES = Path(__file__).parent / "files"
EXPECTED = {
    "tiers.eaf": {"rat #1": [("grooming", 2.5, 3.75), ("rearing", 5, 6)]},
    "values.eaf": {"kitchen": [("pour milk", 0, 1.2), ("stir & taste", 1.2, 2.6)]},
    "via3.json": {
        "street one": [("walking", 7.29, 35.04), ("hopping", 40.5, 41)], "park": [("running", 0.5, 1.25)],
    },
    "via3.csv": {"street one": [("walking", 7.29, 35.04), ("hopping, high", 40.5, 41)]},
    "label_studio.json": {
        "tennis match": [("serve", 0, 1), ("rally", 2, 4), ("volley", 2, 4)],
        "final": [("serve", 2, 4)], "speech": [("speech", 0.25, 1.5)],
    },
    "project.boris": {
        "part 1": [("groom", 1.5, 2.25), ("groom", 4, 10)], "part 2": [("groom", 0, 2.5), ("groom", 3, 4)],
    },
    "boris_aggregated.csv": {"mice/part 1": [("groom", 1.5, 2.25), ("groom", 3, 8)]},
    "boris_tabular.tsv": {"mice/part 1": [("groom", 1.5, 2.25)]},
    "fiftyone_samples.json": {"data/hall": [("meeting", 1, 2)]},
    "roboflow.json": {"shop": [("enter", 0, 1), ("pay", 3, 4.5)]},
    "spoken.srt": {"spoken": [("pour", 1.5, 4), ("stir slowly", 60, 62.25), ("12", 3600, 3601)]},
    "spoken.vtt": {"spoken": [("pour & stir", 1.5, 4), ("a --> b", 3600, 3601)]},
    "results.json": {"video_1": [("pour", 0, 2)]},
}  # fmt: skip
AT_25 = {
    "label_studio_min.json": {"clip": [("jump", 0.4, 0.8)]},
    "cvat_tracks.xml": {"match 1": [("goal", 4, 6), ("goal", 8, 10), ("corner", 11, 12)]},
    "cvat_tags.xml": {"match 2": [("corner", 0.44, 0.48), ("goal", 0.4, 0.52), ("goal", 0.8, 0.84)]},
    "datumaro.json": {"datumaro": [("corner", 0.44, 0.48), ("goal", 0.4, 0.48)]},
    "fiftyone.json": {"hall": [("meeting", 0, 1), ("walking", 2.5, 4)], "yard": []},
}
"""Files that count frames and don't say at which rate."""


def told(videos):
    return {
        video.name: sorted((s.label, round(s.start_seconds, 6), round(s.end_seconds, 6)) for s in video.segments)
        for video in videos
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_read_as_its_tool_means_it(name):
    assert told(read_labels(FILES / name)) == {video: sorted(rows) for video, rows in EXPECTED[name].items()}


@pytest.mark.parametrize("name", AT_25)
def test_a_file_of_frames_wants_a_rate_and_is_read_with_one(name):
    with pytest.raises(LabelError, match="frame rate isn't known; give it"):
        read_labels(FILES / name)
    found = read_labels(FILES / name, fps=25)
    assert told(found) == {video: sorted(rows) for video, rows in AT_25[name].items()}


@pytest.mark.parametrize("name", [*EXPECTED, *AT_25])
def test_a_form_is_known_by_its_content_alone(name, tmp_path):
    path = tmp_path / "labels"
    path.write_bytes((FILES / name).read_bytes())
    notes = []
    read_labels(path, fps=25, notes=notes)
    assert notes[0].startswith("read as ")


@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        (
            "tiers.eaf",
            [
                "read as an ELAN document", "of 2 media the labels are taken for D:/my clips/rat #1.mp4",
                "times begin at 2000 ms", "labels are the names of tiers, on grooming, rearing",
                "1 left out: annotations of dependent tiers", "1 left out: annotations whose time slots have no value",
                "1 left out: values of annotations",
            ],
        ),
        ("values.eaf", ["labels are the values of annotations, on action (otherwise: labels_from=tiers)"]),
        (
            "via3.json",
            [
                "labels are the attribute 'TEMPORAL-SEGMENTS', not remark", "1 left out: moments", "entry '1_c'",
                "1 left out: shapes in a frame", "1 left out: values of whole videos",
            ],
        ),
        (
            "label_studio.json",
            [
                "1 left out: annotations that were skipped", "1 left out: further annotations of a task",
                "1 left out: predictions of tasks that have annotations",
                "2 left out: regions that are no segments, such as boxes and choices: task 7, region r3",
            ],
        ),
        (
            "project.boris",
            [
                "1 observations whose time offset was taken off their times: day 1 (100 s)",
                "1 left out: media that play beside others",
                "1 left out: moments",
                "several subjects are taken together: C:/mice/part 1.mp4 (2)",
                "1 segments that were cut where a file ends",
            ],
        ),
        ("boris_aggregated.csv", ["1 left out: moments", "line 3"]),
        ("cvat_tags.xml", ["1 left out: shapes in single frames: image 20"]),
        ("cvat_tracks.xml", ["the task shows one frame of 2 from 100 on; frames are taken as the video counts them"]),
        ("datumaro.json", ["1 left out: shapes that belong to no track: item 3"]),
        (
            "results.json",
            [
                "1 left out: parts of segments before the video's start", "1 left out: segments wholly before",
                "1 left out: segments that end where they begin: video 'video_1', annotation 2",
            ],
        ),
    ],
)  # fmt: skip
def test_what_is_guessed_and_left_out_is_said(name, sentences):
    notes = []
    read_labels(FILES / name, fps=25, notes=notes)
    said = "\n".join(notes)
    assert [sentence for sentence in sentences if sentence not in said] == []


def test_facts_and_scores_come_along():
    (video,) = read_labels(FILES / "fiftyone_samples.json")
    assert (video.file, video.fps, video.duration_seconds, video.frame_count) == ("data/hall.mp4", 25, 4, 100)
    assert video.segments[0].score == 0.9
    assert [video.file for video in read_labels(FILES / "tiers.eaf")] == ["D:/my clips/rat #1.mp4"]
    assert read_labels(FILES / "spoken.srt")[0].segments[0].score == 0.87
    assert read_labels(FILES / "label_studio.json")[1].segments[0].score == 0.75
    assert [video.duration_seconds for video in read_labels(FILES / "project.boris")] == [10, 12.5]


def test_moments_are_refused_or_get_a_length():
    with pytest.raises(LabelError, match=r"holds 2 moments.*point_seconds.*game 1, event 1"):
        read_labels(FILES / "osl.json")
    (video,) = read_labels(FILES / "osl.json", point_seconds=2)
    assert told([video]) == {"game 1/224p": [("PASS", 0.2, 2.2), ("SHOT", 8, 10)]}
    (street, _) = read_labels(FILES / "via3.json", point_seconds=1)
    assert ("running", 12, 13) in told([street])["street one"]
    part, _ = read_labels(FILES / "project.boris", point_seconds=1)
    assert ("rear", 6.5, 7.5) in told([part])["part 1"]


def test_where_labels_stand_can_be_told():
    (video,) = read_labels(FILES / "values.eaf", labels_from="tiers")
    assert {segment.label for segment in video.segments} == {"action"}
    street, _ = read_labels(FILES / "via3.json", labels_from="remark")
    assert told([street])["street one"] == [("new", 40.5, 41)]
    with pytest.raises(LabelError, match="no attribute 'mood', but TEMPORAL-SEGMENTS, remark, person"):
        read_labels(FILES / "via3.json", labels_from="mood")
    with pytest.raises(LabelError, match="tiers or values, got 'mood'"):
        read_labels(FILES / "tiers.eaf", labels_from="mood")


def test_frames_of_a_task_that_counts_its_own_are_those_of_the_video(tmp_path):
    text = (FILES / "cvat_tracks.xml").read_text()
    # Frame 100 of the video is the first that this task shows.
    for frame in (100, 102, 150, 200, 250, 275):
        text = text.replace(f'frame="{frame}"', f'frame="{(frame - 100) // 2}"')
    (tmp_path / "own.xml").write_text(text)
    (video,) = read_labels(tmp_path / "own.xml", fps=25)
    assert told([video]) == {"match 1": [("corner", 10.96, 12), ("goal", 4, 6), ("goal", 8, 10)]}


def test_a_project_of_several_tasks_is_refused(tmp_path):
    (tmp_path / "p.xml").write_text("<annotations><meta><project><task/><task/></project></meta></annotations>")
    with pytest.raises(LabelError, match="holds 2 tasks; export each"):
        read_labels(tmp_path / "p.xml")
