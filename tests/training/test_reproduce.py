"""The reproduction kit on a stand-in row: what is missing, training that goes on, tests made once, verdicts."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from adatad.convert.opentad_checkpoint import opentad_state
from adatad.models.detector import build_model
from adatad.report.scores import compare_with_published, verdict_line, write_reproduction
from adatad.spec import load
from adatad.spec.downloads import (
    DATA_SETS,
    PAGES,
    about_bytes,
    digest_start,
    how_made,
    where_data,
)
from adatad.spec.experiments import all_experiments, find_experiment
from adatad.spec.published import by_file, published
from adatad.training import reproduce as kit
from adatad.training.reproduce import MissingFilesError, missing, reproduce
from adatad.training.resolve import annotations_for

ROOT = Path(__file__).parents[2]
RESULT = {"average_mAP": 0.6853, "mAP": {"0.3": 0.8, "0.5": 0.7}}


@pytest.fixture
def command(run_command):
    """The command in this process: its exit code, and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        done = run_command("reproduce", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("published", "verdict"),
    [(69.03, "within"), (69.04, "below"), (68.03, "within"), (68.02, "above"), (None, "unpublished")],
)
def test_the_band_is_half_a_point_to_either_side(tiny_spec, tmp_path, published, verdict):
    given = "{}" if published is None else f"{{average_mAP: {published}, '0.5': 72.38, '0.75': 1.0}}"
    spec = load(tiny_spec, [f"published={given}"])
    reproduction = write_reproduction(tmp_path, spec, RESULT, "By hand.")
    assert (reproduction.verdict, reproduction.accepted) == (verdict, verdict != "below")
    content, page = json.loads((tmp_path / "reproduction.json").read_text()), (tmp_path / "reproduction.md").read_text()
    assert content["verdict"] == verdict
    assert verdict_line(spec, reproduction) in page
    assert "| 0.3 | 80.00 |  | " in page
    if published is not None:
        assert [figure["name"] for figure in content["figures"]] == ["average_mAP", "0.5"]
        assert content["figures"][1]["difference"] == pytest.approx(-2.38)
        assert "| 0.5 | 70.00 | 72.38 | -2.38 |" in page


def test_a_row_is_trained_then_goes_on_and_is_tested_once(tiny_spec, monkeypatch, command):
    first = load(tiny_spec, ["schedule.end_epoch=1", "published={average_mAP: 0.0}"])
    result, reproduction = reproduce(first)
    assert reproduction == compare_with_published(first, result)
    spec = load(tiny_spec, ["schedule.end_epoch=2", "published={average_mAP: 99.0}"])
    result, reproduction = reproduce(spec)
    run = Path(spec.run.root) / "tiny" / "id0"
    assert reproduction.verdict == "below"
    assert json.loads((run / "reproduction.json").read_text())["how"] == f"Trained here: {run}."
    assert "resumed from" in (run / "log.txt").read_text(), "the first epoch isn't trained again"

    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    tested, _ = reproduce(spec, newest)
    assert tested["mAP"] == result["mAP"]
    monkeypatch.setattr(kit, "score_checkpoint", lambda *_: pytest.fail("was tested before"))
    assert reproduce(spec, newest)[0]["mAP"] == tested["mAP"]
    options = ["--checkpoint", str(newest), "--set", "schedule.end_epoch=2", "published={average_mAP: 99.0}"]
    code, out, _ = command(tiny_spec, *options)
    assert code == 1
    assert f"tiny: not reproduced: average mAP {100 * result['average_mAP']:.2f}, published 99.00" in out
    assert re.search(r"average .*99\.00", out), "beside ours in the table"
    with pytest.raises(pytest.fail.Exception):
        reproduce(load(tiny_spec, ["postprocess.nms.sigma=0.3"]), newest)


def test_a_whole_checkpoint_is_tested_without_its_pretrained_file(tiny_spec, command, tmp_path):
    nowhere, file = ("--set", "model.backbone.weights=nowhere.pth"), tmp_path / "epoch_59.pth"
    code, out, _ = command(tiny_spec, "--check", "--checkpoint", file, *nowhere)
    assert code == 2
    assert re.fullmatch(rf"checkpoint {file}\nweights nowhere\.pth \(about .*\)\n", out)
    spec = load(tiny_spec)
    model = build_model(spec.model, len(annotations_for(spec).classes))
    torch.save({"epoch": 59, "state_dict": opentad_state(model, 100)}, file)
    assert command(tiny_spec, "--check", "--checkpoint", file, *nowhere) == (0, "tiny: everything is there\n", "")
    code, out, error = command(tiny_spec, "--checkpoint", file, *nowhere)
    assert code == 0, error
    assert "no average mAP was published" in out


