"""Model files: what is in them, that they detect as their checkpoint, and that everything else is refused by name."""

import json
import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import adatad
from adatad.convert.weight_file import OWN_META, read_header, read_safetensors, write_safetensors
from adatad.data.annotations import ground_truth
from adatad.detect.model_file import read_model_file
from adatad.evaluation.detection_map import evaluate
from adatad.spec import load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.export import export_opentad, whole_model
from adatad.training.model_export import export_model, in_16_bits
from adatad.training.model_record import RECORD, fingerprint_of
from adatad.training.run import train
from adatad.training.run_directory import run_directory

SETTINGS = ["schedule.epochs=1", "model.backbone.mode=side", "data.on_error=raise"]


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """The spec's file, the spec, and a run of one epoch."""
    from tiny_spec import TINY_SPEC

    folder = tmp_path_factory.mktemp("models") / "a folder, with 'quotes' and ü"
    folder.mkdir()
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=json.dumps(str(folder / "runs"))))
    spec = load(path, SETTINGS)
    train(spec)
    return path, spec, run_directory(spec)


@pytest.fixture(scope="module")
def model_path(trained, tmp_path_factory):
    """Export the run without thresholds: a model of one epoch finds nothing."""
    _, spec, run = trained
    file = tmp_path_factory.mktemp("file") / "mödel file.safetensors"
    export_model(spec, run.checkpoints / "best", file)
    return file


def annotated(spec):
    """Detections that are the annotations themselves, each with a score of its own."""
    truth = ground_truth(spec.data)
    return {
        video: [
            {"segment": item["segment"], "label": item["label"], "score": 0.9 - 0.01 * number}
            for number, item in enumerate(entry["annotations"])
        ]
        for video, entry in truth["database"].items()
    }


def with_detections(run, folder, spec, detections):
    """A copy of a run whose last evaluation has found these, and has written that down."""
    shutil.copytree(run.path, folder, symlinks=True)
    result = evaluate(ground_truth(spec.data), {"results": detections}, "evaluated", spec.evaluate.tious)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-1]), **result.summary()}
    assert last["kind"] == "evaluation"
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    (folder / "detections.json").write_text(json.dumps({"results": detections}))
    return folder


def test_a_model_file_says_what_it_takes_to_detect(trained, model_path):
    _, spec, run = trained
    model = read_model_file(model_path)
    assert model.spec == spec
    assert model.facts.classes == model.facts.outputs == read_checkpoint(run.checkpoints / "best").facts.outputs
    assert model.facts.window == spec.data.window.model_dump(mode="json")
    assert (model.facts.frame_rate.fps, model.facts.frame_rate.time, model.record.training_fps) == (
        None,
        "presentation",
        8.0,
    )
    recorded = json.loads(run.result.read_text())
    assert model.record.scores.average_mAP == recorded["average_mAP"]
    assert model.record.scores.by_tiou == recorded["mAP"]
    record = model.record
    assert (record.chosen, record.checkpoint, record.epoch, model.step) == ("best", "step-00000003", 1, 3)
    assert (record.adatad_version, record.dtype, model.weights) == (adatad.__version__, "float32", "moving averages")
    assert record.licence == "no pretrained weights"
    assert model.size_bytes == model_path.stat().st_size
    assert record.fingerprint == fingerprint_of(read_safetensors(model_path)[0])


def test_without_thresholds_the_file_says_why(model_path):
    model = read_model_file(model_path)
    assert model.record.thresholds is None
    assert model.record.thresholds_from
    assert adatad.load_detector(model_path).thresholds is None


