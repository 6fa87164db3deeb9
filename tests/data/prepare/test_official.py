"""Official files, written here in their published form out of what they were once converted to: the same comes back."""

import csv
import gzip
import json

import av
import numpy as np
import pytest

from adatad.data.prepare.demo import write_video
from adatad.data.prepare.official import activitynet, charades, ego4d, epic, not_scored, thumos
from adatad.errors import UserError
from adatad.files import FileError


def table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def unique(items):
    return list({str(item): item for item in items}.values())


def read(path):
    with gzip.open(path) as file:
        return json.load(file)["database"]


def test_charades_comes_back(shared_folder, tmp_path):
    # Every fifth video is enough.
    truth = dict(list(read(shared_folder / "data/annotations/charades.json.gz").items())[::5])
    for file, subset in (("Charades_v1_train.csv", "training"), ("Charades_v1_test.csv", "testing")):
        rows = []
        for name, entry in truth.items():
            actions = ";".join(
                f"{a['label']} {a['segment'][0]:.2f} {a['segment'][1]:.2f}" for a in entry["annotations"]
            )
            if entry["subset"] == subset:
                rows.append({"id": name, "script": 'a "b", c', "actions": actions, "length": entry["duration"]})
        table(tmp_path / file, rows)
    database, classes = charades(tmp_path)
    assert len(classes) == 157
    assert database.keys() == truth.keys()
    for name, entry in truth.items():
        assert database[name] == {**entry, "annotations": unique(entry["annotations"])}


def stamp(seconds):
    hundredths = round(seconds * 100)
    return f"{hundredths // 360000:02d}:{hundredths // 6000 % 60:02d}:{hundredths % 6000 / 100:05.2f}"


@pytest.mark.parametrize("task", ["verb", "noun"])
def test_epic_comes_back(task, shared_folder, tmp_path):
    folder = shared_folder / "data/annotations"
    truth = read(folder / "epic_kitchens_partial.json.gz")
    (tmp_path / "EPIC_100_video_info.csv").write_bytes((folder / "epic_video_info.csv").read_bytes())
    names = [line.split("\t")[1] for line in (folder / f"epic_{task}_classes.txt").read_text().splitlines()]
    table(tmp_path / f"EPIC_100_{task}_classes.csv", [{"id": n, "key": name} for n, name in enumerate(names)])
    for file, subset in (("EPIC_100_train.csv", "train"), ("EPIC_100_validation.csv", "val")):
        table(tmp_path / file, [
            {"video_id": name, "start_timestamp": stamp(a["segment"][0]), "stop_timestamp": stamp(a["segment"][1]),
             "verb_class": a["verb"], "noun_class": a["noun"]}
            for name, entry in truth.items() if entry["subset"] == subset for a in entry["annotations"]
        ])  # fmt: skip
    with open(folder / "epic_video_info.csv") as file:
        unseen = next(row["video_id"] for row in csv.DictReader(file) if row["video_id"] not in truth)
    table(tmp_path / "EPIC_100_test_timestamps.csv", [{"video_id": unseen, "start_timestamp": stamp(1)}])
    database, classes = epic(tmp_path, task)
    occurring = sorted({a[task] for entry in truth.values() for a in entry["annotations"]})
    assert classes == [f"{number}\t{names[number]}" for number in occurring]
    assert len(classes) < len(names)
    assert database.keys() - truth.keys() == {unseen}
    assert (database[unseen]["subset"], database[unseen]["annotations"]) == ("test", [])
    for name, entry in truth.items():
        got = database[name]
        assert (got["subset"], got["fps"]) == (entry["subset"], pytest.approx(entry["fps"], abs=0.01))
        assert got["duration"] == pytest.approx(entry["duration"], abs=1e-4)
        expected = unique([{**a, "label": names[a[task]]} for a in entry["annotations"]])
        assert [a["label"] for a in got["annotations"]] == [a["label"] for a in expected]
        ends = [np.array([a["segment"] for a in items]) for items in (got["annotations"], expected)]
        assert np.abs(ends[0] - ends[1]).max() < 1e-6


