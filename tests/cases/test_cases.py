"""Inputs of real users that once gave a wrong number without a word, or a traceback, each through its commands."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_data_set import (
    EVEN,
    SUBSETS,
    TABLE,
    database,
    instance,
    write_annotations,
    write_spec,
    write_video,
)

from adatad.data.annotations import read_annotations
from adatad.data.dataset import video_path
from adatad.data.decode import open_video
from adatad.spec import load


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refused(done, *expected: str):
    """Exit code 2, no traceback, and what was expected in the message."""
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    for text in expected:
        assert text in said, said
    return said


def custom(run_command, table: str, *options: object, output: str = "d"):
    Path("labels.csv").write_text(table, newline="")
    return run_command("data from-csv", "labels.csv", "--videos", "v", "--output", output, *options)


def annotated(folder: str = "d") -> dict:
    return json.loads(Path(folder, "annotations.json").read_text())["database"]


def labels_of(entry: dict) -> list:
    return [item["label"] for item in entry["annotations"]]


# Names of outputs


@pytest.fixture
def trained(here, run_command):
    write_annotations(here, database())
    spec = write_spec(here)
    succeeded(run_command("train", spec))
    return spec


def test_outputs_keep_their_names(trained, here, run_command):
    best = "runs/small/id0/checkpoints/best"
    succeeded(run_command("test", trained, "--checkpoint", best, "--detections", "new/folder/as_trained.json"))
    # The detections' folder is made before the evaluation.
    as_trained = json.loads((here / "new/folder/as_trained.json").read_text())
    other_order = run_command(
        "test", trained, "--checkpoint", best, "--detections", "d.json", "--set", "data.classes=[stir, pour]"
    )
    succeeded(other_order)
    assert json.loads((here / "d.json").read_text()) == as_trained

    renamed = database(k0={"annotations": instance(1, 4, "wash")}, k3={"annotations": instance(1, 3, "wash")})
    write_annotations(here, renamed, "renamed.json")
    done = run_command("test", trained, "--checkpoint", best, "--set", "data.annotations=renamed.json")
    refused(done, "pour", "stir", "wash")
    done = run_command("train", trained, "--resume", "auto", "--set", "data.annotations=renamed.json")
    refused(done, "pour", "stir", "wash")

    only_test = {"k3": {**database()["database"]["k3"], "subset": "test"}}
    write_annotations(here, {"database": only_test}, "test.json")
    settings = ["data.annotations=test.json", "data.validation_subset=test"]
    for classes in ([], ["data.classes=[pour, stir]"]):
        done = run_command(
            "test", trained, "--checkpoint", best, "--detections", "t.json", "--set", *settings, *classes
        )
        succeeded(done)
        assert list(json.loads((here / "t.json").read_text())["results"]) == ["k3"]


def test_an_output_that_cannot_be_made_is_refused_before_the_work(trained, here, run_command):
    (here / "file").touch()
    best = "runs/small/id0/checkpoints/best"
    done = run_command("test", trained, "--checkpoint", best, "--detections", "file/d.json")
    assert "mAP" not in refused(done, "file/d.json: can't be written")


# Time


def changing_rate() -> list[float]:
    return [number / 30 for number in range(300)] + [10 + number / 5 for number in range(50)]


def bright_from_12_to_16(second: float) -> int:
    return 250 if 12 <= second < 16 else 60


BRIGHT = "video,start,end,label,subset\ncam0,12,16,bright,training\ncam1,12,16,bright,validation\n"


def bright_share(spec_file: str) -> float:
    """Return the share of bright frames among those of the first label, at the annotation's rate."""
    spec = load(spec_file, check_files=False)
    video = read_annotations(spec.data).train[0]
    start, end = (int(frame) for frame in video.segments_frames[0])
    with open_video(video_path(spec.data, video.name)) as reader:
        frames = reader.frames(np.arange(start, min(end, reader.frame_count)))
    return float(np.mean(frames.mean(axis=(1, 2, 3)) > 200))


