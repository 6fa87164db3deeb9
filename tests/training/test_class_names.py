"""A checkpoint knows its classes: whatever list or order a spec gives, outputs keep the names of the training."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_damaged_checkpoint import sign
from tiny_spec import TINY_SPEC

from adatad.spec import load
from adatad.spec.load import load_with_sources
from adatad.training.checkpoint import BEST, all_checkpoints, read_checkpoint
from adatad.training.export import export_trained, find_checkpoint, own_spec, read_trained_file
from adatad.training.model_facts import (
    CheckpointError,
    ClassNamesError,
    NewerVersionError,
    facts_of,
    match_for_resume,
    match_for_test,
)
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint

QUICK = ["schedule.epochs=1", "schedule.warmup_epochs=0", "optimizer.lr=1e-2", "evaluate.tious=[0.05]"]


def train_without_pictures(spec, resume: str | None = None) -> dict:
    """Most of the time of so short a run goes into its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adatad.training.run.try_write_report", lambda *_: None)
        patch.setattr("adatad.training.run._draw_timelines", lambda *_: None)
        return train(spec, resume=resume)


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """Spec file, spec and result of a run whose mAP is 12 % at a tIoU of 0.05."""
    folder = tmp_path_factory.mktemp("names")
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=folder / "runs"))
    spec = load(path, [*QUICK, "train.checkpoint_every_steps=2"])
    result = train_without_pictures(spec)
    assert result["average_mAP"] > 0.1
    return path, spec, result


def checkpoint_of(spec) -> Path:
    return all_checkpoints(run_directory(spec).checkpoints)[-1]


def classes(run) -> tuple[str, ...]:
    return read_trained_file(checkpoint_of(run[1])).facts.classes


def copy_of_annotations(run, folder: Path, change) -> Path:
    content = json.loads(Path(run[1].data.annotations).read_text())
    change(content["database"])
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def rename(old: str, new: str):
    def change(database):
        for entry in database.values():
            for item in entry["annotations"]:
                item["label"] = new if item["label"] == old else item["label"]

    return change


def test_another_order_of_classes_gives_the_same_figures(run, capsys):
    path, spec, result = run
    backwards = ", ".join(reversed(classes(run)))
    other = load(path, [*QUICK, f"data.classes=[{backwards}]"])
    assert score_checkpoint(other, checkpoint_of(spec))["ap_per_class"] == result["ap_per_class"]
    assert "named by its own classes" in capsys.readouterr().err


def test_a_renamed_class_is_refused_with_both_lists(run, run_command, tmp_path):
    path, spec, _ = run
    annotations = copy_of_annotations(run, tmp_path, rename("blink", "wink"))
    done = run_command(
        "test", path, "--checkpoint", run_directory(spec).path, "--set", *QUICK, f"data.annotations={annotations}"
    )
    assert done.returncode == 2
    assert "doesn't know wink" in done.stderr
    assert ", ".join(classes(run)) in done.stderr
    assert "the annotations have orbit_clockwise, " in done.stderr


def test_a_class_without_instances_is_said_once(run, tmp_path, capsys):
    path, spec, _ = run

    def without_blink(database):
        for entry in database.values():
            entry["annotations"] = [item for item in entry["annotations"] if item["label"] != "blink"]

    annotations = copy_of_annotations(run, tmp_path, without_blink)
    score_checkpoint(load(path, [*QUICK, f"data.annotations={annotations}"]), checkpoint_of(spec))
    assert capsys.readouterr().err.count("1 of 6 classes have no instance in the evaluated videos") == 1


