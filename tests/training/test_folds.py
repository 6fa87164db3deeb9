"""`adatad train --folds`: every labelled video is in one fold, classes are spread, and all detections are scored."""

import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_spec import TINY_SPEC

from adatad.errors import UserError
from adatad.spec import load
from adatad.training import local_sweep
from adatad.training.folds import PLAN, RESULT, assign_folds, plan_folds, score_folds
from adatad.training.run import train

videos = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=2, max_size=24)


def named(labels):
    return [SimpleNamespace(name=f"v{n}", labels=np.array(own)) for n, own in enumerate(labels)]


@given(videos, st.integers(2, 8), st.integers(0, 3))
def test_folds_differ_by_one_video_at_most_and_depend_on_the_seed_alone(labels, count, seed):
    count = min(count, len(labels))
    fold_of = assign_folds(named(labels), 5, count, seed)
    sizes = [list(fold_of.values()).count(fold) for fold in range(count)]
    assert fold_of.keys() == {f"v{n}" for n in range(len(labels))}
    assert max(sizes) - min(sizes) <= 1
    assert fold_of == assign_folds(named(labels), 5, count, seed)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.integers(2, 4), st.integers(0, 9))
def test_of_videos_with_one_class_each_fold_has_its_share(per_class, count, seed):
    labels = [[label] for label, number in enumerate(per_class) for _ in range(number)]
    if len(labels) < count:
        return
    fold_of = assign_folds(named(labels), 5, count, seed)
    # The rarest class, which is dealt out first, is spread as evenly as it can be.
    rarest = int(np.argmin(per_class))
    held = [0] * count
    for number, own in enumerate(labels):
        held[fold_of[f"v{number}"]] += own == [rarest]
    assert max(held) <= math.ceil(per_class[rarest] / count)


class InThisProcess:
    """A run of `adatad train` that is over when it is started."""

    def __init__(self, command, **options):
        words = command[command.index("train") + 1 :]
        started.append(words)
        end = words.index("--id")
        number = int(words[end + 1])
        overrides = [word for word in words[1:end] if word != "--set"]
        train(load(words[0], [*overrides, f"run.id={number}"]), resume="auto")
        self.returncode = 0

    def poll(self):
        return 0

    def wait(self):
        return 0

    def terminate(self):
        pass


started: list[list[str]] = []


