"""`train.stop_after`: training ends after evaluations without a better one, at the same epoch also if it resumes."""

import json
from pathlib import Path

import pytest
import torch
from interrupted import train_until_interrupted
from ranks import run_ranks

import adatad.training.loop as loop
from adatad.errors import UserError
from adatad.spec import SpecError, load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.local_sweep import SweepRun
from adatad.training.run import train
from adatad.training.run_directory import run_directory

SETTINGS = ["schedule.epochs=8", "train.stop_after=2", "train.checkpoint_every_steps=2", "train.keep_checkpoints=50"]
SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9]
"""By epoch: no better one than 0.3 in the two after epoch 2, though the last would be."""


@pytest.fixture(autouse=True)
def scripted_scores(monkeypatch):
    """Give each epoch's evaluation the score of `SCORES`; nothing is detected."""
    monkeypatch.setattr("adatad.training.run.try_write_report", lambda *_: None)
    monkeypatch.setattr(loop.Training, "evaluate", scripted)


def scripted(self: loop.Training) -> dict:
    values = {"average_mAP": SCORES[self.progress.epoch - 1]}
    best = max(self.progress.best_mAP, values["average_mAP"])
    self.result = {**values, "best_average_mAP": best, "epochs": self.progress.epoch}
    self.directory.write_json("result.json", self.result)
    return values


def last(spec):
    return read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1])


def test_training_ends_after_evaluations_without_a_better_one(tiny_spec, tmp_path):
    spec = load(tiny_spec, SETTINGS)
    result = train(spec)
    assert (result["epochs"], result["best_average_mAP"], result["stopped_early"]) == (4, 0.3, True)
    run = run_directory(spec).path
    assert json.loads((run / "result.json").read_text()) == result
    assert (run / "checkpoints/best").resolve().name == "step-00000006"
    assert (
        "stopped after epoch 4 of 8: 2 evaluations without a better average mAP than 30.00 %"
        in (run / "log.txt").read_text()
    )
    assert SweepRun("", (), spec, tmp_path / "log").is_finished
    # Started again, it evaluates and stops again.
    before = [path.name for path in all_checkpoints(run / "checkpoints")]
    assert train(spec, resume="auto")["stopped_early"]
    assert [path.name for path in all_checkpoints(run / "checkpoints")] == before


def test_a_run_that_ends_with_its_last_epoch_has_not_stopped_early(tiny_spec):
    assert "stopped_early" not in train(load(tiny_spec, [*SETTINGS, "schedule.epochs=4"]))


# The one that is left of the short suite has all counts behind it.
@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.full), 11])
def test_an_interrupted_run_stops_at_the_same_step_with_the_same_bits(tiny_spec, tmp_path, monkeypatch, step):
    whole, cut = load(tiny_spec, SETTINGS), load(tiny_spec, [*SETTINGS, "run.id=1"])
    train(whole)
    train_until_interrupted(cut, step, monkeypatch)
    assert train(cut, resume="auto")["epochs"] == 4
    ours, expected = last(cut), last(whole)
    assert ours.state["progress"]["step"] == expected.state["progress"]["step"] == 12
    assert all(torch.equal(ours.parameters[name], tensor) for name, tensor in expected.parameters.items())


def on_ranks(path: str) -> int:
    loop.Training.evaluate = scripted
    return train(load(path, [*SETTINGS, "run.id=2"]))["epochs"]


def test_all_ranks_stop_together(tiny_spec):
    assert run_ranks(2, on_ranks, str(tiny_spec)) == [4, 4]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "soon"])
def test_numbers_of_evaluations_alone_are_taken(tiny_spec, value):
    with pytest.raises(SpecError, match=r"train\.stop_after"):
        load(tiny_spec, [f"train.stop_after={value}"])


def test_it_needs_an_instance_to_score(tiny_spec, tmp_path):
    content = json.loads(Path(load(tiny_spec).data.annotations).read_text())
    for video in content["database"].values():
        video["annotations"] = video["annotations"] if video["subset"] == "training" else []
    (tmp_path / "unlabelled.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"no instance.*train\.stop_after=null"):
        train(load(tiny_spec, [*SETTINGS, f"data.annotations={tmp_path / 'unlabelled.json'}"]))