@pytest.mark.parametrize(("listed", "instances"), [(False, False), (True, True)])
def test_a_file_of_test_videos_alone_is_enough(run, run_command, tmp_path, listed, instances):
    path, spec, result = run
    content = json.loads(Path(spec.data.annotations).read_text())
    videos = {name: entry for name, entry in content["database"].items() if entry["subset"] == "validation"}
    for entry in videos.values():
        entry |= {"subset": "test"} if instances else {"subset": "test", "annotations": []}
    (tmp_path / "t.json").write_text(json.dumps({"database": videos}))
    order = [f"data.classes=[{', '.join(classes(run))}]"] if listed else []
    settings = [*QUICK, *order, f"data.annotations={tmp_path / 't.json'}", "data.validation_subset=test"]
    test = ("test", path, "--checkpoint", checkpoint_of(spec), "--set", *settings)
    done = run_command(*test, "--detections", tmp_path / "new" / "d.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "new" / "d.json").read_text())["results"]
    assert found.keys() == videos.keys()
    assert all(found.values())
    if instances:
        assert f"{100 * result['average_mAP']:.2f}" in done.stdout
    else:
        done = run_command(*test)
        assert done.returncode == 2
        assert "no annotated instance" in done.stderr


def test_a_test_needs_no_spec_and_takes_a_run_for_its_best_checkpoint(run, run_command):
    _, spec, result = run
    done = run_command("test", "--checkpoint", run_directory(spec).path)
    assert done.returncode == 0, done.stderr
    assert f"{100 * result['average_mAP']:.2f}" in done.stdout
    assert "its best checkpoint, step-00000003, is taken" in done.stderr


@pytest.mark.parametrize("options", [(), ("--trained-only",)])
def test_an_export_knows_its_classes_and_its_spec(run, run_command, tmp_path, options):
    _, spec, result = run
    file = tmp_path / "new" / "w.safetensors"
    done = run_command("export", run_directory(spec).path, "--output", file, *options)
    assert done.returncode == 0, done.stderr
    there = read_trained_file(file)
    assert there.facts == facts_of(spec, classes(run))
    assert own_spec(file) == spec
    backwards = ", ".join(reversed(classes(run)))
    done = run_command("test", "--checkpoint", file, "--set", f"data.classes=[{backwards}]")
    assert done.returncode == 0, done.stderr
    assert f"{100 * result['average_mAP']:.2f}" in done.stdout


def test_an_exported_file_is_not_exported_again(run, run_command, tmp_path):
    averages = checkpoint_of(run[1]) / "ema.safetensors"
    done = run_command("export", averages, "--output", tmp_path / "x.safetensors")
    assert done.returncode == 2
    assert f"{averages}: is a file of weights, exported already" in done.stderr


def test_the_averages_of_a_checkpoint_can_be_used_alone(run, tmp_path):
    _, spec, result = run
    shutil.copy(checkpoint_of(spec) / "ema.safetensors", tmp_path)
    file = tmp_path / "ema.safetensors"
    assert read_trained_file(file).facts == facts_of(spec, classes(run))
    assert score_checkpoint(own_spec(file), file)["ap_per_class"] == result["ap_per_class"]


def test_opentad_s_form_carries_the_names_too(run, run_command, tmp_path):
    _, spec, result = run
    done = run_command("export", checkpoint_of(spec), "--output", tmp_path / "e.pth", "--opentad")
    assert done.returncode == 0, done.stderr
    assert read_trained_file(tmp_path / "e.pth").facts == facts_of(spec, classes(run))
    done = run_command("test", "--checkpoint", tmp_path / "e.pth")
    assert f"{100 * result['average_mAP']:.2f}" in done.stdout


def without_names(checkpoint: Path, folder: Path) -> Path:
    """A copy as it was before checkpoints had names and a version."""
    shutil.copytree(checkpoint, folder / checkpoint.name)
    state = json.loads((folder / checkpoint.name / "state.json").read_text())
    for name in ("format_version", "model", "tensors"):
        del state[name]
    (folder / checkpoint.name / "state.json").write_text(json.dumps(state))
    sign(folder / checkpoint.name)
    return folder / checkpoint.name


def test_an_older_checkpoint_is_taken_in_the_spec_s_order_and_that_is_said(run, tmp_path, capsys):
    _, spec, result = run
    old = without_names(checkpoint_of(spec), tmp_path)
    assert read_trained_file(old).facts is None
    assert score_checkpoint(spec, old)["ap_per_class"] == result["ap_per_class"]
    assert capsys.readouterr().err.count("doesn't say which classes its outputs are") == 1
    export_trained(read_checkpoint(old), tmp_path / "w.safetensors")
    assert read_trained_file(tmp_path / "w.safetensors").facts is None


def test_settings_that_change_what_is_seen_are_said_with_both_values(run):
    path, spec, _ = run
    other = load(path, [*QUICK, "data.size_pixels=48", "data.window.stride_frames=1", "data.fps=10"])
    said = "\n".join(match_for_test(other, facts_of(spec, classes(run)), Path("c"))[1])
    assert match_for_test(spec, facts_of(spec, classes(run)), Path("c"))[1] == []
    assert "data.size_pixels: 32 at training, 48 here" in said
    assert "data.window.stride_frames: 2 at training, 1 here" in said
    assert "data.fps: the annotation file's at training, 10.0 here" in said


@pytest.mark.parametrize("named", [True, False])
def test_a_run_goes_on_in_its_checkpoint_s_order(run, tmp_path, caplog, named):
    path, spec, _ = run
    middle = all_checkpoints(run_directory(spec).checkpoints)[0]
    assert middle.name == "step-00000002"
    backwards = ", ".join(reversed(classes(run)))
    order = [f"data.classes=[{backwards}]"] if named else []
    other = load(path, [*QUICK, f"run.id={5 + named}", *order])
    train_without_pictures(other, str(middle if named else without_names(middle, tmp_path)))
    assert ("classes are numbered as in" if named else "doesn't say which classes its outputs are") in caplog.text
    assert read_trained_file(checkpoint_of(other)).facts.classes == classes(run)
    one, two = (read_checkpoint(checkpoint_of(s)) for s in (spec, other))
    assert all((two.parameters[name] == tensor).all() for name, tensor in one.parameters.items())


def test_a_run_does_not_go_on_with_other_classes(run, tmp_path):
    path, spec, _ = run
    annotations = copy_of_annotations(run, tmp_path, rename("blink", "wink"))
    other = load(path, [*QUICK, "run.id=2", f"data.annotations={annotations}"])
    with pytest.raises(ClassNamesError, match=r"only the checkpoint has blink; only the annotations have wink"):
        train(other, resume=str(checkpoint_of(spec)))
    assert not run_directory(other).path.exists()


def test_another_number_of_classes_is_said_by_names_when_resuming(run, tmp_path):
    path, spec, _ = run
    more = ", ".join([*classes(run), "wink"])
    with pytest.raises(ClassNamesError, match=r"only the annotations have wink"):
        train(load(path, [*QUICK, "run.id=2", f"data.classes=[{more}]"]), resume=str(checkpoint_of(spec)))
    agnostic = ["model.detector.class_agnostic=true", "postprocess.nms.multiclass=false"]
    with pytest.raises(CheckpointError, match=r"class_agnostic: false, and the spec says true"):
        train(load(path, [*QUICK, "run.id=2", *agnostic]), resume=str(checkpoint_of(spec)))


def test_without_classes_of_its_own_a_detector_takes_any_labels(run, tmp_path):
    path, spec, _ = run
    agnostic = load(path, [*QUICK, "model.detector.class_agnostic=true"])
    facts = facts_of(agnostic, classes(run))
    assert facts.outputs == ("action",)
    annotations = copy_of_annotations(run, tmp_path, rename("blink", "wink"))
    other = load(path, [*QUICK, "model.detector.class_agnostic=true", f"data.annotations={annotations}"])
    _, lines = match_for_test(other, facts, Path("c"))
    assert lines == [f"1 of {len(facts.classes)} classes have no instance in the evaluated videos, and don't count in "
                     "mAP: blink"]  # fmt: skip
    backwards = f"data.classes=[{', '.join(reversed(classes(run)))}]"
    assert (
        match_for_test(load(path, [*QUICK, "model.detector.class_agnostic=true", backwards]), facts, Path("c"))[1] == []
    )
    with pytest.raises(Exception, match="class_agnostic: true, and the spec says false"):
        match_for_test(spec, facts, Path("c"))


def test_classes_are_matched_for_a_resumption():
    assert match_for_resume(None, ("b", "a"), Path("c"))[0] == ("b", "a")


def test_a_run_without_a_best_checkpoint_gives_its_newest_whole_one(run, tmp_path):
    _, spec, _ = run
    folder = tmp_path / "id0" / "checkpoints"
    shutil.copytree(run_directory(spec).checkpoints, folder, symlinks=True)
    assert find_checkpoint(tmp_path / "id0") == find_checkpoint(tmp_path / "id0")
    assert find_checkpoint(folder)[0] == folder / BEST
    (folder / "step-00000003" / "state.json").write_text("{}")
    path, lines = find_checkpoint(tmp_path / "id0")
    assert path == folder / "step-00000002"
    assert "skipped" in lines[0]
    assert "newest whole checkpoint, step-00000002" in lines[-1]
    (folder / "step-00000002" / "state.json").unlink()
    with pytest.raises(Exception, match="holds no whole checkpoint: skipped"):
        find_checkpoint(folder)
    for wrong, message in ((tmp_path, "is no checkpoint"), (tmp_path / "gone", "can't be read")):
        with pytest.raises(Exception, match=message):
            read_trained_file(find_checkpoint(wrong)[0])


@pytest.mark.parametrize("output", ["folder", "pipe", ""])
def test_detections_that_cannot_be_written_are_refused_first(run, run_command, monkeypatch, tmp_path, output):
    path, spec, _ = run
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adatad.training.score.detect", lambda *_, **__: pytest.fail("was evaluated"))
    done = run_command("test", path, "--checkpoint", checkpoint_of(spec), "--detections", output)
    assert done.returncode == 2
    annotations, state = spec.data.annotations, checkpoint_of(spec) / "state.json"
    for read in (annotations, state):
        before = Path(read).read_bytes()
        done = run_command("test", path, "--checkpoint", checkpoint_of(spec), "--detections", read)
        assert done.returncode == 2
        assert "is read by this test" in done.stderr
        assert Path(read).read_bytes() == before
    (tmp_path / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    done = run_command("test", path, "--checkpoint", checkpoint_of(spec), "--detections", "weights.safetensors")
    assert (done.returncode, "weights.safetensors: is there already and isn't JSON" in done.stderr) == (2, True)
    assert (tmp_path / "weights.safetensors").read_bytes().startswith(b"\x10")


def test_a_spec_of_another_version_is_named(run, tmp_path):
    _, spec, _ = run
    shutil.copytree(checkpoint_of(spec), tmp_path / "c")
    text = (tmp_path / "c" / "spec.yaml").read_text()
    (tmp_path / "c" / "spec.yaml").write_text(text + "new_section: {a: 1}\n")
    with pytest.raises(CheckpointError, match=r"c/spec\.yaml: can't be used as a spec here: .*new_section") as refused:
        own_spec(tmp_path / "c")
    assert "/tmp/tmp" not in str(refused.value)
    for more, message in (
        ("a: &a [*a]\n", "can't be used as a spec"), ("a: 2001-99-99\n", "can't be used as a spec"),
        (f"a: [&a [1], {'*a, ' * 20}]\n", "has aliases"), ("base: /etc/hostname\n", "has base"),
        ("a: " + "9" * 5000 + "\n", "can't be used as a spec"),
    ):  # fmt: skip
        (tmp_path / "c" / "spec.yaml").write_text(text + more)
        with pytest.raises(CheckpointError, match=message):
            own_spec(tmp_path / "c")
    assert load_with_sources(checkpoint_of(spec) / "spec.yaml")[0] == spec


def test_an_export_of_a_newer_version_is_refused_by_field(run, tmp_path):
    _, spec, _ = run
    tensors = load_file(checkpoint_of(spec) / "ema.safetensors")
    header = {**facts_of(spec, classes(run)).header("name: x"), "format_version": "8", "sharpness": "1"}
    save_file(tensors, tmp_path / "w.safetensors", header)
    with pytest.raises(NewerVersionError, match=r"w\.safetensors: is of format version 8, which has sharpness"):
        read_trained_file(tmp_path / "w.safetensors")
    for name, text in (("outputs", "[1]"), ("outputs", "["), ("class_agnostic", "true"), ("classes", '["a", "a"]')):
        save_file(tensors, tmp_path / "w.safetensors", {**facts_of(spec, classes(run)).header("name: x"), name: text})
        with pytest.raises(CheckpointError, match=rf"w\.safetensors: .*{name}"):
            read_trained_file(tmp_path / "w.safetensors")
    save_file(tensors, tmp_path / "w.safetensors", {"content": "trained"})
    with pytest.raises(CheckpointError, match="frozen_fingerprint: is missing"):
        score_checkpoint(spec, tmp_path / "w.safetensors")
