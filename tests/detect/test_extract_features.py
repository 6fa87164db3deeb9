"""`adatad extract`: features as the backbone gives them, one video after the other, whatever is in the list."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import untrained_model
from ranks import CONTEXT, run_ranks
from small_data_set import EVEN, database, write_spec, write_video

from adatad.cli.main import main
from adatad.data.feature_file import array_path, facts_path, read_feature_facts, read_features
from adatad.detect.extractor import find_extractor
from adatad.detect.video import open_file
from adatad.errors import UserError
from adatad.training.video_features import features_of, steps_for

ODD = "wörld 'q' [1]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos, one of them in a folder with blanks, and a file that is none; and a spec of a tiny backbone."""
    folder = tmp_path_factory.mktemp("extract")
    for name in ("k0", f"sub dir/{ODD}"):
        write_video(folder / "v" / f"{name}.mp4", EVEN, lambda second: int(20 * second) % 255)
    (folder / "v" / "broken.mp4").write_bytes(b"no video")
    (folder / "annotations.json").write_text(json.dumps(database()))
    write_spec(folder)
    return folder


def _extract(folder: Path, output: str, *options: str, source: str = "v/k0.mp4") -> int:
    command = ["extract", str(folder / "spec.yaml"), str(folder / source), "--output", str(folder / output)]
    return main([*command, "--device", "cpu", *options])


def _read(folder: Path, output: str, name: str = "k0") -> np.ndarray:
    return read_features(folder / output, name, read_feature_facts(folder / output, name))


@pytest.fixture(scope="module")
def loaded(folder):
    return find_extractor(folder / "spec.yaml", None, None, None).load(torch.device("cpu"))


def _rows(loaded, folder: Path, stride: int | None, window: int | None) -> np.ndarray:
    backbone = loaded.module.backbone
    with open_file(folder / "v" / "k0.mp4", loaded.spec.data) as (source, _):
        steps = steps_for(backbone, 1, stride, window)
        return torch.cat(list(features_of(backbone, loaded._run, loaded.device, source, steps))).numpy()


def test_the_stream_and_a_window_give_the_backbones_own_features(loaded, folder):
    backbone = loaded.module.backbone
    with open_file(folder / "v" / "k0.mp4", loaded.spec.data) as (source, _):
        frames = np.concatenate(list(source.chunks(np.arange(96), 16)))
    with torch.no_grad():
        timeline = backbone.timeline(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])[0].numpy()
    np.testing.assert_allclose(_rows(loaded, folder, None, None), timeline, atol=1e-4)
    first_clip = timeline[: backbone.clip_tubelets].mean(0)
    np.testing.assert_allclose(_rows(loaded, folder, 3, backbone.clip_frames)[0], first_clip, atol=1e-4)


@pytest.mark.parametrize(("stride", "window"), [(2, None), (4, None), (1, 16), (3, 16), (5, 32), (20, 16)])
def test_twice_the_stride_gives_every_second_feature(loaded, folder, stride, window):
    once, twice = _rows(loaded, folder, stride, window), _rows(loaded, folder, 2 * stride, window)
    np.testing.assert_allclose(twice, once[::2], atol=1e-5)


def test_strides_and_windows_that_a_backbone_cannot_do_are_refused(loaded):
    for stride, window in ((3, None), (None, 10)):
        with pytest.raises(UserError, match="--window"):
            steps_for(loaded.module.backbone, 1, stride, window)


def test_a_list_goes_on_after_a_broken_video_and_is_not_done_twice(folder, capsys):
    assert _extract(folder, "out", source="v") == 1
    assert "broken.mp4" in capsys.readouterr().err
    assert {path.stem for path in (folder / "out").iterdir()} == {"k0", ODD}
    facts = json.loads(facts_path(folder / "out", ODD).read_text())["adatad features"]
    assert (facts["fps"], facts["stride_frames"], facts["positions"]) == (8.0, 2, 48)
    assert (facts["first_seconds"], facts["last_seconds"], facts["adapters"]) == (0.125, 11.875, False)
    written = array_path(folder / "out", "k0", "npy").stat().st_mtime_ns
    # As a run that was killed leaves it: facts without their array.
    array_path(folder / "out", ODD, "npy").unlink()
    assert _extract(folder, "out", source="v") == 1
    assert "1 done, 1 done before, 1 failed" in capsys.readouterr().out
    assert array_path(folder / "out", "k0", "npy").stat().st_mtime_ns == written
    assert _read(folder, "out", ODD).shape == (48, 16)


def test_safetensors_hold_the_same_and_other_settings_are_refused_in_one_folder(folder, capsys):
    assert _extract(folder, "npy") == _extract(folder, "safe", "--format", "safetensors") == 0
    np.testing.assert_array_equal(_read(folder, "npy"), _read(folder, "safe"))
    assert _extract(folder, "npy", "--stride", "4") == 2
    assert "stride_frames 2, asked for is 4" in capsys.readouterr().err
    assert _extract(folder, "npy", "--stride", "4", "--force") == 0
    assert len(_read(folder, "npy")) == 24


