"""A detector that takes features in place of frames: the same windows, labels and times, and clear errors."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_data_set import EVEN, INSTANCES, database, write_spec, write_video

import adatad
from adatad.cli.main import main
from adatad.data.dataset import TrainingWindows
from adatad.data.feature_file import FeatureError, FeatureFacts, array_path, facts_path, write_features
from adatad.data.features import check_features, feature_window
from adatad.data.windows import WindowPlace, sliding_window
from adatad.detect.video import unlabelled
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.training.resolve import annotations_for

WHOLE = ("data.window.size_grid=96", "model.detector.max_length=96")
FROZEN = ("optimizer.backbone=null", "model.backbone.mode=frozen")
FEATURES = ("optimizer.backbone=null", "model.backbone.mode=features", "data.features=features")
FACTS = FeatureFacts(
    fps=8.0, stride_frames=2, stride_seconds=0.25, window_frames=2, first_seconds=0.125, last_seconds=11.875,
    duration_seconds=12.0, positions=48, channels=3, format="npy", backbone="b", preset="tiny", weights_sha256="0",
    adapters=False, preprocessing={}, video={}, program="adatad",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The small data set with features of its videos by the spec's own backbone."""
    folder = tmp_path_factory.mktemp("features")
    for number, name in enumerate(INSTANCES):
        write_video(folder / "v" / f"{name}.mp4", EVEN, lambda second, n=number: int(20 * second * (n + 1)) % 255)
    (folder / "annotations.json").write_text(json.dumps(database()))
    spec = write_spec(folder)
    output = str(folder / "features")
    assert main(["extract", str(spec), str(folder / "v"), "--output", output, "--device", "cpu"]) == 0
    return folder


def test_windows_of_features_are_what_a_frozen_backbone_gives_of_the_same_windows(folder, monkeypatch):
    monkeypatch.chdir(folder)
    frozen = adatad.load_spec("spec.yaml", [*WHOLE, *FROZEN])
    features = adatad.load_spec("spec.yaml", [*WHOLE, *FEATURES])
    assert features.model.backbone.width == 16
    videos = annotations_for(frozen).train
    backbone = adatad.build_detector(frozen, ("pour", "stir"), "cpu").module.backbone
    for number in range(len(videos)):
        frames = TrainingWindows(videos, frozen.data, 0)[0, number]
        taken = TrainingWindows(videos, features.data, 0)[0, number]
        with torch.no_grad():
            expected = backbone(frames.frames[None], 96)[0]
        torch.testing.assert_close(taken.frames, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(taken.segments_grid, frames.segments_grid)
        assert torch.equal(taken.mask, frames.mask)


def test_a_detector_of_features_is_trained_tested_and_refused_where_videos_are_wanted(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["train", "spec.yaml", "--set", "name=f", *FEATURES]) == 0
    # The run's own spec says what the width is, so that nothing is guessed again.
    assert main(["test", "--checkpoint", "runs/f/id0"]) == 0
    assert main(["model", "runs/f/id0"]) == 0
    capsys.readouterr()
    refused = {
        "detect": ["runs/f/id0", "v/k0.mp4"],
        "extract": ["runs/f/id0", "v/k0.mp4", "--output", "more"],
        "export": ["runs/f/id0", "--output", "f.safetensors"],
        "plan": ["spec.yaml", "--gpu-memory", "24", "--set", *FEATURES],
    }
    for verb, words in refused.items():
        assert main([verb, *words]) == 2
        assert "features" in capsys.readouterr().err
    assert not Path("f.safetensors").exists()
    assert not Path("more").exists() or not any(Path("more").iterdir())


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("model.backbone.mode=frozen", "data.features"),
        ("data.features=null", "data.features"),
        ("data.augment={flip: 0.5}", "data.augment"),
        ("data.window.kind=resize", "data.window.kind"),
        ("evaluate.stream=true", "evaluate.stream"),
        ("memory.policy=tile", "memory.policy"),
        ("train.keep_batch_above=5", "train.keep_batch_above"),
        ("data.features=nowhere", "data.features"),
    ],
)
def test_settings_that_contradict_features_are_refused(folder, monkeypatch, setting, key):
    monkeypatch.chdir(folder)
    with pytest.raises(adatad.errors.UserError, match=key):
        adatad.load_spec("spec.yaml", [*FEATURES, setting], check_files=True)


