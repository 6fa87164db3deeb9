"""`adatad doctor` on the tiny spec: what is in order, and each thing that is broken, with exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_spec import saved_state

from adatad.doctor import examine, experiment
from adatad.doctor.findings import OK, PROBLEM, WARNING
from adatad.files import FileError
from adatad.spec import load, to_yaml

ROOT = Path(__file__).parents[2]
GOOD_TORCH = {"version": "2.13.0", "cuda_build": None, "gpus": [], "errors": {}}


class Answered:
    """A probe that has answered."""

    def __init__(self, name: str):
        self.name = name

    def kill(self) -> None: ...


@pytest.fixture
def quick(monkeypatch):
    """Probes that answer at once, as on a machine without faults."""
    answers = {"torch": GOOD_TORCH, "libraries": {"errors": {}}, "decoders": {"errors": {}, "worked": ["pyav"]}}
    monkeypatch.setattr(examine.probe, "start", Answered)
    monkeypatch.setattr(examine.probe, "finish", lambda process, limit: answers[process.name])
    return answers


def texts(findings, level):
    return [f"{finding.topic}: {finding.text}" for finding in findings if finding.level == level]


def test_the_tiny_spec_is_in_order(quick, run_command, tiny_spec):
    done = run_command("doctor", tiny_spec)
    assert done.returncode == 0, done.stdout
    assert "0 problems" in done.stdout
    assert "6 training and 2 validation videos" in done.stdout
    assert "random, as model.backbone.weights asks for" in done.stdout


def test_all_that_is_wrong_is_said_at_once_as_json(quick, run_command, tiny_spec, tmp_path):
    pointer = tmp_path / "weights.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100000000\n")
    quick["torch"] = {"failed": "crashed (killed by signal 11) while importing torch"}
    arguments = ["--set", f"model.backbone.weights={pointer}", "train.global_batch=100", "--json"]
    done = run_command("doctor", tiny_spec, *arguments)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert any("while importing torch" in finding["text"] for finding in found)
    assert any("torch can't be imported" in finding["text"] for finding in found)
    quick["torch"] = GOOD_TORCH
    done = run_command("doctor", tiny_spec, *arguments)
    problems = {finding["topic"]: finding for finding in json.loads(done.stdout) if finding["level"] == PROBLEM}
    assert "pointer of Git LFS" in problems["weights"]["text"]
    assert problems["data"]["fix"] == "--set train.global_batch=6"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nope.yaml"], "nope.yaml: no such file"), (["."], "is no regular file"), (["--id", "3"], "name one")],
)
def test_a_spec_that_is_no_file_is_bad_input(run_command, arguments, says):
    done = run_command("doctor", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_mistake_of_a_spec_is_a_problem(quick, run_command, tiny_spec):
    done = run_command("doctor", tiny_spec, "--set", "train.global_batch=0", "data.workrs=2")
    assert done.returncode == 1
    assert "train.global_batch" in done.stdout
    assert "data.workrs" in done.stdout
    assert "2 problems" in done.stdout


@pytest.fixture
def own_videos(tiny_spec, tiny_data, tmp_path):
    """The tiny spec on a copy of its data, to be damaged."""
    folder = shutil.copytree(tiny_data, tmp_path / "copy")
    return load(tiny_spec, [f"data.annotations={folder}/annotations.json", f"data.videos={folder}/videos"])


def test_videos_that_are_missing_or_broken_are_counted_and_named(own_videos, tmp_path):
    videos = sorted((tmp_path / "copy" / "videos").iterdir())
    videos[0].unlink()
    videos[1].write_bytes(b"no video")
    found = list(experiment.check_annotations(own_videos))
    problems = "\n".join(texts(found, PROBLEM))
    assert f"1 of 6 training videos aren't in {own_videos.data.videos}: {videos[0].name}" in problems
    assert f"{videos[1]}: can't be opened as a video" in problems
    assert all(finding.fix for finding in found if finding.level == PROBLEM)


def test_an_unreadable_annotation_file_is_a_problem(own_videos, tmp_path):
    (tmp_path / "copy" / "annotations.json").write_text("{")
    (finding,) = experiment.check_annotations(own_videos)
    assert finding.level == PROBLEM
    assert "annotations.json" in finding.text


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (None, "names no pretrained weights"),
        ("gone.pth", "there is no file gone.pth"),
        (b"<!doctype html><title>Sign in</title>", "an HTML page"),
        (b"", "not a readable"),
        (b"PK\x03\x04 half a file", "not a readable"),
    ],
)
def test_weights_that_are_none(tiny_spec, tmp_path, weights, says):
    if isinstance(weights, bytes):
        (tmp_path / "w.pth").write_bytes(weights)
        weights = str(tmp_path / "w.pth")
    spec = load(tiny_spec, [f"model.backbone.weights={weights or 'null'}"], check_files=False)
    (finding,) = experiment.check_weights(spec)
    assert finding.level == PROBLEM
    assert says in finding.text
    assert finding.fix


def test_weights_of_another_size_are_told(tiny_spec):
    weights = ROOT / "configs/demo/tiny_backbone.safetensors"
    spec = load(tiny_spec, [f"model.backbone.weights={weights}"], check_files=False)
    (finding,) = experiment.check_weights(spec)
    assert finding.level == PROBLEM
    assert "is of another size: width" in finding.text


def test_a_published_file_that_is_another_is_told_by_its_digest(tiny_spec, tmp_path):
    file = tmp_path / "vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-860a3cd3.pth"
    file.write_bytes(b"something else")
    spec = load(tiny_spec, [f"model.backbone.weights={file}"])
    (finding,) = experiment.check_digest(spec)
    assert finding.level == PROBLEM
    assert "the published file's with 860a3cd3" in finding.text
    assert list(experiment.check_digest(load(tiny_spec))) == []


def test_a_file_in_the_place_of_a_run_is_a_problem(tiny_spec, tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "id0").touch()
    (finding,) = experiment.check_run(load(tiny_spec))
    assert finding.level == PROBLEM


def test_the_newest_whole_checkpoint_of_a_run_is_found(tiny_spec):
    import torch

    from adatad.training.checkpoint import Checkpoint, checkpoint_path, write_checkpoint
    from adatad.training.run_directory import open_run

    spec = load(tiny_spec)
    assert texts(experiment.check_run(spec), OK)[0].endswith("will be made")
    run = open_run(spec, resume=False, overwrite=False)
    for step in (1, 2):
        tensors = {"w": torch.ones(3)}
        moments = {"w": {"step": torch.tensor(1.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}
        write_checkpoint(
            checkpoint_path(run.checkpoints, step),
            Checkpoint(tensors, tensors, moments, saved_state(step), to_yaml(spec)),
        )
    newest = checkpoint_path(run.checkpoints, 2)
    found = list(experiment.check_run(spec))
    assert any(f"newest whole checkpoint: {newest}" in text for text in texts(found, OK))
    # This very process is the run's owner, and alive.
    assert any("is in use by process" in text for text in texts(found, WARNING))
    for file in newest.glob("*.safetensors"):
        file.write_bytes(b"damaged")
    found = list(experiment.check_run(spec))
    assert any("a broken checkpoint" in text for text in texts(found, WARNING))
    assert any(
        "newest whole checkpoint" in text and str(checkpoint_path(run.checkpoints, 1)) in text
        for text in texts(found, OK)
    )


def test_shared_memory_and_disk_are_weighed_against_the_spec(tiny_spec, monkeypatch):
    spec = load(tiny_spec, ["data.workers=2", "data.size_pixels=224"])
    assert experiment.window_bytes(spec) == 3 * 32 * 224**2
    monkeypatch.setattr(experiment, "shared_memory_free", lambda: 2**20)
    assert any("/dev/shm has 1 MiB free" in text for text in texts(experiment.check_places(spec), PROBLEM))
    assert 0 < experiment.trained_parameters(spec) < 10**6


def test_a_spec_that_does_not_fit_the_gpu(tiny_spec, monkeypatch):
    from adatad.training import plan

    asked = []

    def check_fits(spec, gpu_memory_gib, ranks, num_classes):
        asked.append((gpu_memory_gib, ranks))
        if gpu_memory_gib < 1:
            raise plan.PlanError("nothing fits: 2 GiB are missing\n  it would fit with tile: --set memory.policy=tile")

    monkeypatch.setattr(plan, "check_fits", check_fits)
    spec = load(tiny_spec)
    assert "memory.policy=tile" in texts(experiment.check_fit(spec, [{"free": 2**20}, {"free": 2**36}]), PROBLEM)[0]
    assert texts(experiment.check_fit(spec, [{"free": 2**36}] * 4), OK)
    assert asked == [(2**-10, 2), (64, 2)]
    assert list(experiment.check_fit(spec, [])) == []


def test_bf16_on_gpus_that_only_emulate_it_is_a_problem(tiny_spec):
    old, new = {"name": "Tesla V100", "capability": [7, 0]}, {"name": "A100", "capability": [8, 0]}
    asked, other = load(tiny_spec, ["train.precision=bf16"]), load(tiny_spec, ["train.precision=fp16"])
    assert "Tesla V100 has no bf16" in texts(experiment.check_precision(asked, [new, old]), PROBLEM)[0]
    assert not [*experiment.check_precision(asked, [new]), *experiment.check_precision(other, [old])]


@pytest.mark.slow
def test_the_probes_of_a_real_machine(run_command):
    done = run_command("doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert not [finding for finding in found if "could not be checked" in finding["text"]]
    assert any("is decoded rightly by pyav" in finding["text"] for finding in found)


def test_a_folder_is_no_spec(tmp_path):
    from adatad.doctor.examine import doctor

    with pytest.raises(FileError, match="is no regular file"):
        doctor(str(tmp_path), [], [])
