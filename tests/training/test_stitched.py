"""configs/stitched/ on the real footage that it is for: the specs load, and train and score a few of its videos."""

import json
from pathlib import Path

import pytest

from adatad.spec import load
from adatad.training.reproduce import reproduce

ROOT = Path(__file__).parents[2]
STITCHED = ROOT / "configs" / "stitched"


@pytest.fixture
def footage(shared_folder, monkeypatch) -> Path:
    """The data set's folder; its specs are loaded where a user starts them."""
    monkeypatch.chdir(ROOT)
    return shared_folder / "data" / "stitched"


@pytest.fixture
def few_videos(footage, tmp_path) -> Path:
    """An annotation file of two training videos, and of a validation video that has instances of both groups."""
    database = json.loads((footage / "annotations.json").read_text())["database"]
    training = [name for name, entry in database.items() if entry["subset"] == "training"][:2]
    both = next(
        name for name, entry in database.items()
        if entry["subset"] == "validation" and len({item["unseen_source"] for item in entry["annotations"]}) == 2
    )  # fmt: skip
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"database": {name: database[name] for name in (*training, both)}}))
    return path


@pytest.mark.parametrize("path", sorted(STITCHED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_spec_finds_all_files_by_the_root_alone(footage, path):
    spec = load(path, [f"data.root={footage}"])
    assert len(spec.data.classes) > 8
    assert spec.evaluate.groups_by == "unseen_source"


def test_the_runs_that_are_compared_differ_in_the_backbone_s_training_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    specs = {path.stem: load(path, check_files=False) for path in STITCHED.glob("*.yaml")}
    for name, spec in specs.items():
        same = spec.model_copy(update={"name": "", "model": specs["tia"].model, "optimizer": specs["tia"].optimizer})
        assert same == specs["tia"].model_copy(update={"name": ""}), name
        assert spec.model.backbone.model_copy(update={"mode": "adapter"}) == specs["tia"].model.backbone, name
        assert spec.model.detector == specs["tia"].model.detector, name
        assert (spec.optimizer.lr, spec.optimizer.betas) == (specs["tia"].optimizer.lr, specs["tia"].optimizer.betas)


def test_two_steps_on_real_videos(footage, few_videos, tmp_path):
    settings = [
        f"data.root={footage}", f"data.annotations={few_videos}", f"run.root={tmp_path}", "data.workers=0",
        "schedule.epochs=2", "schedule.warmup_epochs=0", "train.evaluate_untrained=false",
    ]  # fmt: skip
    result, reproduction = reproduce(load(STITCHED / "tia.yaml", [*settings, "published={average_mAP: 60.0}"]))
    assert reproduction.verdict == "below", "a stand-in row, and the verdict on it"
    assert (tmp_path / "stitched/tia/id0/reproduction.md").read_text().startswith("# stitched/tia\n\nstitched/tia: not")
    assert list(result["groups"]) == ["unseen_source=false", "unseen_source=true"]
    lines = [json.loads(line) for line in (tmp_path / "stitched/tia/id0/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["applied"] and line["positives"] > 0 and line["gradient_norm"] > 0 for line in steps] == [True, True]
