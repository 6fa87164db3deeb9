"""`adatad evaluate --runs`: mean and spread over seeds and folds, and which runs have none in common."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.report.several_runs import spread
from adatad.spec import load, to_yaml

SCORES = {"id0": [0.5, 0.25], "id1": [0.25, 0.75], "id2 of 'mine' é": [0.5, 0.5]}
"""Average mAP by epoch."""


def write_run(folder, text, averages, classes=("a", "b")):
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(text)
    lines = [
        {"kind": "evaluation", "step": 3 * epoch, "epoch": epoch, "average_mAP": score,
         "mAP": {"0.3": score, "0.5": score}, "ap_per_class": {name: [score, score] for name in classes}}
        for epoch, score in enumerate(averages, 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {key: lines[-1][key] for key in ("average_mAP", "mAP", "ap_per_class")}
    result |= {"epochs": len(averages), "best_average_mAP": max(averages)}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def text(tiny_spec):
    """The spec of runs of two epochs."""
    return to_yaml(load(tiny_spec, ["schedule.epochs=2", "evaluate.tious=[0.3, 0.5]"]))


@pytest.fixture
def folder(text, tmp_path, monkeypatch):
    """A folder of three finished runs, which is the current one."""
    for name, averages in SCORES.items():
        write_run(tmp_path / "all" / name, text, averages)
    monkeypatch.chdir(tmp_path / "all")
    return tmp_path / "all"


def test_last_and_best_have_their_own_spread(folder, run_command):
    done = run_command("evaluate", "--runs", *SCORES, "--json", "--output", "out/spread.json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((folder / "out/spread.json").read_text())
    for which, values in (("last", [0.25, 0.75, 0.5]), ("best", [0.5, 0.75, 0.5])):
        expected = {
            "mean": statistics.fmean(values), "standard_deviation": statistics.stdev(values), "minimum": min(values),
            "maximum": 0.75, "runs": 3,
        }  # fmt: skip
        half = found[which]
        assert half["average_mAP"] == half["mAP"]["0.3"] == half["ap_per_class"]["b"]["average"] == expected
        assert half["ap_per_class"]["a"]["by_tiou"]["0.5"] == expected
    assert [run["best"]["epoch"] for run in found["runs"]] == [1, 2, 1]
    table = run_command("evaluate", "--runs", *SCORES).stdout
    assert "50.00 ± 25.00" in table, table
    assert "58.33 ± 14.43" in table
    assert "75.00 (2)" in table


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_a_spread_encloses_its_mean(values):
    found = spread(values)
    assert found["minimum"] - 1e-12 <= found["mean"] <= found["maximum"] + 1e-12
    assert 0 <= found["standard_deviation"] <= found["maximum"] - found["minimum"] + 1e-12


def test_without_lines_on_the_best_epoch_the_last_is_given_alone(folder, run_command):
    (folder / "id1/metrics.jsonl").write_text("{\n")
    # Its best is its last, which the result tells of; the others' needs their metrics.
    (folder / "id0/metrics.jsonl").unlink()
    done = run_command("evaluate", "--runs", "id0", "id1")
    assert done.returncode == 0
    assert "id0: metrics.jsonl has no line on its best epoch" in done.stderr
    assert "50.00 ± 35.36" in done.stdout


def of_folds(folder, text, ids, name="folds-2-seed0", classes=(("a", "b"), ("b",))):
    """Two folds, the second without an instance of a class."""
    plan = folder / name
    plan.mkdir()
    (plan / "plan.json").write_text(json.dumps({"ids": ids, "spec": text, "folds": {}}))
    for fold, (number, own) in enumerate(zip(ids, classes, strict=True)):
        annotations = next(line for line in text.splitlines() if line.strip().startswith("annotations:"))
        own_text = text.replace(annotations, f"  annotations: {json.dumps(str(plan / f'fold-{fold}.json'))}")
        write_run(folder / f"id{number}", own_text, [0.5, 0.25 * fold], own)
    return plan


def test_a_folder_of_folds_stands_for_its_runs(folder, text, run_command):
    of_folds(folder, text, [7, 8])
    for option in ("--folds", "--runs"):
        found = json.loads(run_command("evaluate", option, "folds-2-seed0", "--json").stdout)
        assert [run["run"] for run in found["runs"]] == ["id7", "id8"]
        assert found["last"]["average_mAP"]["mean"] == 0.125
        only = found["last"]["ap_per_class"]["a"]["average"]
        assert (only["runs"], only["mean"], only["standard_deviation"]) == (1, 0, None)
    # Two seeds of folds of the same data.
    of_folds(folder, text, [9, 10], "folds-2-seed1")
    found = json.loads(run_command("evaluate", "--runs", "folds-2-seed0", "folds-2-seed1", "--json").stdout)
    assert found["best"]["average_mAP"]["runs"] == 4
    for words, message in ((("folds-2-seed0", "id8"), "id8: is given twice"), (("id0", "id7"), "id7: is a fold")):
        assert message in run_command("evaluate", "--runs", *words).stderr
    for plan in ("{}", "[]", '{"ids": [true]}', '{"ids": []}', "\0"):
        (folder / "folds-2-seed0/plan.json").write_text(plan)
        refused = run_command("evaluate", "--folds", "folds-2-seed0")
        assert (refused.returncode, "folds-2-seed0/plan.json" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("old", "new"), [
    ("validation_subset:", "validation_subset: training #"), ("annotations:", "annotations: other.json #"),
    ("tious:", "tious: [0.4] #"), ("compat:", "compat: reference #"),
])  # fmt: skip
def test_runs_of_other_data_or_rules_are_refused(folder, text, run_command, old, new):
    [line] = [line for line in text.splitlines() if line.strip().startswith(old)]
    start = text.index(line)
    rest = text[start + len(line) :]
    # A list below the key goes with it.
    while rest.startswith("\n  - "):
        rest = rest[rest.index("\n", 1) :]
    write_run(folder / "other", text[:start] + line[: line.index(old)] + new + rest, [0.5, 0.5])
    refused = run_command("evaluate", "--runs", "id0", "id1", "other")
    assert refused.returncode == 2
    assert "other: " in refused.stderr
    assert old.rstrip(":") in refused.stderr


@pytest.mark.parametrize(("words", "message"), [
    (["id0"], "id0: is one run"),
    (["id0", "./id0"], "id0: is given twice"),
    (["id0", "gone"], "gone: is no run directory"),
    (["id0", "id1/result.json"], "is no run directory"),
    (["id0", "id1", "--tiou", "0.5"], "--tiou: runs are scored as their specs say"),
    (["id0", "id1", "--top-k", "1"], "--top-k"),
    (["id0", "id1", "--output", "id1/result.json"], "is read here"),
    (["id0", "id1", "--output", "."], "expected the name of a file"),
])  # fmt: skip
def test_nonsense_is_refused_and_named(folder, run_command, words, message):
    before = (folder / "id1/result.json").read_bytes()
    refused = run_command("evaluate", "--runs", *words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert (folder / "id1/result.json").read_bytes() == before


@pytest.mark.parametrize(("content", "message"), [
    ("", "result.json"), ("[]", "no result of a run"), ('{"average_mAP": NaN}', "result.json"),
    ('{"average_mAP": 0.5, "epochs": 1}', "isn't finished: 1 of 2 epochs"),
    ('{"average_mAP": 0.5}', "isn't finished: 0 of 2 epochs"), (None, "isn't finished: it has no result.json"),
    ('{"average_mAP": 0.5, "epochs": 2, "mAP": {"0.3": 0.5, "0.5": 0.5}, "ap_per_class": {"a": [0.5]}}', "for each of"),
    ('{"average_mAP": 0.5, "epochs": 2, "mAP": {"0.9": 0.5}, "ap_per_class": {"a": [0.5]}}', "other tIoUs"),
    ('{"average_mAP": 0.5, "epochs": 2, "mAP": {"0.3": 0, "0.5": 0}, "ap_per_class": {"a": [0, 0]}}', "other classes"),
])  # fmt: skip
def test_results_that_say_nothing_are_named(folder, run_command, content, message):
    file = folder / "id1/result.json"
    file.unlink() if content is None else file.write_text(content)
    refused = run_command("evaluate", "--runs", "id0", "id1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "id1" in refused.stderr
    assert message in refused.stderr


def test_runs_that_stopped_early_are_finished(folder, text, run_command):
    write_run(folder / "early", text, [0.5])
    file = folder / "early/result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stopped_early": True}))
    assert run_command("evaluate", "--runs", "id0", "early").returncode == 0


def test_files_or_runs_are_expected(folder, run_command):
    for words in ([], ["gt.json"]):
        refused = run_command("evaluate", *words)
        assert (refused.returncode, "expected GT and DETECTIONS" in refused.stderr) == (2, True)
    assert "leave gt.json out" in run_command("evaluate", "gt.json", "--runs", "id0", "id1").stderr
