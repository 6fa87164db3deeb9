"""OpenTAD's checkpoints: the goldens' weights come in and go out as they were; one written here scores as ours."""

import json

import pytest
import torch

from adatad.convert.opentad_checkpoint import load_opentad, opentad_state
from adatad.convert.weight_file import WeightsError
from adatad.dev.parity.golden_cases import find_cases, read_case
from adatad.dev.parity.translate import spec_of
from adatad.models.detector import build_model
from adatad.spec import SpecError, load
from adatad.spec.model_sections import BackboneSpec, DetectorSpec, ModelSpec
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.export import export_opentad
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint

FREE = ("fc_norm.weight", "fc_norm.bias", "loss_normalizer")
"""Entries that no feature depends on."""


def golden_weights(case):
    state = {name: torch.from_numpy(array) for name, array in case.weights.items()}
    model = build_model(spec_of(case).model, len(state["module.rpn_head.cls_head.bias"]))
    return state, model


@pytest.mark.parametrize("form", ["averages", "last", "no averages", "no prefix"])
def test_weights_of_the_goldens_come_in_and_go_out_unchanged(form, shared_folder, tmp_path):
    compared = 0
    for folder in find_cases(shared_folder / "golden" / "model"):
        case = read_case(folder)
        if case.facts["backbone"] is None:
            continue
        state, model = golden_weights(case)
        content = {"epoch": 1, "state_dict": state, "optimizer": {"state": {}}}
        wrong = {name: torch.full_like(tensor, 7) for name, tensor in state.items()}
        if form == "averages":
            content |= {"state_dict": wrong, "state_dict_ema": state}
        if form == "last":
            content["state_dict_ema"] = wrong
        if form == "no prefix":
            content["state_dict"] = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        torch.save(content, tmp_path / "epoch_1.pth")
        loaded = load_opentad(model, tmp_path / "epoch_1.pth", averages=form != "last")
        assert ("moving averages" in loaded.title) == (form == "averages")
        out = opentad_state(model, 100)
        assert out.keys() == state.keys()
        for name, tensor in out.items():
            assert tensor.shape == state[name].shape, name
            assert name.endswith(FREE) or torch.equal(tensor, state[name]), name
        compared += 1
    assert compared >= 7


def small_model(**backbone):
    sizes = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "mode": "adapter"}
    return build_model(ModelSpec(backbone=BackboneSpec(**{**sizes, **backbone}), detector=DetectorSpec(width=8)), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "full"}, r"missing module\.backbone\.model\.backbone\.blocks\.0\.adapter\.gamma"),
        ({"mode": "side"}, r"missing .*unknown|unknown .*missing|missing"),
        ({"width": 8}, r"patch_embed\.projection\.weight is \(8, 3, 2, 8, 8\), the spec's \(16, 3, 2, 8, 8\)"),
        ({"depth": 3}, r"unknown module\.backbone\.model\.backbone\.blocks\.2\."),
    ],
)
def test_another_variant_or_size_is_refused(changes, message, tmp_path):
    torch.save({"state_dict": opentad_state(small_model(**changes), 100)}, tmp_path / "epoch_1.pth")
    model = small_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(WeightsError, match=message):
        load_opentad(model, tmp_path / "epoch_1.pth")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_opentad_has_not_is_refused():
    with pytest.raises(WeightsError, match="plain"):
        opentad_state(small_model(mode="plain"), 100)


def test_a_run_goes_out_and_is_tested_without_its_pretrained_file(tiny_spec, run_command, tmp_path):
    spec = load(tiny_spec, ["schedule.epochs=1"])
    train(spec)
    checkpoint = all_checkpoints(run_directory(spec).checkpoints)[-1]
    file = tmp_path / "epoch_0.pth"
    export_opentad(spec, read_checkpoint(checkpoint), file)
    content = torch.load(file, weights_only=True)
    assert content.keys() == {"epoch", "state_dict", "state_dict_ema", "meta"}
    assert {type(text) for text in content["meta"]["adatad"].values()} == {str}
    score_checkpoint(spec, checkpoint, tmp_path / "ours.json")
    missing = "model.backbone.weights=nowhere.pth"
    found = tmp_path / "theirs.json"
    tested = run_command("test", tiny_spec, "--checkpoint", file, "--detections", found, "--set", missing)
    assert tested.returncode == 0, tested.stderr
    assert "OpenTAD checkpoint, moving averages" in tested.stderr
    assert json.loads(found.read_text()) == json.loads((tmp_path / "ours.json").read_text())
    last = [tmp_path / "last_of_ours.json", tmp_path / "last_of_theirs.json"]
    for path, written in zip((checkpoint, file), last, strict=True):
        score_checkpoint(spec, path, written, averages=False)
    assert last[0].read_text() == last[1].read_text() != found.read_text()
    with pytest.raises(SpecError, match=r"there is no file nowhere\.pth"):
        load(tiny_spec, [missing])
    with pytest.raises(WeightsError, match="say random"):
        train(load(tiny_spec, ["model.backbone.weights=null", "run.id=1"]))
    assert not (tmp_path / "runs/tiny/id1").exists()
