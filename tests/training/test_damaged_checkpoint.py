"""Checkpoints that were changed and signed anew: refused before anything starts, in a line with file and field."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_spec import saved_state

from adatad.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    mark_best,
    newest_checkpoint,
    read_checkpoint,
    why_broken,
    write_checkpoint,
)
from adatad.training.checkpoint_check import Progress, check_position, spec_problem
from adatad.training.model_facts import FORMAT_VERSION, FrameRate, ModelFacts, NewerVersionError

HEAD = "detector.head.cls_head.bias"
FACTS = ModelFacts(outputs=("a", "b"), classes=("a", "b"), class_agnostic=False, frame_rate=FrameRate(), window={},
                   preprocessing={})  # fmt: skip


def some_checkpoint(named: bool = True) -> Checkpoint:
    weights = {HEAD: torch.ones(2), "w": torch.randn(3, 2)}
    moments = {n: {"step": torch.tensor(1.0), "exp_avg": t / 9, "exp_avg_sq": t**2} for n, t in weights.items()}
    state = saved_state(1)
    if named:
        tensors = {"parameters": 2, "ema": 2, "optimizer": 6}
        progress = asdict(Progress(step_in_epoch=1, step=1))
        state |= {"format_version": FORMAT_VERSION, "model": FACTS.model_dump(mode="json"), "tensors": tensors}
        state["progress"] = progress
    return Checkpoint(weights, weights, moments, state, "name: x\n", FACTS if named else None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "step-00000001"
    write_checkpoint(path, some_checkpoint())
    return path


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / written.name)


def sign(path) -> None:
    """A manifest that fits what lies there."""
    files = [file for file in path.iterdir() if file.is_file() and file.name != "manifest.json"]
    facts = {f.name: {"bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in files}
    (path / "manifest.json").write_text(json.dumps(facts))


def change_state(path, change) -> None:
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    sign(path)


def assert_refused(path, message: str, kind: type[CheckpointError] = CheckpointError) -> None:
    with pytest.raises(kind, match=message) as refused:
        read_checkpoint(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 1000
    if kind is CheckpointError:
        assert f"{path}: {why_broken(path)}" == str(refused.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("progress", None, r"state\.json: progress: is missing"),
        ("progress", 3, r"progress: should be an object with fields, got 3"),
        ("progress.step", None, r"state\.json: progress\.step: is missing"),
        ("progress.step", "7", r"progress\.step: should be a valid integer, got '7'"),
        ("progress.step", True, r"progress\.step: should be a valid integer, got True"),
        ("progress.step", -1, r"progress\.step: "),
        ("progress.step", 10**400, r"progress\.step: .* got a number of many digits"),
        ("progress.epoch", 5, r"epoch 5 and step 1 in it are more than all 1 steps"),
        ("progress.step_in_epoch", 99, r"step 99 in it are more than all 1 steps"),
        ("progress.evaluated_epochs", 2, r"evaluated_epochs"),
        ("progress.seconds", float("nan"), r"progress\.seconds: .*finite"),
        ("progress.best_mAP", 55.3, r"best_mAP"),
        ("progress.more", 1, r"progress\.more: is no field of format version 1"),
        ("normalizer", None, r"normalizer: is missing"),
        ("normalizer", float("inf"), r"normalizer: .*finite"),
        ("normalizer", "x", r"normalizer: "),
        ("scaler", None, r"scaler: is missing"),
        ("scaler", {"scale": 2.0}, r"scaler: growth_factor: is missing"),
        ("frozen_fingerprint", None, r"frozen_fingerprint: is missing"),
        ("frozen_fingerprint", "abc", r"frozen_fingerprint: "),
        ("more", 1, r"state\.json: more: is no field"),
        ("model", None, r"model: is missing"),
        ("model.outputs", ["a", "a"], r"model: "),
        ("model.outputs", ["a"], r"model: .*outputs"),
        ("model.classes", ["a", ""], r"model: classes"),
        ("model.frame_rate", {"fps": -1}, r"model: frame_rate\.fps"),
        ("tensors", {"optimizer": 9}, r"optimizer\.safetensors holds 6 tensors \(optimizer\), .* they were 9"),
        ("format_version", 0, r"format_version"),
        ("format_version", "1", r"format_version"),
    ],
)
def test_a_state_is_checked_by_field(copied, place, value, message):
    def change(state):
        *outer, last = place.split(".")
        for name in outer:
            state = state[name]
        if value is None:
            del state[last]
        else:
            state[last] = value

    change_state(copied, change)
    assert_refused(copied, message)


def test_more_names_than_outputs_are_refused(copied):
    three = {**FACTS.model_dump(mode="json"), "outputs": ["a", "b", "c"], "classes": ["a", "b", "c"]}
    change_state(copied, lambda state: state.update(model=three))
    assert_refused(copied, r"model: outputs: 3 names for 2 outputs")


def test_a_newer_version_is_refused_by_number_and_field_and_never_skipped(copied):
    change_state(copied, lambda state: state.update(format_version=7, sharpness=3))
    assert_refused(copied, r"format version 7, which has sharpness; this program knows .*1", NewerVersionError)
    change_state(copied, lambda state: (state.pop("sharpness"), state["progress"].update(laps=2)))
    assert_refused(copied, r"format version 7, which has progress\.laps", NewerVersionError)
    with pytest.raises(NewerVersionError):
        newest_checkpoint(copied.parent)


def test_a_checkpoint_of_before_there_was_a_version_is_read(tmp_path):
    write_checkpoint(tmp_path / "old", some_checkpoint(named=False))
    read = read_checkpoint(tmp_path / "old")
    assert read.facts is None
    assert Progress(**read.state["progress"]).best_mAP == -1
    assert why_broken(tmp_path / "old") is None


def nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("file", "name", "change", "message"),
    [
        ("parameters", "w", nan, r"parameters\.safetensors: w holds NaN"),
        ("parameters", "w", lambda t: t / 0, r"parameters\.safetensors: w holds"),
        ("parameters", "w", lambda t: t.half(), r"w is float16, expected float32"),
        ("parameters", "w", lambda t: t.long(), r"w is int64"),
        ("parameters", "w", lambda t: None, r"ema\.safetensors holds w, of no|parameters\.safetensors holds 1 tensors"),
        ("ema", "w", lambda t: None, r"ema\.safetensors (lacks w|holds 1 tensors)"),
        ("ema", "w", lambda t: t[:1], r"ema\.safetensors: w is \(1, 2\), and the parameter itself \(3, 2\)"),
        ("ema", "w", nan, r"ema\.safetensors: w holds NaN"),
        ("ema", "v", lambda t: torch.ones(1), r"ema\.safetensors holds (v, of no trained parameter|3 tensors)"),
        ("optimizer", "w/exp_avg", lambda t: None, r"optimizer\.safetensors (lacks w/exp_avg|holds 5 tensors)"),
        ("optimizer", "w/exp_avg", lambda t: t[:1], r"optimizer\.safetensors: w/exp_avg is \(1, 2\)"),
        ("optimizer", "w/exp_avg_sq", lambda t: -t - 1, r"squares below 0"),
        ("optimizer", "w/exp_avg_sq", nan, r"w/exp_avg_sq holds NaN"),
        ("optimizer", "w/step", lambda t: torch.ones(2), r"w/step is no single number"),
        ("optimizer", "w/step", lambda t: torch.tensor(float("nan")), r"w/step is nan, expected a number of steps"),
        ("optimizer", "w/step", lambda t: torch.tensor(-1.0), r"w/step is -1\.0"),
        ("optimizer", "noslash", lambda t: torch.ones(1), r"optimizer\.safetensors holds ('noslash'|7 tensors)"),
        ("optimizer", "v/exp_avg", lambda t: torch.ones(1), r"optimizer\.safetensors holds ('v/exp_avg'|7 tensors)"),
    ],
)
@pytest.mark.parametrize("counted", [False, True])
def test_tensors_are_checked_by_name_shape_and_value(copied, file, name, change, message, counted):
    path = copied / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors.get(name))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}, path)
    change_state(copied, lambda state: None if counted else [state.pop(n) for n in
                 ("tensors", "model", "format_version")])  # fmt: skip
    assert_refused(copied, message)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({}, r"doesn't name parameters\.safetensors, ema\.safetensors, optimizer\.safetensors, state\.json, spec"),
        ([], r"expected an object of files by name, got list"),
        ("state.json alone", r"doesn't name parameters\.safetensors"),
        ({"../x": 1}, r"'\.\./x' is no file of a checkpoint"),
        ({"/etc/passwd": 1}, r"'/etc/passwd' is no file of a checkpoint"),
        ({"a/../state.json": 1}, r"is no file of a checkpoint"),
        ({"shards/a/b": 1}, r"is no file of a checkpoint"),
        ({"": 1}, r"is no file of a checkpoint"),
        ({"a\nb": 1}, r"is no file of a checkpoint"),
        ({"x" * 5000: 1}, r"the name .* is too long"),
        ('{"\\ud800": 1}', r"half of a character"),
        ("[" * 100_000, r"nested too deeply"),
        ("", r"is empty"),
        ('{"a": 1, "a": 2}', r"stands twice"),
    ],
)
def test_a_manifest_must_name_all_files_and_no_others(copied, manifest, message):
    if manifest == "state.json alone":
        manifest = {"state.json": json.loads((copied / "manifest.json").read_text())["state.json"]}
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (copied / "manifest.json").write_text(text)
    assert_refused(copied, rf"manifest\.json .*{message}")


@pytest.mark.parametrize("size", [None, -1, True, "5", 1e3, {}])
def test_sizes_in_a_manifest_are_whole_numbers(copied, size):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["state.json"]["bytes"] = size
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(copied, r"a size or a checksum is missing from it, of state\.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\xfa", r"spec\.yaml "),
        (b"name: [", r"spec\.yaml is no readable YAML"),
        (b"- a\n- b\n", r"spec\.yaml is no spec: expected sections"),
        (b"", r"spec\.yaml is no spec"),
        (b"a: " + b"[" * 3000, r"spec\.yaml is no readable YAML"),
    ],
)
def test_a_spec_that_cannot_be_read_is_refused(copied, content, message):
    (copied / "spec.yaml").write_bytes(content)
    sign(copied)
    assert_refused(copied, message)


def test_a_spec_may_be_called_base_but_have_none():
    assert spec_problem("name: base\ndata: {base: 1}\nrun: {a: [base]}\nreference: base\n") is None
    assert "has base" in spec_problem("data: {x: [1, {y: z}]}\nbase: other.yaml\n")


def test_what_is_no_regular_file_is_not_read(copied):
    (copied / "state.json").unlink()
    os.mkfifo(copied / "state.json")
    assert_refused(copied, r"state\.json is missing")
    (copied / "manifest.json").unlink()
    os.mkfifo(copied / "manifest.json")
    assert_refused(copied, r"manifest\.json is no regular file")


def test_a_damaged_one_is_skipped_with_its_line(copied):
    shutil.copytree(copied, checkpoint_path(copied.parent, 2))
    change_state(checkpoint_path(copied.parent, 2), lambda state: state.pop("normalizer"))
    newest, skipped = newest_checkpoint(copied.parent)
    assert newest == copied
    assert skipped == [f"skipped {checkpoint_path(copied.parent, 2)}: state.json: normalizer: is missing"]


def test_a_position_that_the_epoch_does_not_have_is_refused(tmp_path):
    check_position(Progress(step_in_epoch=2, step=2), 3, tmp_path)
    with pytest.raises(CheckpointError, match=r"step_in_epoch: stands at step 99 of an epoch that has 3 here"):
        check_position(Progress(step_in_epoch=99, step=99), 3, tmp_path)


def test_more_steps_than_any_batch_gives_are_refused_and_others_said(tmp_path):
    assert check_position(Progress(epoch=2, step=6), 3, tmp_path, 12) == []
    for most in (12, None):
        [line] = check_position(Progress(epoch=2, step=7), 3, tmp_path, most)
        assert "stands at step 7, and 2 epochs of 3 steps and 0 here make 6" in line
    with pytest.raises(CheckpointError, match=r"progress\.step: 1000000 steps, of which .* make 6; .* are 24 at most"):
        check_position(Progress(epoch=2, step=1_000_000), 3, tmp_path, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["progress"].update(bad_steps=2), r"progress\.bad_steps: 2 of 1 steps"),
        (lambda state: state["progress"].update(bad_steps_in_a_row=2), r"progress\.bad_steps_in_a_row: 2 of 1 steps"),
        (lambda state: state.update(normalizer=1e13), r"normalizer"),
        (lambda state: state.update(optimizer_step=9.0), r"optimizer_step: 9, and the run has done 1 steps"),
    ],
)
def test_numbers_that_so_few_steps_cannot_give_are_refused(copied, change, message):
    change_state(copied, change)
    assert_refused(copied, message)


def test_an_optimizer_that_has_done_more_steps_than_the_run_is_refused(copied):
    tensors = load_file(copied / "optimizer.safetensors")
    tensors["w/step"] = torch.tensor(9.0)
    save_file(tensors, copied / "optimizer.safetensors")
    sign(copied)
    assert_refused(copied, r"w/step is 9, and the run has done 1 steps")


def test_a_folder_called_best_is_left_alone_and_named(copied):
    shutil.copytree(copied, copied.parent / BEST)
    with pytest.raises(CheckpointError, match=r"best: is a folder, and not the link .*mv .*best-copy"):
        mark_best(copied.parent, copied)
    assert why_broken(copied.parent / BEST) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data(), value=JSON)
def test_whatever_stands_in_a_state_it_is_read_or_refused(written, data, value):
    folder = written.parent / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written, folder)
    state = json.loads((folder / "state.json").read_text())
    place = data.draw(st.sampled_from([state, state["progress"], state["model"], state["model"]["frame_rate"]]))
    place[data.draw(st.sampled_from([*place, "new"]))] = value
    change_state(folder, lambda old: (old.clear(), old.update(state)))
    try:
        Progress(**read_checkpoint(folder).state["progress"])
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
