"""The data of a run's page: every file may be missing, unfinished or damaged, and is read anew when it has changed."""

import json
import os

import numpy as np
import pytest
from run_folder import make_run, train_line, write_lines

from adatad.data.annotations import read_annotations
from adatad.report import run_data as module
from adatad.report.run_data import RunReader, run_data
from adatad.report.run_parts import class_rows
from adatad.spec import load

BAD_TEXTS = ["", "{", "[]", "3", "null", "\0", "[" * 9999, '{"average_mAP": {}}', '{"a": 1, "a": 2}', '{"results": []}']


@pytest.fixture
def spec(tiny_spec):
    return load(tiny_spec)


@pytest.fixture
def run(tmp_path, spec, monkeypatch):
    # Frames of videos are another test's.
    monkeypatch.setattr(module, "read_thumbnails", lambda *_: [(0.5, np.zeros((4, 6, 3), np.uint8))])
    return make_run(tmp_path / "run", spec)


def test_what_the_page_says_of_a_whole_run(run, spec):
    data = run_data(run, spec)
    assert data["notes"] == []
    assert data["result"]["average_mAP"] == 0.5
    assert data["progress"]["step"] == 8
    assert data["progress"]["steps"] == 3 * (6 // spec.train.global_batch)
    assert [chart["title"] for chart in data["charts"]] == [
        "loss", "mAP on validation", "learning rate", "gradient norm", "time of a step"
    ]  # fmt: skip
    assert data["explained"]["sentences"]
    assert len(data["timelines"]) == data["videos"] == 2
    assert data["timelines"][0]["found"][0] == [data["classes"].index("pulse"), 1.0, 3.0, 0.875]
    assert data["timelines"][0]["truth"]
    assert data["trained"] == ["backbone.blocks.0.adapter.gamma", "detector.head.cls_head.bias"]
    assert "annotations:" in data["settings"]
    json.dumps(data, allow_nan=False)


def test_the_memory_of_a_gpu_is_drawn_beside_the_planner_s_estimate(run, spec):
    def memory():
        return {chart["title"]: chart for chart in run_data(run, spec)["charts"]}["memory"]

    write_lines(run, [train_line(1, memory_bytes=2**20, reserved_bytes=2**21), train_line(2, memory_bytes=2**20)])
    assert [curve["name"] for curve in memory()["curves"]] == [
        "tensors, peak",
        "held by the allocator, peak",
        "predicted",
    ]
    assert all(value > 0 for value in memory()["curves"][2]["values"])
    # Of several ranks, whose number no file tells, and of a CPU there is no estimate.
    (run / "stacks").mkdir()
    assert len(memory()["curves"]) == 2
    write_lines(run, [train_line(1, memory_bytes=2**20)])
    assert [curve["name"] for curve in memory()["curves"]] == ["tensors, peak"]
    assert "CPU" in memory()["note"]


def test_a_run_that_has_hardly_begun_has_a_page(run, spec):
    for name in ("result.json", "detections.json", "metrics.jsonl", "trained.txt"):
        (run / name).unlink()
        data = run_data(run, spec)
        assert data["notes"] == []
    assert data["result"] is None
    assert data["charts"] == data["timelines"] == []
    assert data["progress"]["step"] is None


def test_a_run_that_broke_before_its_first_evaluation_says_so_first(run, spec):
    for name in ("result.json", "detections.json"):
        (run / name).unlink()
    figures = {"positives": 20, "normalizer": 20, "applied": True}
    write_lines(
        run, [train_line(step, class_loss=loss, **figures) for step, loss in enumerate([1.0] * 5 + [30.0] * 30)]
    )
    explained = run_data(run, spec)["explained"]
    assert "too high" in explained["sentences"][0]
    assert "profile" not in explained


@pytest.mark.parametrize("name", ["result.json", "detections.json", "metrics.jsonl", "trained.txt"])
def test_damaged_files_cost_their_part_and_are_named(run, spec, name):
    (run / name).unlink()
    lines = []
    for content in [text.encode() for text in BAD_TEXTS] + [b"\xff\xfe\x00", b"\x80abc", b"\x1f\x8b"]:
        (run / name).write_bytes(content)
        lines.append(run_data(run, spec)["notes"])
    (run / name).unlink()
    (run / name).mkdir()
    lines.append(run_data(run, spec)["notes"])
    assert "a folder" in lines[-1][0]
    # Without an end the last line is being written; an empty or unread list of names is fine.
    expected = {"metrics.jsonl": 1, "trained.txt": 3}.get(name, len(BAD_TEXTS) + 4)
    assert sum(map(bool, lines)) >= expected
    assert all(name in line and "Traceback" not in line for said in lines for line in said)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"parts": [{"part": 3}]}', b"\x89PNG"])