@pytest.fixture
def quick(tiny_data, tmp_path, monkeypatch):
    """Spec in a folder with spaces and quotes; its runs are trained in this process and draw no pictures."""
    folder = tmp_path / "a 'folder' of: mine"
    folder.mkdir()
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=json.dumps(str(folder / "runs"))).replace(
        "epochs: 3", "epochs: 1").replace("warmup_epochs: 1", "warmup_epochs: 0"))  # fmt: skip
    started.clear()
    monkeypatch.setattr(local_sweep, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(local_sweep.run_sweep, "__defaults__", (*local_sweep.run_sweep.__defaults__[:1], InThisProcess))
    monkeypatch.setattr("adatad.training.run.try_write_report", lambda *_: None)
    monkeypatch.setattr("adatad.training.run._draw_timelines", lambda *_: None)
    return path


def test_folds_are_trained_scored_together_and_not_trained_again(quick, run_command):
    done = run_command("train", quick, "--folds", "2", "--set", "train.seed=3")
    assert done.returncode == 0, done.stderr
    assert len(started) == 2
    folder = quick.parent / "runs/tiny/folds-2-seed3"
    result = json.loads((folder / RESULT).read_text())
    assert [fold["videos"] for fold in result["folds"]] == [4, 4]
    scores = [fold["average_mAP"] for fold in result["folds"]]
    assert result["mean_average_mAP"] == statistics.mean(scores)
    assert result["standard_deviation"] == statistics.stdev(scores)
    assert "pooled" in done.stdout
    assert str(folder / RESULT) in done.stdout
    spread = json.loads(run_command("evaluate", "--folds", folder, "--json").stdout)
    assert spread["last"]["average_mAP"]["mean"] == pytest.approx(result["mean_average_mAP"])
    assert [run["best"]["epoch"] for run in spread["runs"]] == [1, 1]
    assert [fold["best_epoch"] for fold in result["folds"]] == [1, 1]
    # Each video is validated once, by a run that didn't train on it.
    subsets = [json.loads((folder / f"fold-{n}.json").read_text())["database"] for n in range(2)]
    for name in subsets[0]:
        assert sorted(subset[name]["subset"] for subset in subsets) == ["training", "validation"]
    truth = [json.loads((quick.parent / f"runs/tiny/id{n}/detections.json").read_text())["results"] for n in range(2)]
    assert not truth[0].keys() & truth[1].keys()
    # Typed again, it trains nothing; with one unfinished fold that one alone.
    again = run_command("train", quick, "--folds", "2", "--set", "train.seed=3")
    assert (again.returncode, len(started)) == (0, 2)
    assert json.loads((folder / RESULT).read_text()) == result
    (quick.parent / "runs/tiny/id1/result.json").unlink()
    assert run_command("train", quick, "--folds", "2", "--set", "train.seed=3").returncode == 0
    assert [words[words.index("--id") + 1] for words in started] == ["0", "1", "1"]
    assert json.loads((folder / RESULT).read_text())["pooled"] == result["pooled"]


def test_pooled_detections_are_ranked_together(quick):
    folds = plan_folds(str(quick), [], [], 2)
    for number, run in enumerate(folds.runs):
        own = json.loads((folds.folder / f"fold-{number}.json").read_text())["database"]
        own = {name: video for name, video in own.items() if video["subset"] == "validation"}
        found = {name: [{**item, "score": 0.9} for item in video["annotations"]] for name, video in own.items()}
        run.folder.mkdir(parents=True)
        (run.folder / "detections.json").write_text(json.dumps({"results": found if number else {}}))
        (run.folder / "result.json").write_text(json.dumps({"average_mAP": float(number), "epochs": 1}))
    result = score_folds(folds)
    # The first fold finds nothing, the second everything.
    assert 0.2 < result["pooled"]["average_mAP"] < 0.8
    assert (result["mean_average_mAP"], round(result["standard_deviation"], 4)) == (0.5, 0.7071)


def test_another_spec_or_other_videos_are_not_gone_on_with(quick, tmp_path):
    plan_folds(str(quick), [], [], 3)
    ids = [run.spec.run.id for run in plan_folds(str(quick), [], [], 3).runs]
    assert ids == [0, 1, 2]
    with pytest.raises(UserError, match=r"(?s)spec isn't that of the start before.*optimizer|lr: 0.5"):
        plan_folds(str(quick), ["optimizer.lr=0.5"], [], 3)
    content = json.loads(Path(load(quick).data.annotations).read_text())
    content["database"].popitem()
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    before = (quick.parent / "runs/tiny/folds-3-seed42/fold-0.json").read_text()
    with pytest.raises(UserError, match="labelled videos aren't those"):
        plan_folds(str(quick), [f"data.annotations={tmp_path / 'fewer.json'}"], [], 3)
    assert (quick.parent / "runs/tiny/folds-3-seed42/fold-0.json").read_text() == before
    plan = quick.parent / "runs/tiny/folds-3-seed42" / PLAN
    for broken in ("[]", "{}", '{"ids": [0, 1]}', '{"ids": [0, 1, true]}', '{"ids": [0, 1, "2"]}', "", "\0"):
        plan.write_text(broken)
        with pytest.raises(UserError, match=PLAN):
            plan_folds(str(quick), [], [], 3)


def test_videos_without_an_instance_are_left_out_and_one_subset_is_enough(quick, tmp_path):
    content = json.loads(Path(load(quick).data.annotations).read_text())
    names = list(content["database"])
    for entry in content["database"].values():
        entry["subset"] = "training"
    content["database"][names[0]]["annotations"] = []
    (tmp_path / "one.json").write_text(json.dumps(content))
    folds = plan_folds(str(quick), [f"data.annotations={tmp_path / 'one.json'}"], [], 7)
    assert folds.left_out == 1
    assert names[0] not in json.loads((folds.folder / "fold-0.json").read_text())["database"]
    with pytest.raises(UserError, match="7 videos with an instance can't be divided into 8 folds"):
        plan_folds(str(quick), [f"data.annotations={tmp_path / 'one.json'}"], [], 8)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--folds", "1"], "2"), (["--folds", "x"], "x"), (["--folds", "3", "--id", "2"], "--id belongs to one run"),
        (["--folds", "3", "--force"], "--force belongs"), (["--folds", "3", "--resume", "auto"], "--resume belongs"),
        (["--folds", "9"], "can't be divided into 9 folds"), (["--folds", "2", "--set", "run.id=3"], "leave --id out"),
    ],
)  # fmt: skip
def test_what_does_not_fit_folds_is_refused(quick, run_command, more, said):
    try:
        done = run_command("train", quick, *more)
        code, text = done.returncode, done.stderr
    except SystemExit as left:
        code, text = left.code, said
    assert code == 2
    assert said in text
    assert not started
    assert not list((quick.parent).glob("runs/*/id*"))


def test_a_launcher_with_several_ranks_is_refused(quick, run_command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run_command("train", quick, "--folds", "2")
    assert done.returncode == 2
    assert "start it without a launcher" in done.stderr