def test_the_same_model_gives_the_same_bytes(trained, model_path, tmp_path):
    _, spec, run = trained
    export_model(spec, run.checkpoints / "best", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model_path.read_bytes()


def test_a_model_file_detects_as_its_checkpoint_and_needs_nothing_else(trained, model_path, tmp_path, monkeypatch):
    _, _, run = trained
    shutil.copy(model_path, tmp_path)
    monkeypatch.chdir(tmp_path)
    from_checkpoint = adatad.load_detector(run.path)
    # Whatever it is called.
    from_file = adatad.load_detector((tmp_path / model_path.name).rename("renamed.bin"))
    assert from_file.classes == from_checkpoint.classes
    frames = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    expected = from_checkpoint.detect(frames, 8.0)
    assert from_file.detect(frames, 8.0) == expected
    assert expected


def test_the_run_s_own_detections_give_thresholds(trained, run_command, tmp_path):
    _, spec, run = trained
    folder = with_detections(run, tmp_path / "run", spec, annotated(spec))
    done = run_command("export", folder, "--output", tmp_path / "m.safetensors")
    assert (done.returncode, "thresholds" in done.stderr) == (0, False), done.stderr
    model = read_model_file(tmp_path / "m.safetensors")
    stored = model.record.thresholds
    assert (stored.tiou, stored.overall.f1, model.record.scores.average_mAP) == (0.5, 1.0, 1.0)
    assert model.record.thresholds_from == "detections.json of the run, step 3"
    seen = {item["label"] for items in annotated(spec).values() for item in items}
    assert set(stored.from_overall) == set(model.facts.classes) - seen
    by_class = {name: one.threshold for name, one in stored.by_class.items()}
    assert by_class.keys() == set(model.facts.classes)
    assert all(by_class[name] == stored.overall.threshold for name in stored.from_overall)
    # In Python, too, a call without a threshold takes them, of the file and of the run.
    for path in (tmp_path / "m.safetensors", folder):
        assert adatad.Detector.load(path).thresholds == by_class
    assert adatad.Detector.load(folder, averages=False).thresholds is None


def test_the_best_checkpoint_keeps_its_detections_when_later_epochs_have_others(trained, run_command, tmp_path):
    _, spec, run = trained
    assert run.best_detections.read_bytes() == run.detections.read_bytes()
    folder = with_detections(run, tmp_path / "run", spec, annotated(spec))
    (folder / "detections.json").rename(folder / "best_detections.json")
    (folder / "detections.json").write_text('{"results": {}}')
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**line, "step": 6, "average_mAP": 0.0}) + "\n")
    done = run_command("export", folder, "--output", tmp_path / "m.safetensors")
    assert (done.returncode, "thresholds" in done.stderr) == (0, False), done.stderr
    record = read_model_file(tmp_path / "m.safetensors").record
    assert record.thresholds_from == "best_detections.json of the run, step 3"
    assert (record.scores.average_mAP, record.thresholds.overall.f1) == (1.0, 1.0)


@pytest.mark.parametrize(
    "change", ["another epoch", "other detections", "no metrics", "odd metrics", "no annotations", "damaged"]
)
def test_detections_that_are_not_shown_to_be_the_checkpoint_s_are_not_used(trained, run_command, tmp_path, change):
    _, spec, run = trained
    folder = with_detections(run, tmp_path / "run", spec, annotated(spec))
    expected = "detections.json"
    if change == "another epoch":
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**line, "step": 6}) + "\n")
        (folder / "best_detections.json").write_text(json.dumps({"results": {video: [] for video in annotated(spec)}}))
        expected = "best_detections.json of the run doesn't score what it wrote down for this checkpoint"
    elif change == "other detections":
        (folder / "detections.json").write_text(json.dumps({"results": {video: [] for video in annotated(spec)}}))
        expected = "detections.json of the run doesn't score what it wrote down for this checkpoint"
    elif change == "no metrics":
        (folder / "metrics.jsonl").unlink()
        expected = "no detections of these weights are known"
    elif change == "odd metrics":
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").mkdir()
        expected = "metrics.jsonl: is no regular file"
    elif change == "no annotations":
        other = spec.data.model_copy(update={"annotations": str(tmp_path / "gone.json")})
        spec = spec.model_copy(update={"data": other})
        expected = "gone.json: can't be read"
    else:
        (folder / "detections.json").write_text('{"results"')
    measured = export_model(spec, folder / "checkpoints" / "best", tmp_path / "m.safetensors").measured
    assert measured.thresholds is None
    assert expected in measured.thresholds_from
    assert expected in read_model_file(tmp_path / "m.safetensors").record.thresholds_from
    if change == "another epoch":
        done = run_command("export", folder, "--output", tmp_path / "m.safetensors")
        assert f"adatad test --checkpoint {folder} --detections FILE" in done.stderr
        (tmp_path / "a b").symlink_to(folder)
        done = run_command("export", tmp_path / "a b", "--output", tmp_path / "m.safetensors", "--last")
        assert f"adatad test --checkpoint '{tmp_path}/a b' --last --detections FILE" in done.stderr