def test_what_is_missing_is_listed_with_its_place(tiny_spec, tiny_data, tmp_path):
    spec = load(tiny_spec, [f"data.videos={tmp_path}"])
    (line,) = missing(spec)
    assert line.startswith(f"8 of 8 videos in {tmp_path}: ")
    no_checkpoint, line = missing(spec, tmp_path)
    assert no_checkpoint.startswith(f"checkpoint {tmp_path}: manifest.json can't be read")
    assert line.startswith("2 of 2 videos")
    with pytest.raises(MissingFilesError, match=r"tiny can't run yet; 1 things are missing:\n  8 of 8 videos"):
        reproduce(spec)
    assert not Path(spec.run.root).exists()
    row = load(find_experiment("thumos-l-768").path, check_files=False)
    lines = "\n".join(missing(row))
    for words in (
        "229dbb03",
        "about 1214 MB",
        "adatad weights fetch vit-large-p16",
        "thumos_14_anno.json",
        "crcv.ucf.edu/THUMOS14",
    ):
        assert words in lines
    lines = missing(row, tmp_path / "epoch_59.pth")
    comes_to = "pretrained/opentad/thumos_l_768x160_adapter.pth: adatad weights fetch thumos/l_768x160_adapter"
    assert f"epoch_59.pth; OpenTAD's, which comes to {comes_to}" in lines[0]
    named = "\n".join(missing(load(find_experiment("anet-g-internvideo2").path, check_files=False)))
    assert "classifier's scores data/activitynet-1.3/classifiers/anet_UMTv2" in named


def test_a_damaged_weight_file_is_seen_by_its_name(tiny_spec, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    start = hashlib.sha256(content).hexdigest()[:8]
    for name, damaged in ((f"vit_{start}.pth", False), ("vit_20221013-00000000.pth", True), ("vit_my.pth", False)):
        (tmp_path / name).write_bytes(content)
        lines = missing(load(tiny_spec, [f"model.backbone.weights={tmp_path / name}"], check_files=False))
        assert bool(lines) == damaged
        assert all(f"damaged: SHA-256 begins with {start}, not 00000000" in line for line in lines)


def test_every_row_s_files_have_a_place():
    for row in all_experiments():
        spec = load(row.path, check_files=False)
        assert by_file(spec.model.backbone.weights).path == spec.model.backbone.weights
        assert where_data(spec.data.videos)
        assert (ROOT / how_made(spec.data.annotations).split()[5]).is_file()
    models = [entry for entry in published().values() if entry.kind == "model"]
    assert {name for m in models for name in (m.name, *m.also)} <= {row.name for row in all_experiments()}
    assert where_data("data/hacs-1.1.1/videos").endswith(DATA_SETS["hacs-1.1.1"])
    assert PAGES.keys() == DATA_SETS.keys()
    assert not where_data("elsewhere/videos") + how_made("elsewhere/a.json")
    assert digest_start("a/vit-base_20221013-860a3cd3.pth") == "860a3cd3"
    giant = load(find_experiment("thumos-g-1536").path, check_files=False)
    assert about_bytes(giant.model.backbone) == pytest.approx(4 * 1_011_610_752, rel=0.002)


def test_the_command_says_what_is_missing(tiny_spec, command):
    assert command(tiny_spec, "--check") == (0, "tiny: everything is there\n", "")
    code, out, _ = command("thumos-s-768", "--check")
    assert (code, len(out.splitlines())) == (2, 4)
    code, _, error = command("thumos-s-768")
    assert code == 2
    assert "thumos/s_768x160_adapter can't run yet; 4 things are missing:" in error
    code, _, error = command("thumos-q-768")
    assert (code, "no published experiment" in error) == (2, True)


def test_an_empty_file_is_no_checkpoint_and_no_weights(tiny_spec, command, tmp_path):
    for name in ("epoch.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"")
        code, out, _ = command(tiny_spec, "--check", "--checkpoint", tmp_path / name)
        assert (code, f"checkpoint {tmp_path / name}: not a readable weight file: it is empty" in out) == (2, True)
        lines = missing(load(tiny_spec, [f"model.backbone.weights={tmp_path / name}"], check_files=False))
        assert [line for line in lines if "it is empty" in line]
