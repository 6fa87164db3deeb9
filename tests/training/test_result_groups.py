"""evaluate.groups_by: the groups' figures in all that a run leaves."""

import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adatad.errors import UserError
from adatad.report.scores import print_summary
from adatad.spec import load
from adatad.training.checkpoint import BEST
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint


@pytest.fixture
def divided(tiny_data, tmp_path):
    """The tiny set's annotations, every second instance of a video "odd"; the --set that names them."""
    content = json.loads((tiny_data / "annotations.json").read_text())
    for video in content["database"].values():
        for number, item in enumerate(video["annotations"]):
            item["odd"] = number % 2 == 1
    path = tmp_path / "divided.json"
    path.write_text(json.dumps(content))
    return f"data.annotations={path}"


@pytest.mark.pictures
def test_groups_stand_in_everything_that_a_run_leaves(tiny_spec, divided, capsys):
    settings = [divided, "evaluate.groups_by=odd", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    spec = load(tiny_spec, settings)
    result = train(spec)
    run = run_directory(spec)
    groups = result["groups"]
    assert list(groups) == ["odd=false", "odd=true"]
    assert all(group["instances"] > 0 and group["mAP"].keys() == result["mAP"].keys() for group in groups.values())
    assert json.loads(run.result.read_text())["groups"] == groups
    assert json.loads(run.metrics.read_text().splitlines()[-1])["groups"] == groups
    assert "odd=true" in (run.path / "log.txt").read_text()
    page = re.search(r'id="data"[^>]*>(.*?)</script>', (run.path / "report.html").read_text(), re.DOTALL)
    shown = json.loads(page[1])["runs"][0]["result"]["groups"]
    assert shown["odd=true"]["instances"] == groups["odd=true"]["instances"]
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert board.Scalars("evaluation/groups/odd=true/mAP/0.5")[0].value == pytest.approx(
        groups["odd=true"]["mAP"]["0.5"]
    )
    print_summary(spec, result, run.path)
    assert f"odd=false ({groups['odd=false']['instances']} instances)" in capsys.readouterr().out
    assert score_checkpoint(spec, run.checkpoints / BEST)["groups"] == groups


def test_a_key_that_annotations_lack_is_named_before_a_run_is_made(tiny_spec):
    spec = load(tiny_spec, ["evaluate.groups_by=nigth"])
    with pytest.raises(UserError, match="has no 'nigth'"):
        train(spec)
    assert not run_directory(spec).path.exists()
