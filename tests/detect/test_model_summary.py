"""`adatad model`: what it says of files of every kind, in few lines and as JSON."""

import json

import pytest
import torch

import adatad
from adatad.detect.model_summary import NAMES
from adatad.spec import load
from adatad.training.checkpoint import read_checkpoint
from adatad.training.export import export_opentad, export_trained
from adatad.training.model_export import export_model
from adatad.training.run import train
from adatad.training.run_directory import run_directory

MAX_LINES = 25


@pytest.fixture(scope="module")
def files(tiny_data, tmp_path_factory):
    """The trained spec, and its model in every form, by kind."""
    from tiny_spec import TINY_SPEC

    folder = tmp_path_factory.mktemp("forms")
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=folder / "runs"))
    spec = load(path, ["schedule.epochs=1"])
    train(spec)
    run = run_directory(spec)
    best = run.checkpoints / "best"
    checkpoint = read_checkpoint(best)
    export_model(spec, best, folder / "model.safetensors")
    export_trained(checkpoint, folder / "trained.safetensors")
    export_opentad(spec, checkpoint, folder / "ours.pth")
    content = torch.load(folder / "ours.pth", weights_only=True)
    torch.save({name: content[name] for name in ("epoch", "state_dict", "state_dict_ema")}, folder / "theirs.pth")
    return spec, {
        "model": folder / "model.safetensors",
        "run": run.path,
        "checkpoint": best,
        "trained": folder / "trained.safetensors",
        "averages": best / "ema.safetensors",
        "ours": folder / "ours.pth",
        "theirs": folder / "theirs.pth",
    }


def test_every_form_is_described(files, run_command):
    spec, paths = files
    for kind, path in paths.items():
        done = run_command("model", path)
        assert done.returncode == 0, done.stderr
        assert 5 < len(done.stdout.splitlines()) <= MAX_LINES
        summary = json.loads(run_command("model", path, "--json").stdout)
        assert list(summary) == list(NAMES), kind
        assert summary["mode"] == "adapter"
        assert (summary["backbone"]["width"], summary["backbone"]["depth"]) == (16, 2)
        # All forms count the same model.
        assert summary["parameters"] > summary["backbone_parameters"] > 5000
        if kind == "theirs":
            assert (summary["classes"], len(summary["outputs"]), summary["licence"]) == (None, 6, "unknown")
            assert "6, without names" in done.stdout
            continue
        assert len(summary["classes"]) == 6
        assert summary["window"]["frames"] == 64
        assert summary["licence"] == "no pretrained weights"
        assert summary["size_pixels"] == spec.data.size_pixels
        if kind in ("run", "checkpoint"):
            assert "average" in done.stdout
            assert summary["scores"]["average_mAP"] is not None
            assert summary["chosen"] == "best"


def test_all_forms_of_one_model_have_as_many_parameters(files, run_command):
    _, paths = files
    found = [json.loads(run_command("model", path, "--json").stdout) for path in paths.values()]
    assert len({(one["parameters"], one["backbone_parameters"]) for one in found}) == 1


def test_a_model_file_is_described_for_people(files, run_command):
    _, paths = files
    said = run_command("model", paths["model"]).stdout
    for part in (
        "model file, float32", "6: blink", "mode adapter", "8.0 s, 64 frames, 32 positions", "32 x 32 pixels",
        "each video's own (in training usually 8 a second), by presentation time", "thresholds   none:",
        "best checkpoint, step-00000003, epoch 1, step 3", f"adatad {adatad.__version__}, format version 1",
    ):  # fmt: skip
        assert part in said, said


def test_what_is_no_detector_is_refused(files, run_command, tmp_path):
    torch.save({"patch_embed.proj.weight": torch.zeros(2, 3, 2, 4, 4)}, tmp_path / "encoder.pth")
    torch.save({"rpn_head.cls_head.bias": torch.zeros(3)}, tmp_path / "odd.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name, message in (("encoder.pth", "no checkpoint of a detector"), ("text.pth", "not a readable weight file")):
        done = run_command("model", tmp_path / name)
        assert (done.returncode, message in done.stderr, name in done.stderr) == (2, True, True), done.stderr
    assert run_command("model", tmp_path / "odd.pth").returncode == 0