@pytest.fixture
def cameras(here):
    write_video(here / "v/cam0.mp4", changing_rate(), bright_from_12_to_16)
    write_video(here / "v/cam1.mp4", changing_rate(), bright_from_12_to_16)
    return here


def test_where_the_rate_changes_labels_stay_at_their_seconds(cameras, run_command):
    succeeded(custom(run_command, BRIGHT))
    assert bright_share("d/spec.yaml") == 1.0
    done = run_command("data check", "d/spec.yaml", "--output", "d/check", "--workers", 1)
    assert done.returncode == 1
    assert "cam0: variable rate" in done.stdout


def test_copies_show_what_the_original_shows_at_each_time(cameras, run_command):
    succeeded(run_command("data transcode", "v", "--output", "small", "--workers", 1))
    Path("labels.csv").write_text(BRIGHT)
    succeeded(run_command("data from-csv", "labels.csv", "--videos", "small", "--output", "d"))
    assert bright_share("d/spec.yaml") == 1.0


def check(run_command, spec: Path):
    return run_command("data check", spec, "--output", "c", "--workers", 1)


def test_a_length_that_is_2_percent_off_is_a_wrong_length(here, run_command):
    for name in ("k0", "k2"):
        write_video(here / f"v/{name}.mp4", range(1200), side=32)
    long = {"duration": 1180.0, "frame": 1180, "annotations": instance(1100, 1110)}
    write_annotations(here, database(k0=long, k2=long))
    done = check(run_command, write_spec(here))
    assert done.returncode == 1
    assert "wrong length" in done.stdout
    assert "k0" in done.stdout


@pytest.mark.parametrize("more", [{"frame": 192}, {"frame": None, "fps": 10}], ids=["twice the frames", "another rate"])
def test_a_run_says_that_its_videos_have_another_rate(more, here, run_command):
    write_annotations(here, database(**{name: more for name in SUBSETS}))
    spec = write_spec(here)
    said = succeeded(run_command("train", spec))
    log = (here / "runs/small/id0/log.txt").read_text()
    assert log.index("96 frames") < log.index("epoch 1: average mAP")
    assert "k0" in log
    assert said
    done = check(run_command, spec)
    assert done.returncode == 1
    assert "k0" in done.stdout


def test_labels_before_the_start_are_named(here, run_command):
    write_annotations(here, database(k0={"annotations": instance(-1, 4)}, k1={"annotations": instance(-3, -1, "stir")}))
    spec = write_spec(here)
    said = succeeded(run_command("data", "summary", spec))
    assert "k0" in said
    assert "k1" in said
    done = check(run_command, spec)
    assert done.returncode == 1
    assert "k0" in done.stdout
    assert "k1" in done.stdout


def test_labels_wholly_outside_are_counted_apart(here, run_command):
    outside = instance(-3, -1) + instance(1000, 4000) + instance(10, 12.5)
    truth = write_annotations(here, database(k2={"annotations": outside}, k3={"annotations": instance(1, 3, "stir")}))
    found = write_annotations(here, {"results": {"k2": [], "k3": []}}, "found.json")
    done = run_command("evaluate", truth, found)
    assert "2 instances" in succeeded(done)
    assert "wholly outside" in done.stderr
    said = succeeded(run_command("data", "summary", write_spec(here)))
    assert "wholly outside" in said


# Names that meet or don't


def test_blocked_names_that_nobody_has_are_said(here, run_command):
    truth = write_annotations(here, database())
    (here / "blocked.txt").write_text("v_k2\nk0.mp4\n")
    found = write_annotations(here, {"results": {"k2": [], "k3": []}}, "found.json")
    done = run_command("evaluate", truth, found, "--blocked", "blocked.txt")
    succeeded(done)
    assert "v_k2" in done.stderr
    assert "k0.mp4" in done.stderr
    succeeded(run_command("train", write_spec(here), "--set", "data.blocked_videos=blocked.txt"))
    log = (here / "runs/small/id0/log.txt").read_text()
    assert "v_k2" in log
    assert "k0.mp4" in log