def test_ego4d_clips_have_their_own_time(tmp_path):
    label = {"video_start_time": 103.5, "video_end_time": 110.0, "label": "wash_hands", "primary": True}
    clip = {"clip_uid": "c1", "video_start_sec": 100.0, "video_end_sec": 580.0, "video_start_frame": 3000,
            "video_end_frame": 17400}  # fmt: skip
    annotators = [{"labels": [label, {**label, "label": "other", "primary": False}]}, {"labels": [label]}]
    unlabelled = {**clip, "clip_uid": "without labels", "annotations": [{"labels": []}]}
    too_slow = {**clip, "clip_uid": "5 fps", "video_end_frame": 5400, "annotations": annotators}
    clips = [{**clip, "annotations": annotators}, unlabelled, too_slow]
    train = {"video_uid": "v1", "split": "train", "clips": clips}
    test = {"video_uid": "v2", "split": "test", "clips": [{**clip, "clip_uid": "c2"}]}
    contents = {"moments_train.json": [train], "moments_val.json": [], "moments_test_unannotated.json": [test]}
    for file, videos in contents.items():
        (tmp_path / file).write_text(json.dumps({"videos": videos}))
    database, classes = ego4d(tmp_path)
    facts = {"duration": 480.0, "frame": 14400}
    assert database == {
        "c1": {"subset": "train", **facts, "annotations": [{"segment": [3.5, 10.0], "label": "wash_hands"}]},
        "c2": {"subset": "test", **facts, "annotations": []},
    }
    assert classes == ["wash_hands"]


def test_thumos_files_and_videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("video_validation_0000001", "video_test_0000002"):
        write_video(tmp_path / "videos" / f"{name}.mp4", np.zeros((30, 32, 32, 3), np.uint8))
    (tmp_path / "text").mkdir()
    (tmp_path / "text/Diving_val.txt").write_text("video_validation_0000001  0.1 0.9\n\n")
    (tmp_path / "text/Diving_test.txt").write_text("video_test_0000002 0.2 0.8\nvideo_test_0000002 0.2 0.8\n")
    (tmp_path / "text/Ambiguous_test.txt").write_text("video_test_0000002 0.4 0.5\n")
    database, classes = thumos(tmp_path / "text", tmp_path / "videos")
    assert classes == ["Diving"]
    assert thumos(tmp_path / "text", tmp_path / "videos", ["video_test_0000002"])[0].keys() == {
        "video_validation_0000001"
    }
    entry = database["video_test_0000002"]
    assert (entry["subset"], entry["frame"], database["video_validation_0000001"]["subset"]) == (
        "validation",
        30,
        "training",
    )
    assert [a["label"] for a in entry["annotations"]] == ["Ambiguous", "Diving"]
    (tmp_path / "text/Diving_val.txt").write_text("".join(f"video_validation_{n:07d} 0.1 0.9\n" for n in range(14)))
    with pytest.raises(UserError, match=r"videos: 13 of 15 annotated .*: video_validation_0000000, .* and 3 more;"):
        thumos(tmp_path / "text", tmp_path / "videos")
    (tmp_path / "text/Diving_val.txt").write_text("video_validation_0000001 soon 0.9\n")
    with pytest.raises(UserError, match=r"Diving_val\.txt, line 1: can't read"):
        thumos(tmp_path / "text", tmp_path / "videos")
    with pytest.raises(FileError, match=r"Charades_v1_train\.csv: can't be read: No such file"):
        charades(tmp_path)