def test_files_of_somebody_else_are_not_replaced(folder, capsys):
    (folder / "theirs").mkdir()
    (folder / "theirs" / "k0.json").write_text("{}")
    assert _extract(folder, "theirs", "--force") == 2
    assert "isn't a JSON file of adatad extract" in capsys.readouterr().err
    assert (folder / "theirs" / "k0.json").read_text() == "{}"


def test_two_processes_share_a_list(folder, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        _extract(folder, "shared", source="v")
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        done = {path.stem for path in (folder / "shared").iterdir()}
        assert done < {"k0", ODD} or rank == "1"
    assert done == {"k0", ODD}


@pytest.mark.parametrize("mode", ["adapter", "plain", "side", "full"])
def test_a_trained_model_gives_the_features_of_its_own_backbone(folder, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(
        untrained_model, "TINY_SPEC", untrained_model.TINY_SPEC.replace("mode: adapter", f"mode: {mode}")
    )
    model = untrained_model.write_model(tmp_path / "model.safetensors")
    assert (
        main(["extract", str(model), str(folder / "v/k0.mp4"), "--output", str(tmp_path / "out"), "--device", "cpu"])
        == 0
    )
    facts = read_feature_facts(tmp_path / "out", "k0")
    assert facts.adapters == (mode != "full")
    detector = find_extractor(model, None, None, None).load(torch.device("cpu"))
    sampling = facts.preprocessing["sampling_frames"]
    with open_file(folder / "v" / "k0.mp4", detector.spec.data) as (source, _):
        steps = steps_for(detector.module.backbone, sampling, None, None)
        parts = features_of(detector.module.backbone, detector._run, detector.device, source, steps)
        np.testing.assert_array_equal(read_features(tmp_path / "out", "k0", facts), torch.cat(list(parts)).numpy())


def test_v_jepa_gives_features_too(folder, tmp_path):
    text = (folder / "spec.yaml").read_text().replace("preset: tiny", "preset: vjepa2-large")
    (tmp_path / "jepa.yaml").write_text(
        text.replace("width: 16, depth: 1, heads: 2}", "width: 48, depth: 1, heads: 2}", 1)
    )
    command = ["extract", str(tmp_path / "jepa.yaml"), str(folder / "v/k0.mp4"), "--output", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    assert _read(tmp_path, "out").shape == (48, 48)


def test_half_precision_is_read_as_float32(folder, capsys):
    assert _extract(folder, "single") == _extract(folder, "half", "--dtype", "float16") == 0
    assert np.load(folder / "half" / "k0.npy").dtype == np.float16
    single, half = _read(folder, "single"), _read(folder, "half")
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, single.astype(np.float16).astype(np.float32))
    assert _extract(folder, "half") == 2
    assert "dtype float16, asked for is float32" in capsys.readouterr().err


def test_two_ranks_write_what_one_does_and_each_video_once(folder):
    _extract(folder, "one", source="v")
    assert run_ranks(2, _extract_counted, folder) == [(1, 1), (1, 1)]
    for name in ("k0", ODD):
        for ending in (".npy", ".json"):
            one, two = (folder / output / f"{name}{ending}" for output in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def _extract_counted(folder: Path) -> tuple[int, int]:
    import adatad.detect.extract_list as extract_list

    written, keep = [], extract_list.keep
    extract_list.keep = lambda result, output: (written.append(result.name), keep(result, output))
    # All ranks hear of the broken video; of the three files each good one is written by one rank.
    return _extract(folder, "two", source="v"), len(written)


def test_a_killed_extraction_leaves_no_half_written_file_and_goes_on(folder, capsys):
    process = CONTEXT.Process(target=_extract_until_killed, args=(folder,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (whole,) = [path for name in ("k0", ODD) if (path := array_path(folder / "killed", name, "npy")).is_file()]
    before = whole.stat().st_mtime_ns
    (rest,) = (folder / "killed").glob(".*.unfinished.npy")
    # Younger ones are left alone: they may be those of a process that is at work.
    os.utime(rest, (0, 0))
    assert _extract(folder, "killed", source="v") == 1
    assert "1 done, 1 done before, 1 failed" in capsys.readouterr().out
    assert whole.stat().st_mtime_ns == before
    assert {path.name for path in (folder / "killed").iterdir()} == {
        f"{n}{e}" for n in ("k0", ODD) for e in (".npy", ".json")
    }


def _extract_until_killed(folder: Path) -> None:
    save, calls = np.save, []

    def killed_in_the_second(file, array):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(file, array)

    np.save = killed_in_the_second
    _extract(folder, "killed", source="v")
