"""`tools/data.py summary`: what was read, what was dropped, and what to look at."""

import json
import os

import pytest

from adatad.data.annotations import annotations_of
from adatad.data.prepare.summary import warnings
from adatad.spec.data_sections import DataSpec, WindowSpec


def video(subset: str, *segments: tuple, **entry: object) -> dict:
    items = [{"segment": [start, end], "label": label} for start, end, label in segments]
    return {"subset": subset, "duration": 100.0, "frame": 1000, "annotations": items, **entry}


DATABASE = {
    "plain": video("training", (1, 3, "run"), (4, 10.2, "[bold]jump"), (20, 50, "run")),
    "odd": video(
        "training", (5, 5, "run"), (1, 3, "run"), (1, 3, "run"), (1, 3, "[bold]jump"), (90, 120, "run"),
        (7, 7.15, "run"), (2, 3, "Ambiguous"), fps=25,
    ),
    "empty": video("training"),
    "blocked": video("training", (1, 2, "run")),
    "seen": video("validation", (0, 80, "run"), duration=120.0, frame=1200),
    "bare": video("validation"),
    "unused": video("testing"),
}  # fmt: skip
WINDOW = WindowSpec(size_grid=128, stride_frames=2)


def found(role: str, **settings: object) -> dict[str, dict[str, int]]:
    spec = DataSpec(
        annotations="a.json", videos="", blocked_videos=("blocked", "gone"), **{"window": WINDOW, **settings}
    )
    read = annotations_of(DATABASE, spec)
    videos, report = (
        (read.train, read.train_report) if role == "training" else (read.validation, read.validation_report)
    )
    return {warned.what: dict(warned.by_video) for warned in warnings(spec, DATABASE, videos, report)}


def test_what_there_is_to_look_at():
    assert found("training") == {
        "instances end after their video": {"odd": 1},
        "videos without instances": {"empty": 1},
        "segments carry two labels or more": {"odd": 1},
        "instances are shorter than one position of the window": {"odd": 1},
        "instances are longer than a window": {"plain": 1, "odd": 1},
        "videos whose frame / duration is more than 1% off the fps": {"odd": 1},
    }
    assert found("validation").keys() == {"videos without instances", "instances are longer than a window"}


def test_positions_of_whole_videos_are_shares_of_them_and_hold_everything():
    whole = found("training", window=WindowSpec(kind="resize", size_grid=40))
    assert whole["instances are shorter than one position of the window"] == {"plain": 1, "odd": 2}
    assert "instances are longer than a window" not in whole


@pytest.fixture
def spec_file(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps({"database": DATABASE}))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"data: {{annotations: {tmp_path}/annotations.json, videos: nowhere, "
        "window: {size_grid: 128, stride_frames: 2}}\noptimizer: {backbone: {lr: 1e-4}}\n"
    )
    return path


def test_the_command_prints_counts_classes_durations_and_warnings(run_command, spec_file):
    run = run_command("data", "summary", spec_file, "--set", "data.blocked_videos=[blocked]")
    assert run.returncode == 0, run.stderr
    rows = {}
    for line in run.stdout.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            rows.setdefault(name, []).append([cell for cell in cells if not set(cell) <= {"█"}])
    assert "7 videos, 2 classes" in run.stdout
    assert "not used: 1 videos of testing" in run.stdout
    assert rows["videos"] == [["2", "2"]]
    assert rows["videos blocked"] == [["1", "0"]]
    assert rows["instances"] == [["7", "1"]]
    assert rows["dropped: copies"] == [["1", "0"]]
    assert rows["dropped: empty (end <= start)"] == [["1", "0"]]
    assert rows["dropped: Ambiguous"] == [["1", "0"]]
    assert (rows["run"], rows["[bold]jump"]) == ([["5", "1"]], [["2", "0"]])
    # Instances, then videos.
    assert rows["2 to 5"] == [["3", "0"]]
    assert rows["60 to 120"] == [["0", "1"], ["2", "1"]]
    warned = " ".join(run.stdout.partition("warning")[2].split())
    assert "training: 1 segments carry two labels or more: odd" in warned
    assert "validation: 1 videos without instances: bare" in warned


def test_an_ascii_terminal_gets_all_of_it(run_process, spec_file, tmp_path):
    odd = video("training", (-3, -1, "日本"), (-1, 2, "run"), (4000, 5000, "run"))
    content = {**DATABASE, "k\u0442": odd}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": content}))
    overrides = ["data.blocked_videos=[blocked,seen.mp4]"]
    run = run_process(
        "data", "summary", spec_file, "--set", *overrides, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()
    assert "\\u65e5" in run.stdout
    for sentence in (
        "warning: 1 blocked names aren't in the annotation file: seen.mp4 (is seen meant?)",
        "warning: training: 1 instances begin before their video: k\\u0442",
        "warning: training: 2 instances lie wholly outside their video and are left out: k\\u0442",
        "have no instance in validation: ",
    ):
        assert sentence in run.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.annotations=gone.json", "gone.json: can't be read: No such file"),
        ("data.train_subset=trainning", "no video of subset 'trainning'; the file has testing, training, validation"),
        ("data.label_key=verb", "no annotation has a 'verb': they have label; set data.label_key"),
        ("data.windows=3", "data.windows"),
    ],
)
def test_what_a_user_can_mend_leaves_with_2(run_command, spec_file, override, message):
    run = run_command("data", "summary", spec_file, "--set", override)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_subsets_that_the_reference_takes_are_used(run_command, spec_file):
    overrides = ["data.train_subset=a training b", "data.blocked_videos=[blocked]", "compat=reference"]
    run = run_command("data", "summary", spec_file, "--set", *overrides)
    assert run.returncode == 0, run.stderr
    assert "not used: 1 videos of testing\n" in run.stdout
    assert "training: 1 videos whose frame / duration is more than 1% off the fps: odd\n" in run.stdout
