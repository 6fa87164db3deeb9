"""Last beside best: which evaluation stands for a run, and what is said of both."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adatad.errors import UserError
from adatad.report.last_and_best import Evaluation, in_result, of_run, select_in, select_of, selected_detections
from adatad.report.scores import compare_with_published, print_scores, verdict_line
from adatad.spec import load

shares = st.floats(0, 1, allow_nan=False)


def a_run(folder, averages, **result):
    """A run with an evaluation after each epoch, of these averages; its first line is the untrained model's."""
    folder.mkdir(parents=True)
    lines = [
        {"kind": "evaluation", "step": 3 * epoch, "epoch": epoch, "average_mAP": score, "mAP": {"0.5": score},
         "ap_per_class": {"a": [score]}}
        for epoch, score in enumerate([0.999, *averages])
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = lines[-1]
    found = {key: last[key] for key in ("average_mAP", "mAP", "ap_per_class")}
    content = {**found, "best_average_mAP": max(averages), "epochs": len(averages), **result}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


@given(st.lists(shares, min_size=1, max_size=6))
def test_the_first_of_the_best_is_found_in_runs_of_before_and_of_now(tmp_path_factory, averages):
    best = averages.index(max(averages)) + 1
    for fields in ({}, {"best_epoch": best, "best_mAP": {"0.5": max(averages)}}):
        found = of_run(a_run(tmp_path_factory.mktemp("runs") / "id0", averages, **fields))
        assert found.last == Evaluation(len(averages), averages[-1], {"0.5": averages[-1]}, {"a": [averages[-1]]})
        assert found.best == Evaluation(best, max(averages), {"0.5": max(averages)}, {"a": [max(averages)]})


def test_without_metrics_the_best_is_known_by_its_average(tmp_path):
    run = a_run(tmp_path / "id0", [0.5, 0.25])
    (run / "metrics.jsonl").unlink()
    assert of_run(run).best == Evaluation(None, 0.5, {}, {})
    assert of_run(run).describe() == "average mAP: last epoch (2) 25.00 %, best epoch 50.00 %"
    (run / "result.json").write_text('{"average_mAP": 0.25}')
    assert of_run(run).best is None


def test_epochs_of_before_a_run_went_back_are_no_best_ones(tmp_path):
    run = a_run(tmp_path / "id0", [0.5, 0.9, 0.3])
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    # It went on from its first epoch, and wrote the second anew.
    again = lines[2].replace("0.9", "0.4")
    (run / "metrics.jsonl").write_text("".join([*lines, again]))
    (run / "result.json").write_text(json.dumps({"average_mAP": 0.4, "best_average_mAP": 0.5, "epochs": 2}))
    assert (of_run(run).best.epoch, of_run(run).best.average_mAP) == (1, 0.5)


@pytest.mark.parametrize(("text", "expected"), [
    ("train: {select: last}", "last"), ("train: {select: best}", "best"), ("name: old", "best"), ("", "best"),
    ("train: 3", "best"), ("[", "best"), (None, "best"),
])  # fmt: skip
def test_the_run_s_spec_says_what_stands_for_it(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "spec.yaml").write_text(text)
    assert select_of(tmp_path) == expected


def test_another_value_is_named_with_its_file(tmp_path):
    (tmp_path / "spec.yaml").write_text("train: {select: [luck]}")
    with pytest.raises(UserError, match=r"spec\.yaml: train\.select: expected best or last, got \['luck'\]"):
        select_of(tmp_path)


def test_a_damaged_spec_is_read_in_the_newest_checkpoint(tmp_path):
    for name, select in (("step-00000003", "best"), ("step-00000006", "last")):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "spec.yaml").write_text(yaml.safe_dump({"train": {"select": select}}))
    (tmp_path / "spec.yaml").write_bytes(b"\xff\x00")
    assert select_of(tmp_path) == "last"


@pytest.mark.parametrize(("words", "expected"), [
    (["train.select=last"], "last"), (["train.select=last", "train.select=best"], "best"), (["train.seed=1"], None),
    (["train.select=luck"], None), ([], None),
])  # fmt: skip
def test_settings_of_the_command_go_before_the_run_s(words, expected):
    assert select_in(words) == expected


def test_detections_are_those_of_the_evaluation_that_stands_for_the_run(tmp_path):
    run = a_run(tmp_path / "id0", [0.5, 0.25])
    assert selected_detections(run) == (run / "detections.json", [])
    (run / "best_detections.json").write_text("{}")
    file, [line] = selected_detections(run)
    assert file == run / "best_detections.json"
    assert "last epoch (2) 25.00 %, best epoch (1) 50.00 %" in line
    (run / "spec.yaml").write_text("train: {select: last}")
    assert selected_detections(run) == (run / "detections.json", [])


RESULT = {
    "average_mAP": 0.70, "mAP": {"0.5": 0.70}, "ap_per_class": {"a": [0.70]}, "epochs": 60,
    "best_average_mAP": 0.75, "best_epoch": 40, "best_mAP": {"0.5": 0.76},
}  # fmt: skip


@pytest.mark.parametrize(("select", "obtained", "word"), [
    ("best", 75, "reproduced"), ("last", 70, "not reproduced"), ("null", 70, "not reproduced"),
])  # fmt: skip
def test_a_published_figure_is_compared_with_the_same_choice_of_ours(tiny_spec, capsys, select, obtained, word):
    figures = f"published_select={select}", "published={average_mAP: 75.06}", "published_last={average_mAP: 73.87}"
    spec = load(tiny_spec, figures)
    reproduction = compare_with_published(spec, RESULT)
    assert reproduction.figures[0].obtained == pytest.approx(obtained)
    line = verdict_line(spec, reproduction)
    assert f": {word}: average mAP {obtained:.2f}, published 75.06" in line
    words = {"best": "best epoch", "last": "last epoch", "null": "not said which epoch"}
    assert f"published: {words[select]}, compared with: {'best' if select == 'best' else 'last'} epoch" in line
    print_scores(spec, RESULT)
    out = capsys.readouterr().out
    assert all(figure in out for figure in ("70.00", "75.00", "76.00", "75.06", "(60)", "(40)"))
    assert ("73.87" in out) == (select != "last")


def test_a_tested_checkpoint_is_compared_by_its_only_evaluation(tiny_spec):
    spec = load(tiny_spec, ["published={average_mAP: 75.06}", "published_select=best"])
    tested = {key: RESULT[key] for key in ("average_mAP", "mAP", "ap_per_class")}
    reproduction = compare_with_published(spec, tested)
    assert (reproduction.figures[0].obtained, reproduction.select) == (70, None)
    assert "compared with: this checkpoint" in verdict_line(spec, reproduction)
    assert in_result(tested).best is None
