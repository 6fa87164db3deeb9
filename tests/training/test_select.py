"""`train.select`: which epoch's checkpoint and detections stand for a run, also after an interruption."""

import json
import shutil

import pytest

import adatad.training.loop as loop
from adatad.spec import SpecError, load
from adatad.training.export import find_checkpoint
from adatad.training.model_export import export_model
from adatad.training.model_scores import in_training
from adatad.training.run import train
from adatad.training.run_directory import run_directory

SCORES = {1: 0.2, 2: 0.5, 3: 0.3}
"""Average mAP by epoch: the best isn't the last."""


@pytest.fixture
def spec_file(tiny_spec, monkeypatch):
    """A spec whose evaluations have the averages of `SCORES`, their other figures being their own."""
    real = loop.score_summary
    monkeypatch.setattr("adatad.training.run.try_write_report", lambda *_: None)
    monkeypatch.setattr("adatad.training.run._draw_timelines", lambda *_: None)
    monkeypatch.setattr(loop.Training, "evaluate", scripted(loop.Training.evaluate, real))
    return tiny_spec


def scripted(evaluate, real):
    def with_score(self):
        loop.score_summary = lambda *args: {**real(*args), "average_mAP": SCORES[self.progress.epoch]}
        try:
            return evaluate(self)
        finally:
            loop.score_summary = real

    return with_score


def test_last_and_best_are_in_the_result_and_one_of_them_is_taken(spec_file, run_command, tmp_path):
    settings = ["train.evaluate_every_epochs=1", "train.keep_checkpoints=1"]
    train(load(spec_file, [*settings, "schedule.end_epoch=2"]))
    # Interrupted after its best epoch: what is known of that one comes from the checkpoint.
    result = train(load(spec_file, settings), resume="auto")
    figures = [result[key] for key in ("epochs", "average_mAP", "best_epoch", "best_average_mAP")]
    assert figures == [3, 0.3, 2, 0.5]
    run = run_directory(load(spec_file)).path
    assert json.loads((run / "result.json").read_text()) == result
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert result["best_mAP"] == next(line["mAP"] for line in lines if line.get("average_mAP") == 0.5)
    best, _ = find_checkpoint(run)
    assert best.resolve().name == "step-00000006"
    assert in_training(best).describe().endswith("this checkpoint: best epoch")

    newest, lines = find_checkpoint(run, "last")
    assert newest.name == "step-00000009"
    assert lines == [f"{run}: its newest whole checkpoint, step-00000009, is taken (train.select: last)"]
    done = run_command("test", "--checkpoint", run, "--set", "train.select=last")
    assert "average mAP: last epoch (3) 30.00 %, best epoch (2) 50.00 %; this checkpoint: last epoch" in done.stdout
    content = json.loads(run_command("test", "--checkpoint", run, "--json").stdout)["run"]
    assert (content["checkpoint"], content["best"]["epoch"], content["last"]["average_mAP"]) == (2, 2, 0.3)

    # The run's own spec says it, for all who take "the run".
    copy = tmp_path / "a 'copy'"
    shutil.copytree(run, copy, symlinks=True)
    text = (copy / "spec.yaml").read_text()
    assert "select: best" in text
    (copy / "spec.yaml").write_text(text.replace("select: best", "select: last"))
    assert find_checkpoint(copy)[0].name == find_checkpoint(copy / "checkpoints")[0].name == "step-00000009"
    spec = load(copy / "spec.yaml", check_files=False)
    measured = export_model(spec, find_checkpoint(copy)[0], tmp_path / "m.safetensors").measured
    assert measured.thresholds_from.startswith(("detections.json of the run, step 9", "no detection is right"))
    (copy / "spec.yaml").write_text(text.replace("select: best", "select: luck"))
    with pytest.raises(Exception, match=r"train\.select: expected best or last, got luck"):
        find_checkpoint(copy)


@pytest.mark.parametrize("value", ["luck", "1", "null", "[best]"])
def test_best_and_last_alone_are_taken(spec_file, value):
    with pytest.raises(SpecError, match=r"train\.select"):
        load(spec_file, [f"train.select={value}"])