def test_damaged_files_of_other_parts_are_named_too(run, spec, content):
    for name in ("profile.json", "first_batch.png", "out_of_memory_rank1.json"):
        (run / name).write_bytes(content)
    data = run_data(run, spec)
    assert data["profile"] == []
    assert data["first_batch"] is None
    assert sum("profile.json" in line for line in data["notes"]) == 1
    assert sum("first_batch.png" in line for line in data["notes"]) == 1


def test_a_profile_and_errors_of_ranks_are_shown(run, spec):
    parts = [{"part": "backbone", "milliseconds": 12.5, "share": 0.75, "calls": 3}, {"part": "head", "milliseconds": 4}]
    (run / "profile.json").write_text(json.dumps({"parts": parts}))
    (run / "out_of_memory_rank3.json").write_text(json.dumps({"error": "CUDA out of memory"}))
    logs = run / "slurm" / "logs"
    logs.mkdir(parents=True)
    (logs / "rank-1.log").write_text("step 1\nTraceback (most recent call last):\n  x\nValueError: no such tile\n")
    (run / "stacks").mkdir()
    (run / "stacks" / "rank-0.txt").write_text("")
    (run / "stacks" / "rank-2.txt").write_text("Thread 0x1 (most recent call first):")
    data = run_data(run, spec)
    assert data["profile"][0] == {"part": "backbone", "milliseconds": 12.5, "share": 0.75}
    assert [rank for rank, _ in data["rank_errors"]] == ["rank-1", "rank3", "rank-2"]
    errors = [error for _, error in data["rank_errors"]]
    assert errors[:2] == ["ValueError: no such tile", "out of memory: CUDA out of memory"]
    assert "stacks/rank-2.txt" in errors[2]


def test_a_run_without_its_annotations_keeps_the_rest(run, spec, tmp_path):
    moved = spec.model_copy(update={"data": spec.data.model_copy(update={"annotations": str(tmp_path / "gone.json")})})
    said = []
    data = run_data(run, moved, said.append)
    assert data["result"]["average_mAP"] == 0.5
    assert [row["average"] for row in data["class_rows"]] == pytest.approx([0.85, 0.15])
    assert len(said) == 1
    assert "gone.json" in said[0]


def test_classes_have_instances_and_those_without_are_named_last(spec):
    annotations = read_annotations(spec.data)
    first, second = annotations.classes[1:3]
    rows = class_rows({"ap_per_class": {second: [0.1, 0.2], first: [0.8, 0.9]}}, annotations.classes, annotations)
    assert [row["class"] for row in rows[:2]] == [1, 2]
    assert all(row["average"] is None for row in rows[2:])
    assert len(rows) == len(annotations.classes)
    counts = [int((np.concatenate([v.labels for v in annotations.validation]) == row["class"]).sum()) for row in rows]
    assert [row["instances"] for row in rows] == counts
    assert class_rows({}, annotations.classes) == []


def test_only_what_has_changed_is_read_again(run, spec, monkeypatch):
    calls = []
    original = module.explain_run
    monkeypatch.setattr(module, "explain_run", lambda *a: calls.append(1) or original(*a))
    reader = RunReader(run, spec)
    assert reader.read() | {"progress": 0} == reader.read() | {"progress": 0}
    assert len(calls) == 1
    write_lines(run, [train_line(9)], "a")
    # The line that was being written is whole by now, and of no use.
    data = reader.read()
    assert data["progress"]["step"] == 8
    assert "1 line can't be read" in data["notes"][0]
    write_lines(run, [train_line(10)], "a")
    assert reader.read()["progress"]["step"] == 10
    os.utime(run / "detections.json", (1, 1))
    reader.read()
    assert len(calls) == 2
    (run / "detections.json").write_text("{")
    for _ in range(2):
        data = reader.read()
        assert data["timelines"] == []
        assert any("detections.json" in line for line in data["notes"])


def test_frames_that_take_long_come_later(run, spec, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    reader = RunReader(run, spec, patience_seconds=1.5)
    states = [[bool(row["strip"]) for row in reader.read()["timelines"]] for _ in range(3)]
    assert states[0] == [True, False]
    assert states[-1] == [True, True]


def test_many_videos_detections_and_steps_are_not_all_on_the_page(run, spec, monkeypatch):
    monkeypatch.setattr(module, "MAX_TIMELINES", 1)
    monkeypatch.setattr("adatad.report.run_parts.MAX_DETECTIONS", 1)
    data = run_data(run, spec)
    assert len(data["timelines"]) == 1
    assert data["videos"] == 2
    assert [row[3] for row in data["timelines"][0]["found"]] == [0.875]
    assert data["timelines"][0]["left_out"] == 1
    assert data["timelines"][0]["left_out_below"] == 0.25