def test_labels_that_the_annotations_do_not_have_are_said(here, run_command):
    truth = write_annotations(here, database())
    results = {"k2": [{"segment": [2, 5], "label": "Stir", "score": 0.9}],
               "k3": [{"segment": [1, 3], "label": "pour ", "score": 0.9}]}  # fmt: skip
    done = run_command("evaluate", truth, write_annotations(here, {"results": results}, "found.json"))
    succeeded(done)
    assert "Stir" in done.stderr
    assert "'pour '" in done.stderr


def test_videos_without_detections_are_said(here, run_command):
    truth = write_annotations(here, database())
    results = {"k2": [{"segment": [2, 5], "label": "stir", "score": 0.9}]}
    done = run_command("evaluate", truth, write_annotations(here, {"results": results}, "found.json"))
    succeeded(done)
    assert "1 of 2 videos" in done.stderr
    assert "k3" in done.stderr


def test_a_video_that_stands_twice_is_refused(here, run_command):
    text = json.dumps(database()).replace('"k1"', '"k0"')
    (here / "annotations.json").write_text(text)
    done = run_command("data", "summary", write_spec(here))
    refused(done, "annotations.json", "'k0' stands twice")
    assert done.stdout == ""


def test_whole_floats_are_numbers_of_classes(here, run_command):
    changes = {name: {"annotations": instance(1, 4, 1.0 + (name in ("k1", "k2")))} for name in SUBSETS}
    write_annotations(here, database(**changes))
    assert "2 classes" in succeeded(run_command("data", "summary", write_spec(here)))


# Tables


def test_one_video_under_two_names_is_one_video(here, run_command):
    succeeded(custom(run_command, TABLE + "k0.mp4,6,8,stir,training\n"))
    assert sorted(annotated()) == ["k0", "k1", "k2", "k3"]
    assert labels_of(annotated()["k0"]) == ["pour", "stir"]


@pytest.mark.parametrize(
    "table",
    [TABLE.replace(",", ";"), TABLE.replace(",", ", "), TABLE.replace(",", "\t"), TABLE.replace("\n", "\r\n"),
     TABLE.replace("video,start,end,label", "Video,Start_Time,End (s),Class")],
    ids=["semicolons", "blanks", "tabs", "line ends", "other words"],
)  # fmt: skip
def test_tables_are_read_as_people_have_them(table, here, run_command):
    succeeded(custom(run_command, table))
    assert {name: labels_of(entry) for name, entry in annotated().items()} == {
        "k0": ["pour"], "k1": ["stir"], "k2": ["stir"], "k3": ["pour"]
    }  # fmt: skip


def test_a_comma_in_a_label_wants_quotes(here, run_command):
    refused(custom(run_command, TABLE.replace("4,pour,", "4,pour, slowly,")), "line 2", "quotes")
    assert not Path("d").exists() or not list(Path("d").iterdir())
    succeeded(custom(run_command, TABLE.replace("4,pour,", '4,"pour, slowly",')))
    assert labels_of(annotated()["k0"]) == ["pour, slowly"]


def test_a_label_of_two_lines_is_refused_by_line(here, run_command):
    refused(custom(run_command, TABLE.replace("4,pour,", '4,"pour\nslowly",')), "line 2", "a line break")
    assert not Path("d", "annotations.json").exists()


def test_a_table_without_validation_is_refused_before_anything_is_written(here, run_command):
    refused(custom(run_command, TABLE.replace("validation", "training")), "validation")
    assert not Path("d", "annotations.json").exists()


def test_other_files_beside_videos_are_no_videos(here, run_command):
    for name in ("k0.srt", "k1.json"):
        (here / "v" / name).touch()
    succeeded(custom(run_command, TABLE))
    assert sorted(annotated()) == sorted(SUBSETS)


