"""Exported files: read back they give what the checkpoint gives; what doesn't fit is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from adatad.convert.weight_file import WeightsError, read_header
from adatad.spec import load
from adatad.training.checkpoint import CheckpointError, all_checkpoints, read_checkpoint
from adatad.training.export import export_trained
from adatad.training.model_export import export_model
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    from tiny_spec import TINY_SPEC

    folder = tmp_path_factory.mktemp("export")
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=folder / "runs"))
    spec = load(path, ["schedule.epochs=1"])
    train(spec)
    return path, spec, all_checkpoints(run_directory(spec).checkpoints)[-1]


@pytest.mark.parametrize("options", [[], ["--trained-only"]])
def test_an_exported_file_scores_as_its_checkpoint(run, run_command, tmp_path, options):
    path, spec, checkpoint = run
    file = tmp_path / "weights.safetensors"
    done = run_command("export", checkpoint, "--output", file, *options)
    assert done.returncode == 0, done.stderr
    found = {}
    for source in (checkpoint, file):
        score_checkpoint(spec, source, tmp_path / "found.json")
        found[source] = json.loads((tmp_path / "found.json").read_text())
    assert found[checkpoint] == found[file]
    scored = run_command("test", path, "--checkpoint", file)
    assert scored.returncode == 0, scored.stderr
    assert read_header(file)[1]["content"] == ("trained" if options else "merged")


def test_last_parameters_instead_of_averages(run, tmp_path):
    _, _, checkpoint = run
    saved = read_checkpoint(checkpoint)
    export_trained(saved, tmp_path / "last.safetensors", averages=False)
    tensors = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.parameters.items())
    assert any(not torch.equal(tensors[name], tensor) for name, tensor in saved.ema.items())


def test_files_of_other_models_are_refused(run, tmp_path):
    path, spec, checkpoint = run
    file = tmp_path / "weights.safetensors"
    export_trained(read_checkpoint(checkpoint), file)
    with pytest.raises(CheckpointError, match="other parameters"):
        score_checkpoint(load(path, ["model.backbone.adapter.ratio=0.5"]), file)
    with pytest.raises(CheckpointError, match="other frozen weights"):
        score_checkpoint(load(path, ["train.seed=1"]), file)
    with pytest.raises(CheckpointError, match="aren't those of the training"):
        export_model(load(path, ["train.seed=1"]), checkpoint, tmp_path / "merged.safetensors")
    assert not (tmp_path / "merged.safetensors").exists()
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        score_checkpoint(spec, file)