def still_mpeg4(path):
    """A video in which nothing moves: MPEG-4 holds packets then that may give no frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60, np.uint8))))
        container.mux(stream.encode())


def test_a_video_that_does_not_tell_its_length_gets_none_of_zero(tmp_path):
    """Either the true length, or an error that names it."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "text").mkdir()
    still_mpeg4(tmp_path / "videos/video_validation_0000001.mp4")
    (tmp_path / "videos/video_validation_0000002.mp4").write_text("no video")
    (tmp_path / "text/Diving_val.txt").write_text("video_validation_0000001 0.1 0.9\n")
    try:
        seconds, said = thumos(tmp_path / "text", tmp_path / "videos")[0]["video_validation_0000001"]["duration"], ""
    except UserError as error:
        seconds, said = 3.0, str(error)
    assert seconds == pytest.approx(3.0, abs=0.2)
    assert not said or "video_validation_0000001.mp4: doesn't tell how long it lasts" in said
    (tmp_path / "text/Diving_val.txt").write_text("video_validation_0000002 0.1 0.9\n")
    with pytest.raises(UserError, match=r"1 of 1 videos can't be used:\n  .*_0000002\.mp4: can't be opened"):
        thumos(tmp_path / "text", tmp_path / "videos")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video_validation_0000001 0.1 nan\n", r"Diving_val\.txt, line 1: can't read"),
        ("video_validation_0000001 0.1 0.9\nvideo_validation_0000001 0.1\n", r"Diving_val\.txt, line 2: can't read"),
        (b"video_validation_0000001 0.1 0.9\nv\xe9 1 2\n", r"Diving_val\.txt: line 2 is no text in UTF-8"),
        ("\n", "0 videos and no instance could be read"),
    ],
)
def test_lists_of_thumos_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/video_validation_0000001.mp4", np.zeros((16, 32, 32, 3), np.uint8))
    (tmp_path / "Diving_val.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        thumos(tmp_path, tmp_path / "videos")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": "nan"}, r"Charades_v1_train\.csv, line 2: can't read 'nan'"),
        ({"length": "-3"}, r"video 'A': expected \"duration\" in seconds, more than 0"),
        ({"length": "inf"}, r"line 2: can't read 'inf'"), ({"id": ""}, r"line 2: can't read ''"),
        ({"actions": "c001 1.0 nan"}, r"line 2: can't read 'c001 1.0 nan'"),
        ({"actions": "c001 1.0"}, r"line 2: can't read"),
        ({"actions": ""}, "and no instance could be read"),
    ],
)  # fmt: skip
def test_charades_rows_that_no_spec_could_read(tmp_path, values, message):
    row = {"id": "A", "actions": "c001 1.0 2.0", "length": "10"}
    table(tmp_path / "Charades_v1_train.csv", [{**row, **values}])
    table(tmp_path / "Charades_v1_test.csv", [{**row, "id": "B", "actions": ""}])
    with pytest.raises(UserError, match=message):
        charades(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"), ("id,actions\nA,\n", r"has no column length in its header 'id,actions'"),
        ("id,actions,length\n", "holds no rows"),
        ("id,actions,length\nA,c001 1 2\n", "line 2 has two fields under three columns"),
    ],
)  # fmt: skip
def test_csv_files_that_are_not_the_official_ones(tmp_path, text, message):
    (tmp_path / "Charades_v1_train.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        charades(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"label": None}, {"label": ["a"]}, {"label": 3}, {"video_start_time": float("nan")}, {"video_end_time": "soon"},
        {"clip": {"clip_uid": None}}, {"clip": {"video_end_sec": float("inf")}}, {"clip": {"video_end_frame": 10**400}},
    ],
)  # fmt: skip
def test_ego4d_values_that_no_spec_could_read(tmp_path, values):
    label = {"video_start_time": 103.5, "video_end_time": 110.0, "label": "wash_hands", "primary": True}
    clip = {"clip_uid": "c1", "video_start_sec": 100.0, "video_end_sec": 580.0, "video_start_frame": 3000,
            "video_end_frame": 17400, **values.get("clip", {})}  # fmt: skip
    labels = [label, {**label, **{key: value for key, value in values.items() if key != "clip"}}]
    videos = [{"video_uid": "v1", "split": "train", "clips": [{**clip, "annotations": [{"labels": labels}]}]}]
    for file in ("moments_train.json", "moments_val.json", "moments_test_unannotated.json"):
        (tmp_path / file).write_text(json.dumps({"videos": videos if "train" in file else []}))
    with pytest.raises(UserError):
        ego4d(tmp_path)


def test_nothing_at_all_is_an_error(tmp_path):
    for file in ("moments_train.json", "moments_val.json", "moments_test_unannotated.json"):
        (tmp_path / file).write_text('{"videos": []}')
    with pytest.raises(UserError, match="0 videos and no instance could be read"):
        ego4d(tmp_path)
    (tmp_path / "a.json").write_text('{"database": {}}')
    with pytest.raises(UserError, match="0 videos and no instance could be read"):
        activitynet(tmp_path / "a.json")


