"""Kinds of windows in whole runs: whole videos as windows, and windows that hold no instance."""

import json

import pytest

from adatad.data.annotations import read_annotations
from adatad.data.loader import Loader
from adatad.data.windows import MAX_TRIES
from adatad.evaluation.postprocess import window_detections
from adatad.parallel.processes import start_processes
from adatad.spec import SpecError, load
from adatad.training import validation
from adatad.training.loaders import validation_loader
from adatad.training.resolve import resolve_run
from adatad.training.run import train
from adatad.training.run_directory import run_directory

RESIZE = ("data.window={kind: resize, size_grid: 32, frames_per_position: 2}", "schedule.epochs=1")


def metrics(spec, kind: str) -> list[dict]:
    lines = map(json.loads, (run_directory(spec).path / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_whole_videos_train_and_are_evaluated_once_each_and_the_log_says_what_was_read(tiny_spec, monkeypatch):
    spec = load(tiny_spec, [*RESIZE, "data.blocked_videos=[gone.mp4]"])
    calls = []

    def noted(segments, scores, meta, classes, spec, sliding, classifier):
        calls.append((meta.video, meta.resize_grid, meta.duration_seconds, sliding))
        return window_detections(segments, scores, meta, classes, spec, sliding, classifier)

    monkeypatch.setattr(validation, "window_detections", noted)
    result = train(spec)
    annotations = read_annotations(spec.data)
    videos = annotations.validation
    assert calls == [(video.name, 32, video.duration_seconds, False) for video in videos]
    assert len(metrics(spec, "train")) == 3
    assert 0 <= result["average_mAP"] <= 1
    found = json.loads((run_directory(spec).path / "detections.json").read_text())["results"]
    for video in videos:
        ends = [item["segment"][1] for item in found[video.name]]
        assert 0 < max(ends) <= round(video.duration_seconds, 2)
    log = (run_directory(spec).path / "log.txt").read_text()
    for report in (annotations.train_report, annotations.validation_report):
        assert f"subset {report.line()}" in log
    assert annotations.train_report.line().startswith("training: 6 videos, ")
    assert annotations.warnings[0] == "1 blocked names aren't in the annotation file: gone.mp4"
    assert all(sentence in log for sentence in annotations.warnings)


def test_a_video_of_any_length_is_one_window(tiny_spec):
    spec = load(tiny_spec, RESIZE)
    annotations = read_annotations(spec.data)
    with start_processes(60.0) as processes:
        loader = validation_loader(resolve_run(spec, processes, annotations))
    assert isinstance(loader, Loader)
    batches = list(loader)
    assert [batch.windows[0].video.name for batch in batches] == [video.name for video in annotations.validation]
    for batch in batches:
        assert batch.frames.shape[2] == 64
        assert batch.mask.all()
        frames = batch.windows[0].video.frames
        assert batch.windows[0].indices[0] < frames / 32
        assert batch.windows[0].indices[-1] >= frames - frames / 32


def test_keys_of_sliding_windows_that_resize_would_ignore_are_refused(tiny_spec):
    with pytest.raises(SpecError) as caught:
        load(tiny_spec, ("data.window={kind: resize, size_grid: 32, crop_ratio: [0.9, 1.0], offset_frames: 3}",))
    for key in ("crop_ratio", "offset_frames"):
        assert f"data.window.{key}: is without effect with kind resize" in str(caught.value)


def test_windows_without_an_instance_are_counted_and_their_videos_named(tiny_spec):
    """Windows of 0.5 s, in which no action of 1.8 s and more is whole."""
    window = "data.window={size_grid: 16, stride_frames: 1, min_visible: 1.0}"
    spec = load(tiny_spec, (window, "data.fps=8", "schedule.epochs=2", "train.evaluate_every_epochs=2"))
    train(spec)
    empty = [line["windows_without_instances"] for line in metrics(spec, "train")]
    assert 0 < sum(empty) <= 12
    log = (run_directory(spec).path / "log.txt").read_text()
    lines = [line for line in log.splitlines() if f"none of {MAX_TRIES} random windows" in line]
    named = [name for line in lines for name in line.rpartition(": ")[2].split(", ")]
    assert 0 < len(named) == len(set(named)) <= sum(empty)
    assert {name[:14] for name in named} == {"demo_training_"}