def test_videos_in_folders_are_found(here, run_command):
    (here / "v/train").mkdir()
    for path in (here / "v").glob("*.mp4"):
        path.rename(here / "v/train" / path.name)
    succeeded(custom(run_command, TABLE))
    spec = load("d/spec.yaml", check_files=False)
    videos = read_annotations(spec.data).train
    assert len(videos) == 2
    assert all(video_path(spec.data, video.name).is_file() for video in videos)


def test_no_videos_yet_is_a_sentence(here, run_command):
    for path in (here / "v").iterdir():
        path.unlink()
    refused(custom(run_command, TABLE), "v: holds no videos")
    assert not Path("d", "annotations.json").exists()


def test_a_data_set_in_this_folder_has_its_name(here, run_command):
    succeeded(custom(run_command, TABLE, output="."))
    assert load("spec.yaml", check_files=False).name == here.name


def test_a_length_that_packets_do_not_tell_is_not_written_as_0(here, run_command):
    # An MPEG-4 in which nothing moves: most of its packets are a few bytes that may hold no frame.
    write_video(here / "w/video_validation_0000001.mp4", EVEN, codec="mpeg4", ticks=8)
    write_video(here / "w/video_test_0000004.mp4")
    (here / "a").mkdir()
    (here / "a/CleanAndJerk_val.txt").write_text("video_validation_0000001 1.0 3.0\n")
    (here / "a/CleanAndJerk_test.txt").write_text("video_test_0000004 1.0 3.0\n")
    succeeded(run_command("data convert", "thumos", "a", "--output", "t/thumos.json", "--videos", "w"))
    database = json.loads(Path("t/thumos.json").read_text())["database"]
    durations = {name: entry["duration"] for name, entry in database.items()}
    names = ("video_validation_0000001", "video_test_0000004")
    assert durations == pytest.approx(dict.fromkeys(names, 12.0), abs=0.2)


# Paths of a spec


def test_braces_in_a_pattern_are_refused_with_their_line(here, run_command):
    write_annotations(here, database())
    spec = write_spec(here)
    spec.write_text(spec.read_text().replace("  videos: v", "  videos: v\n  pattern: '{name}_{start}.mp4'"))
    refused(check(run_command, spec), "spec.yaml:5", "data.pattern", "{name}")


def test_home_and_variables_in_paths_are_filled_in(here, run_command, monkeypatch):
    (here / "h/data").mkdir(parents=True)
    write_annotations(here / "h/data", database())
    monkeypatch.setenv("HOME", str(here / "h"))
    monkeypatch.setenv("DATA", str(here / "h/data"))
    for path in ("~/data/annotations.json", "$DATA/annotations.json", "${DATA}/annotations.json"):
        for spec, more in (
            (write_spec(here, annotations=path), ()),
            ("spec.yaml", ("--set", f"data.annotations={path}")),
        ):
            assert f"{here}/h/data/annotations.json: 4 videos" in succeeded(run_command("data", "summary", spec, *more))
    refused(run_command("data", "summary", write_spec(here, annotations="$NOWHERE/a.json")), "NOWHERE")


# Files that aren't what they are called, and surroundings


def test_a_pointer_in_the_place_of_weights_is_called_one(here, run_command):
    (here / "weights.pth").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1200000\n"
    )
    said = refused(run_command("weights import", "weights.pth", "--output", "o.pth"), "Git LFS", "1.2 MB")
    assert "torch.load" not in said
    assert not (here / "o.pth").exists()


@pytest.mark.parametrize(
    "variables", [{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": ""}, {"RANK": "x", "WORLD_SIZE": "2"}]
)
def test_ranks_without_an_address_are_a_sentence(variables, here, run_command, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    write_annotations(here, database())
    refused(run_command("train", write_spec(here)), "RANK")
    assert not (here / "runs").exists()