def test_the_command_keeps_the_official_file_and_leaves_nothing_behind(run_command, tmp_path):
    source = tmp_path / "a.json"
    source.write_text(json.dumps(published(duration=float("nan"))))
    before = source.read_bytes()
    run = run_command("data convert", "activitynet", source, "--output", tmp_path / "new/out.json")
    assert run.returncode == 2
    assert "video '--0edUL8zmA': expected subset" in run.stderr
    assert not (tmp_path / "new").exists()
    other = tmp_path / "out.json"
    for arguments in ([source], [other, "--classes", "a.json"], [other, "--classes", "x/y"], [""], [tmp_path]):
        assert run_command("data convert", "activitynet", source, "--output", *arguments).returncode == 2
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def published(**changes):
    """HACS' and ActivityNet's form; HACS has durations as text."""
    item = {"label": "Dodgeball", "segment": [5.4, 11.6]}
    entry = {"annotations": [item, item, {**item, "label": "Archery"}], "subset": "training", "duration": "92.166667"}
    return {"database": {"--0edUL8zmA": {**entry, "url": "", **changes}}}


def test_activitynet_and_hacs_keep_what_specs_read(tmp_path):
    path = tmp_path / "segments.json"
    content = published()
    content["database"]["v2"] = {"subset": "testing", "duration": 3, "annotations": []}
    path.write_text(json.dumps(content))
    database, classes = activitynet(path)
    labels = [item["label"] for item in database["--0edUL8zmA"].pop("annotations")]
    assert (labels, classes) == (["Dodgeball", "Archery"], ["Archery", "Dodgeball"])
    assert database == {
        "--0edUL8zmA": {"subset": "training", "duration": 92.166667},
        "v2": {"subset": "testing", "duration": 3.0, "annotations": []},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": "long"},
        {"duration": "nan"},
        {"duration": float("inf")},
        {"subset": None, "duration": None},
        {"annotations": [{"label": "a"}]},
        {"annotations": [{"label": None, "segment": [1, 2]}]},
        {"annotations": [{"label": ["a"], "segment": [1, 2]}]},
    ],
)
def test_what_is_not_activitynet_s_form_is_named(changes, tmp_path):
    (tmp_path / "segments.json").write_text(json.dumps(published(**changes)))
    with pytest.raises(UserError, match=r"segments\.json: video '--0edUL8zmA': expected subset, duration in"):
        activitynet(tmp_path / "segments.json")


@pytest.mark.parametrize(
    ("segment", "message"),
    [([1, 2, 3], "got the segment"), ([], "got the segment"), ([float("nan"), 2], "without finite ends")],
)
def test_segments_that_no_spec_could_read_are_not_written(segment, message, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(published(annotations=[{"label": "a", "segment": segment}])))
    with pytest.raises(UserError, match=message):
        activitynet(tmp_path / "a.json")


def test_videos_that_bsn_s_list_lacks_are_not_scored(tmp_path):
    database = {name: {"subset": "validation"} for name in "abc"} | {"d": {"subset": "training"}}
    table(tmp_path / "info.csv", [{"video": f"v_{name}", "subset": "validation"} for name in "ac"])
    assert not_scored(database, tmp_path / "info.csv") == ["b"]
    with pytest.raises(UserError, match=r"info\.csv: names none of the annotated videos"):
        not_scored({"x": {"subset": "validation"}}, tmp_path / "info.csv")


def test_the_anet_videos_that_are_scored_are_bsn_s(shared_folder, tmp_path):
    truth = read(shared_folder / "data/annotations/anet_1_3.json.gz")
    table(tmp_path / "info.csv", [{"video": f"v_{name}", "subset": e["subset"]} for name, e in truth.items()])
    with gzip.open(shared_folder / "data/annotations/anet_sample_detection_prediction.json.gz") as file:
        official = {name: {"subset": "validation"} for name in json.load(file)["results"]}
    assert len(official) == 4926
    assert len(not_scored(official, tmp_path / "info.csv")) == 198