def _own(folder: Path, features: np.ndarray | None = None, name: str = "k", **changes) -> Path:
    """A folder with features of one video."""
    folder.mkdir(exist_ok=True)
    write_features(folder, name, np.zeros((48, 3), np.float32) if features is None else features,
                   replace(FACTS, **changes))  # fmt: skip
    return folder


def _spec(folder: Path, **window) -> DataSpec:
    sizes = {"size_grid": 16, "stride_frames": 1, **window}
    return DataSpec(annotations="a.json", videos="v", features=str(folder), window=WindowSpec(**sizes))


VIDEO = unlabelled("k", 12.0, 8.0, 96)


@given(start=st.integers(0, 79), stride=st.integers(1, 2), fps=st.sampled_from([8.0, 7.9, 8.1]))
def test_each_position_gets_the_features_of_its_own_time(tmp_path_factory, start, stride, fps):
    seconds = FACTS.first_seconds + np.arange(48) * FACTS.stride_seconds
    folder = _own(tmp_path_factory.mktemp("times"), np.repeat(seconds[:, None], 3, 1).astype(np.float32))
    spec, video = _spec(folder, stride_frames=stride), replace(VIDEO, fps=fps)
    place = WindowPlace(video, min(start, 80 // stride), 16)
    features, window = feature_window(spec, video, lambda frames: sliding_window(place, frames, spec.window))
    middles = (window.indices + stride / 2) / fps
    np.testing.assert_allclose(features[0], np.clip(middles, seconds[0], seconds[-1]), atol=1e-5)


def test_features_that_cannot_be_used_are_said_with_video_and_file(tmp_path):
    nan = np.zeros((48, 3), np.float32)
    nan[5] = np.nan
    for number, (features, message) in enumerate({
        "NaN": (nan, "NaN"),
        "shape": (np.zeros((48, 4), np.float32), "expected float32 or float16"),
        "dtype": (np.zeros((48, 3), np.int64), "int64"),
    }.values()):  # fmt: skip
        spec = _spec(_own(tmp_path / str(number), features))
        place = WindowPlace(VIDEO, 0, 16)
        with pytest.raises(FeatureError, match=message) as error:
            feature_window(spec, VIDEO, lambda frames, s=spec, p=place: sliding_window(p, frames, s.window))
        assert "k.npy" in str(error.value)


def test_a_folder_is_checked_before_training(tmp_path):
    folder = _own(tmp_path / "f")
    other = replace(VIDEO, name="n")
    with pytest.raises(FeatureError, match=r"1 of 2 videos .*n\.json"):
        check_features(_spec(folder), [VIDEO, other])
    _own(folder, name="n", stride_frames=4)
    with pytest.raises(FeatureError, match=r"n\.json: stride_frames is 4, but 2"):
        check_features(_spec(folder), [VIDEO, other])
    check_features(_spec(folder), [VIDEO])
    for stride in (3, 40):
        with pytest.raises(FeatureError, match="set it to 2"):
            check_features(_spec(folder, stride_frames=stride), [VIDEO])
    array_path(folder, "k", "npy").unlink()
    with pytest.raises(FeatureError, match="no array"):
        check_features(_spec(folder), [VIDEO])
    for content in ("", "{}", "[]", json.dumps({"adatad features": {**asdict(FACTS), "fps": "8"}}), "\0"):
        facts_path(folder, "k").write_text(content)
        with pytest.raises(FeatureError, match=r"k\.json"):
            check_features(_spec(folder), [VIDEO])