def test_named_detections_give_thresholds_and_others_are_refused(trained, run_command, tmp_path):
    _, spec, run = trained
    (tmp_path / "found.json").write_text(json.dumps({"results": annotated(spec)}))
    (tmp_path / "other.json").write_text(json.dumps({"results": {"elsewhere": []}}))
    (tmp_path / "empty.json").write_text("")
    output = tmp_path / "m.safetensors"
    done = run_command("export", run.path, "--output", output, "--detections", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    # They score more than the run wrote down: whoever confuses two models should hear of it.
    assert "are these its detections?" in done.stderr
    model = read_model_file(output)
    assert (model.record.thresholds.overall.f1, model.record.thresholds_from) == (1.0, "detections found.json")
    (tmp_path / "wrong.json").write_text(json.dumps({"results": {video: [] for video in annotated(spec)}}))
    done = run_command("export", run.path, "--output", output, "--detections", tmp_path / "wrong.json")
    assert (done.returncode, "no detection is right" in done.stderr, "adatad test" in done.stderr) == (0, True, False)
    before = output.read_bytes()
    for name, message in (
        ("other.json", "has detections of none of the validation videos"),
        ("empty.json", "is not readable as JSON: it is empty"),
        ("gone.json", "can't be read"),
    ):
        done = run_command("export", run.path, "--output", output, "--detections", tmp_path / name)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert output.read_bytes() == before


def test_averages_are_what_a_run_has_scored_and_not_the_last_parameters(trained, tmp_path):
    _, spec, run = trained
    folder = with_detections(run, tmp_path / "run", spec, annotated(spec))
    export_model(spec, folder / "checkpoints" / "best", tmp_path / "m.safetensors", averages=False)
    model = read_model_file(tmp_path / "m.safetensors")
    assert (model.record.scores, model.record.thresholds, model.weights) == (None, None, "parameters of the last step")


def test_which_checkpoint_of_its_run_it_is_stands_in_the_file(trained, tmp_path):
    _, spec, run = trained
    for folder, chosen in ((run.checkpoints / "best", "best"), (all_checkpoints(run.checkpoints)[0], "named")):
        export_model(spec, folder, tmp_path / "m.safetensors")
        assert read_model_file(tmp_path / "m.safetensors").record.chosen == chosen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits_detect_nearly_the_same(trained, model_path, run_command, tmp_path, dtype):
    _, _, run = trained
    file = tmp_path / "half.safetensors"
    done = run_command("export", run.path, "--output", file, "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    assert f"tensors are {dtype}" in done.stderr
    assert file.stat().st_size < 0.8 * model_path.stat().st_size
    assert read_model_file(file).record.dtype == dtype
    whole, half = read_safetensors(model_path)[0], read_safetensors(file)[0]
    assert all(tensor.dtype == torch.float32 for tensor in half.values() if tensor.dim() < 2)
    assert {str(tensor.dtype) for name, tensor in half.items() if name.endswith("qkv.weight")} == {f"torch.{dtype}"}
    for name, tensor in half.items():
        torch.testing.assert_close(tensor.float(), whole[name], rtol=0.01, atol=1e-4)
    module = adatad.load_detector(file).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_numbers_that_float16_cannot_hold_are_refused():
    with pytest.raises(adatad.UserError, match=r"--dtype float16: big has numbers above 65504; take bfloat16"):
        in_16_bits({"big": torch.full((2, 2), 1e6), "bias": torch.full((2,), 1e6)}, "float16")


def test_matrices_are_rounded_and_learned_positions_are_not():
    names = ["backbone.patch_embed.weight", "backbone.patch_embed.positions", "backbone.patch_embed.class_token"]
    rounded, _ = in_16_bits({name: torch.ones(1, 4, 8) for name in names}, "bfloat16")
    assert [rounded[name].dtype for name in names] == [torch.bfloat16, torch.float32, torch.float32]


def test_a_checkpoint_of_opentad_becomes_a_model_file(trained, run_command, tmp_path):
    path, spec, run = trained
    pth = tmp_path / "epoch_0.pth"
    export_opentad(spec, read_checkpoint(run.checkpoints / "best"), pth)
    content = torch.load(pth, weights_only=True)
    # Without the meta data that is written here, as OpenTAD's own files are.
    torch.save({name: content[name] for name in ("epoch", "state_dict", "state_dict_ema")}, tmp_path / "theirs.pth")
    own_path = tmp_path / "own.yaml"
    own_path.write_text(adatad.spec.to_yaml(spec))
    for source, options in ((pth, []), (tmp_path / "theirs.pth", ["--spec", own_path])):
        done = run_command("export", source, "--output", tmp_path / "m.safetensors", *options)
        assert done.returncode == 0, done.stderr
        model = read_model_file(tmp_path / "m.safetensors")
        assert (model.record.chosen, model.record.checkpoint, model.step) == ("opentad", source.name, None)
        assert ("in the order of" in done.stderr) == bool(options)
        averages = read_checkpoint(run.checkpoints / "best").ema
        tensors = read_safetensors(tmp_path / "m.safetensors")[0]
        assert all(torch.equal(tensors[name], tensor) for name, tensor in averages.items())
    done = run_command("export", tmp_path / "theirs.pth", "--output", tmp_path / "n.safetensors")
    assert (done.returncode, "doesn't hold the spec that it was trained by; give SPEC" in done.stderr) == (2, True)
    done = run_command("export", tmp_path / "theirs.pth", "--output", tmp_path / "n.safetensors", "--spec", path)
    assert (done.returncode, "isn't an OpenTAD checkpoint of this spec's model" in done.stderr) == (2, True)
    done = run_command("export", pth, "--output", tmp_path / "n.safetensors", "--spec", own_path)
    assert (done.returncode, "leave --spec out" in done.stderr) == (2, True)
    assert not (tmp_path / "n.safetensors").exists()


def test_a_position_table_of_its_own_goes_with_the_model(trained, run_command, tmp_path):
    """A published file may bring one; the model that it was trained with can't do with another."""
    path, spec, run = trained
    checkpoint = read_checkpoint(run.checkpoints / "best")
    backbone = whole_model(spec, checkpoint, checkpoint.ema).backbone
    tensors = {name: p.detach().clone() for name, p in backbone.named_parameters() if "adapter" not in name}
    table = backbone.position_table + 0.25
    save_file({**tensors, "pos_embed": table}, tmp_path / "pretrained.safetensors")
    other = load(path, [*SETTINGS, f"model.backbone.weights={tmp_path}/pretrained.safetensors"])
    export_model(other, run.checkpoints / "best", tmp_path / "m.safetensors")
    (tmp_path / "pretrained.safetensors").unlink()
    assert torch.equal(adatad.load_detector(tmp_path / "m.safetensors").module.backbone.position_table, table)
    assert read_model_file(tmp_path / "m.safetensors").record.licence == "unknown"
    done = run_command("export", run.path, "--output", tmp_path / "n.safetensors", "--backbone", tmp_path / "gone.pth")
    assert (done.returncode, "--backbone FILE says where they are now" in done.stderr) == (2, True)


def rewritten(path, target, tensors=None, fresh_fingerprint=True, **changes):
    """Write a model file again with other tensors, or entries of its header; None takes one out."""
    own, header = read_safetensors(path)
    tensors = own if tensors is None else tensors(own)
    record = json.loads(header[RECORD])
    if fresh_fingerprint:
        record["fingerprint"] = fingerprint_of(tensors)
    header = {**header, RECORD: json.dumps(record), **changes}
    header = {name: text for name, text in header.items() if text is not None}
    write_safetensors(target, tensors, {OWN_META: json.dumps(header)})


def in_record(path, **changes):
    record = {**json.loads(read_header(path)[1][RECORD]), **changes}
    return json.dumps({name: value for name, value in record.items() if value != "gone"})


def a_pickle(path, target):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch '{target.parent}/ran'",)

    target.write_bytes(pickle.dumps(Evil()))


def a_torch_file(path, target):
    torch.save({"a": torch.zeros(2)}, target)


def flipped(path, target):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    target.write_bytes(content)


def drop_first(tensors):
    return dict(list(tensors.items())[1:])


def longer_bias(tensors):
    return {name: torch.zeros(7) if name.endswith("fc1.bias") else tensor for name, tensor in tensors.items()}


def with_nan(tensors):
    name = next(name for name in tensors if name.endswith("fc1.bias"))
    return {**tensors, name: torch.full_like(tensors[name], math.nan)}


REFUSED = {
    "empty": (lambda p, t: t.write_bytes(b""), "it is empty"),
    "a folder": (lambda p, t: t.mkdir(), "is no checkpoint|is no regular file"),
    "cut": (lambda p, t: t.write_bytes(p.read_bytes()[:-1000]), "not a readable safetensors file"),
    "cut in its header": (lambda p, t: t.write_bytes(p.read_bytes()[:100]), "not a readable safetensors file"),
    "noise": (lambda p, t: t.write_bytes(bytes(range(256)) * 4), "not a readable safetensors file"),
    "a pointer": (
        lambda p, t: t.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"), "Git LFS"),
    "a web page": (lambda p, t: t.write_text("<!DOCTYPE html><html></html>"), "HTML page"),
    "a pickle": (a_pickle, "not a readable safetensors file"),
    "torch's": (a_torch_file, "not a readable safetensors file"),
    "foreign": (lambda p, t: save_file({"a": torch.zeros(2)}, t, {"format": "pt"}), "is no model file of adatad"),
    "newer": (lambda p, t: rewritten(p, t, format_version="9", sharpness="1"), "format version 9, which has sharpness"),
    "no record": (lambda p, t: rewritten(p, t, model=None), "its header has no model: an older file"),
    "no spec": (lambda p, t: rewritten(p, t, spec=None), "its header has no spec"),
    "no window": (lambda p, t: rewritten(p, t, window=None), "window: is missing"),
    "no fingerprint": (lambda p, t: rewritten(p, t, model=in_record(p, fingerprint="gone")), "fingerprint: is missing"),
    "NaN in its record": (
        lambda p, t: rewritten(p, t, model=in_record(p, training_fps=math.nan)), "training_fps: should be"),
    "a record of text": (lambda p, t: rewritten(p, t, model="x"), "model: is not readable as JSON"),
    "no tensor": (lambda p, t: rewritten(p, t, drop_first), "aren't those of its spec's model: missing"),
    "another shape": (lambda p, t: rewritten(p, t, longer_bias), r"fc1.bias is \(7,\), expected"),
    "a tensor too many": (lambda p, t: rewritten(p, t, lambda x: {**x, "a": torch.zeros(1)}), "unknown a"),
    "another spec": (lambda p, t: rewritten(p, t, spec="base: /etc/hostname\n"), "has base"),
    "a step of text": (lambda p, t: rewritten(p, t, step="many"), "step: expected a whole number"),
}  # fmt: skip
ONLY_WHEN_LOADED = {
    "a bit flipped": (flipped, "its numbers aren't those that were written"),
    "NaN": (lambda p, t: rewritten(p, t, with_nan), "holds NaN"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_model_file_is_refused_by_name(model_path, run_command, tmp_path, kind):
    make, message = REFUSED[kind]
    target = tmp_path / "wröng file.safetensors"
    make(model_path, target)
    with pytest.raises(adatad.UserError, match=message) as refused:
        read_model_file(target)
    assert str(target) in str(refused.value)
    done = run_command("model", target)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(target) in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ONLY_WHEN_LOADED)
def test_damaged_numbers_are_refused_when_the_model_is_loaded(model_path, tmp_path, kind):
    make, message = ONLY_WHEN_LOADED[kind]
    make(model_path, tmp_path / "wrong.safetensors")
    read_model_file(tmp_path / "wrong.safetensors")
    with pytest.raises(adatad.UserError, match=rf"wrong\.safetensors: {message}|wrong\.safetensors: .*{message}"):
        adatad.load_detector(tmp_path / "wrong.safetensors")


def test_trained_tensors_alone_are_named_as_such(trained, run_command, tmp_path):
    _, _, run = trained
    file = tmp_path / "t.safetensors"
    assert run_command("export", run.path, "--output", file, "--trained-only").returncode == 0
    with pytest.raises(adatad.UserError, match="holds the trained tensors alone"):
        read_model_file(file)
    for options in (["--dtype", "float16"], ["--detections", "x.json"], ["--backbone", "x.pth"]):
        done = run_command("export", run.path, "--output", file, "--trained-only", *options)
        assert (done.returncode, options[0] in done.stderr) == (2, True)


def test_an_output_in_the_place_of_an_input_is_refused(trained, run_command, tmp_path):
    _, _, run = trained
    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes(b"weights")
    for output, options in (
        (weights, ["--backbone", weights]),
        (run.checkpoints / "best" / "m.safetensors", []),
        (run.path / "detections.json.safetensors", ["--detections", run.path / "detections.json.safetensors"]),
    ):
        before = sorted(run.path.rglob("*"))
        done = run_command("export", run.path, "--output", output, *options)
        assert (done.returncode, str(output) in done.stderr) == (2, True), done.stderr
        assert sorted(run.path.rglob("*")) == before
    assert weights.read_bytes() == b"weights"


def test_merged_is_taken_with_a_note(trained, run_command, tmp_path):
    _, _, run = trained
    done = run_command("export", run.path, "--output", tmp_path / "m.safetensors", "--merged")
    assert (done.returncode, "--merged: is the default now" in done.stderr) == (0, True)
