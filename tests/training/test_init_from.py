"""`model.init_from`: a fresh run starts from a trained detector, by names, shapes and the names of its classes."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tiny_spec import TINY_SPEC

from adatad.convert.weight_file import read_header
from adatad.doctor.experiment import check_start
from adatad.doctor.findings import OK, PROBLEM
from adatad.errors import UserError
from adatad.parallel.processes import Processes, start_processes
from adatad.spec import SpecError, load
from adatad.training.checkpoint import read_checkpoint
from adatad.training.export import export_opentad, whole_model
from adatad.training.init_from import find_source, read_source, start_from
from adatad.training.model_facts import MERGED
from adatad.training.resolve import resolve_run
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.setup import build_initial_model, initial_state
from adatad.training.state_io import full_tensors

CPU = Processes(0, 1, torch.device("cpu"))
HEAD = ("detector.head.cls_head.weight", "detector.head.cls_head.bias")
FORMS = ("run", "checkpoint", "trained", "merged", "opentad")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr("adatad.training.run.try_write_report", lambda *_: None)
    monkeypatch.setattr("adatad.training.run._draw_timelines", lambda *_: None)


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Folder of a spec, its run, and what was exported of the run, by form."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=folder / "runs"))
    spec = load(path, ["schedule.epochs=1", "schedule.warmup_epochs=0", "optimizer.lr=1e-2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adatad.training.run.try_write_report", lambda *_: None)
        patch.setattr("adatad.training.run._draw_timelines", lambda *_: None)
        train(spec)
    run = run_directory(spec).path
    checkpoint = read_checkpoint(run / "checkpoints" / "step-00000003")
    shutil.copy(run / "checkpoints" / "step-00000003" / "ema.safetensors", folder / "trained.safetensors")
    whole = {name: p.detach().clone() for name, p in whole_model(spec, checkpoint, checkpoint.ema).named_parameters()}
    save_file(
        whole, folder / "merged.safetensors", {"content": MERGED, **checkpoint.facts.header(checkpoint.spec_yaml)}
    )
    export_opentad(spec, checkpoint, folder / "opentad.pth")
    places = {
        "run": run,
        "checkpoint": run / "checkpoints" / "step-00000003",
        "trained": folder / "trained.safetensors",
        "merged": folder / "merged.safetensors",
        "opentad": folder / "opentad.pth",
    }
    return path, checkpoint, places


def state_of(spec, *overrides, start=None):
    more = [] if start is None else [f"model.init_from={start}"]
    run = resolve_run(load(spec, [*more, *overrides]), CPU)
    return initial_state(run, CPU, None if start is None else filled_from(run, CPU))


def filled_from(run, processes):
    return partial(start_from, run=run, path=find_source(run.spec)[0], processes=processes)


def values(state):
    return {name: tensor.clone() for name, tensor in state.engine.master_parameters().items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_averages_and_rows_of_classes_by_their_names(trained, form):
    path, checkpoint, places = trained
    classes = [*reversed(checkpoint.facts.classes), "a new one"]
    other = [f"data.classes={json.dumps(classes)}"]
    fresh, state = values(state_of(path, *other)), state_of(path, *other, start=places[form])
    found = values(state)
    for name, tensor in found.items():
        if name not in HEAD:
            torch.testing.assert_close(tensor, checkpoint.ema[name], rtol=0, atol=0)
            continue
        for number, label in enumerate(classes[:-1]):
            assert torch.equal(tensor[number], checkpoint.ema[name][checkpoint.facts.classes.index(label)])
        assert torch.equal(tensor[-1], fresh[name][-1])
    # The averages begin with them, and nothing of AdamW is there.
    assert all(torch.equal(average, found[name]) for name, average in state.ema.averages.items())
    assert state.engine.moments() == {}
    lines = "\n".join(state.weights_report)
    assert f"{len(found) - 2} of {len(found) - 2} tensors taken" in lines
    assert f"class head: {len(classes) - 1} kept" in lines
    assert "1 new (a new one)" in lines


def test_a_checkpoint_that_says_no_names_gives_no_row(trained, tmp_path):
    path, _, places = trained
    content = torch.load(places["opentad"], weights_only=True)
    del content["meta"]
    torch.save(content, tmp_path / "epoch_1.pth")
    fresh, state = values(state_of(path)), state_of(path, start=tmp_path / "epoch_1.pth")
    assert torch.equal(values(state)[HEAD[0]], fresh[HEAD[0]])
    assert "doesn't say which classes its outputs are" in state.weights_report[-1]


def test_what_has_another_shape_stays_new_and_is_said(trained):
    path, checkpoint, places = trained
    other = ["model.backbone.adapter.kernel=5", "model.detector.branch_blocks=1",
             "model.detector.regression_ranges=[[0, 4], [4, 10000]]", "data.window.size_grid=16",
             f"model.backbone.weights={places['merged']}"]  # fmt: skip
    fresh, state = values(state_of(path, *other)), state_of(path, *other, start=places["trained"])
    found, lines = values(state), "\n".join(state.weights_report)
    reshaped = [name for name in found if name not in HEAD and found[name].shape != checkpoint.ema[name].shape]
    assert reshaped
    for name, tensor in found.items():
        expected = fresh if name in reshaped else checkpoint.ema
        assert torch.equal(tensor, expected[name]), name
    assert f"{len(reshaped)} new, of another shape (backbone.blocks.0.adapter.depthwise.weight [4, 1, 3]" in lines
    assert "left, not in this model (detector.projection.branch.1." in lines
    assert "data.window.size_grid: 32 at training, 16 here" in lines


def test_frozen_weights_in_eight_bits_change_nothing_of_what_is_taken(trained):
    path, checkpoint, places = trained
    memory = ["memory.policy=tile", "memory.frozen_dtype=int8"]
    for name, tensor in values(state_of(path, *memory, start=places["merged"])).items():
        assert torch.equal(tensor, checkpoint.ema[name])


def test_full_training_takes_the_backbone_too(trained):
    path, _, places = trained
    full = ["model.backbone.mode=full", "optimizer.backbone={lr: 1e-3}"]
    found, merged = values(state_of(path, *full, start=places["merged"])), load_file(places["merged"])
    assert torch.equal(found["backbone.blocks.1.mlp.fc1.weight"], merged["backbone.blocks.1.mlp.fc1.weight"])
    # Without adapters these are left.
    assert not any("adapter" in name for name in found)


@pytest.mark.parametrize("form", ["checkpoint", "trained", "merged", "opentad"])
def test_other_frozen_weights_are_refused(trained, form):
    path, _, places = trained
    hint = "train.seed=42" if form in ("checkpoint", "trained") else str(places[form])
    with pytest.raises(UserError, match=r"frozen|backbone") as caught:
        state_of(path, "train.seed=7", start=places[form])
    assert f"--set model.backbone.weights={'random ' if hint.startswith('train') else ''}{hint}" in str(caught.value)


def test_a_backbone_of_another_size_is_refused_with_the_size_of_the_training(trained):
    path, _, places = trained
    with pytest.raises(UserError, match=r"train\.seed=42 model\.backbone\.width=16 model\.backbone\.depth=2$"):
        state_of(path, "model.backbone.width=32", "model.backbone.depth=1", start=places["checkpoint"])


def test_a_detector_of_which_nothing_fits_is_refused(trained):
    path, _, places = trained
    small = ["model.backbone.mode=frozen", "optimizer.backbone=null", "model.detector.width=8"]
    with pytest.raises(UserError, match="no matrix of it fits what this spec trains"):
        state_of(path, *small, f"model.backbone.weights={places['merged']}", start=places["trained"])


BAD = {
    "missing": None,
    "empty.safetensors": b"",
    "empty.pth": b"",
    "text.pth": "Gewichte".encode("utf-16"),
    "page.safetensors": b"<!DOCTYPE html><html>not found</html>",
    "cut": "cut",
    "NaN": "nan",
    "a backbone's": "backbone",
    "names 'of' \"others\" ☃.pth": "foreign",
    "a folder": "folder",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_detector_is_refused_before_anything_is_written(trained, tmp_path, name):
    path, _, places = trained
    file, content = tmp_path / name, BAD[name]
    match content:
        case bytes():
            file.write_bytes(content)
        case "cut":
            file = file.with_suffix(".safetensors")
            file.write_bytes(places["trained"].read_bytes()[:-100])
        case "nan":
            tensors = load_file(places["trained"])
            tensors["detector.neck.norms.0.weight"][0] = float("nan")
            file = file.with_suffix(".safetensors")
            save_file(tensors, file, read_header(places["trained"])[1])
        case "backbone":
            file = file.with_suffix(".safetensors")
            save_file({"patch_embed.weight": torch.ones(2, 3, 2, 8, 8)}, file)
        case "foreign":
            torch.save({"state_dict": {"layer.weight": torch.ones(2)}}, file)
        case "folder":
            file.mkdir()
    runs = tmp_path / "runs"
    spec = load(path, [f"run.root={json.dumps(str(runs))}"])
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"init_from": str(file)})})
    with pytest.raises(UserError, match=rf"^model\.init_from: .*{name.partition(' ')[0].partition('.')[0]}"):
        train(spec)
    assert not list(runs.rglob("*.*"))
    if content is None:
        with pytest.raises(SpecError, match=r"model\.init_from: there is no run, checkpoint or file of weights"):
            load(path, [f"model.init_from={file}"])


def test_freeze_beside_it_is_refused(trained):
    path, _, places = trained
    with pytest.raises(SpecError, match=r"model\.freeze: keeps out of the checkpoints"):
        load(path, [f"model.init_from={places['run']}", 'model.freeze=["detector.neck.*"]'])


def test_force_does_not_delete_what_it_would_start_from(trained):
    path, _, places = trained
    with pytest.raises(UserError, match="which --force deletes"):
        train(load(path, [f"model.init_from={places['run']}"]), overwrite=True)
    assert read_source(places["checkpoint"]).kind == "averages of step 3"


def test_a_resumed_or_tested_run_does_not_need_the_file(trained, tiny_spec, run_command, tmp_path):
    copy = tmp_path / "start.safetensors"
    shutil.copy(trained[2]["trained"], copy)
    settings = ["--set", f"model.init_from={copy}", "schedule.epochs=2"]
    done = run_command("train", tiny_spec, *settings, "schedule.end_epoch=1")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "runs/tiny/id0/log.txt").read_text()
    assert f"model.init_from {copy}: exported weights" in log
    copy.unlink()
    tested = run_command("test", "--checkpoint", tmp_path / "runs/tiny/id0")
    assert tested.returncode == 0, tested.stderr
    resumed = run_command("train", tiny_spec, *settings, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    log = (tmp_path / "runs/tiny/id0/log.txt").read_text()
    assert "resumed from" in log
    assert log.count("model.init_from") == 1
    refused = run_command("train", tiny_spec, *settings)
    assert refused.returncode == 2
    assert "model.init_from: there is no run" in refused.stderr
    refused = run_command("train", tiny_spec, *settings, "--resume", "auto", "--id", "5")
    assert refused.returncode == 2
    assert str(copy) in refused.stderr
    assert not (tmp_path / "runs/tiny/id5").exists()


def test_a_whole_file_gives_the_backbone_where_the_spec_names_none(trained, tiny_spec, tmp_path, run_command):
    file = trained[2]["merged"]
    done = run_command("train", tiny_spec, "--set", "model.backbone.weights=null", f"model.init_from={file}",
                       "schedule.epochs=1", "schedule.warmup_epochs=0", "train.seed=7")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = Path(tmp_path / "runs/tiny/id0")
    assert load(run / "spec.yaml").model.backbone.weights == str(file)
    assert run_command("test", "--checkpoint", run).returncode == 0


def test_the_doctor_reads_what_a_run_would_start_from(trained, tmp_path):
    path, _, places = trained
    [found] = check_start(load(path, [f"model.init_from={places['run']}"]))
    assert found.level == OK
    assert "averages of step 3" in found.text
    (tmp_path / "none.pth").write_bytes(b"nothing")
    [found] = check_start(load(path, [f"model.init_from={tmp_path / 'none.pth'}"]))
    assert found.level == PROBLEM
    assert list(check_start(load(path))) == []


def loaded_on_ranks(path: str, overrides: list[list[str]]) -> list[tuple[dict, dict]]:
    """Return the full parameters and averages at step 0 by each engine, on the first rank of a group."""
    found = []
    with start_processes(60.0) as processes:
        for settings in overrides:
            spec = load(path, settings)
            run = resolve_run(spec, processes)
            state = initial_state(run, processes, filled_from(run, processes))
            parameters, averages, _ = full_tensors(state)
            found.append(tuple({n: t.numpy().copy() for n, t in part.items()} for part in (parameters, averages)))
    return found


def test_engines_shard_what_was_taken(trained):
    path, checkpoint, places = trained
    sharded = ["fsdp", "fairscale"]
    settings = [[f"model.init_from={places['run']}", f"parallel.engine={engine}"] for engine in sharded]
    for engine, (parameters, averages) in zip(
        sharded, run_ranks(2, loaded_on_ranks, str(path), settings)[0], strict=True
    ):
        assert parameters.keys() == averages.keys() == checkpoint.ema.keys(), engine
        for name, tensor in checkpoint.ema.items():
            assert (parameters[name] == tensor.numpy()).all(), (engine, name)
            assert (averages[name] == tensor.numpy()).all(), (engine, name)


def test_machines_that_read_other_weights_are_told(trained):
    path, _, places = trained
    spec = load(path, [f"model.init_from={places['run']}"])
    run = resolve_run(spec, CPU)
    model, _ = build_initial_model(spec, run.num_classes)
    two_machines = SimpleNamespace(gather=lambda own: [own, ("node2", "0" * 64)])
    with pytest.raises(UserError, match="node2 have read different weights"):
        start_from(model, run, find_source(spec)[0], two_machines)
