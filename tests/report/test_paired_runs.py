"""Runs with detections beside each other: verdicts, changed keys, the page, and runs that don't belong together."""

import json

import pytest
from compared_runs import VIDEOS, annotations, write_run

from adatad.cli.main import main
from adatad.report.compare import CompareError, compare_files, compare_runs

LINES_OF_A_SCREEN = 45


@pytest.fixture
def truth(tmp_path):
    return annotations(tmp_path)


def test_a_run_that_finds_less_is_worse_and_the_sentence_says_how_sure(tmp_path, truth):
    runs = [write_run(tmp_path / "a" / "id0", truth, 1.0), write_run(tmp_path / "b" / "id0", truth, 0.5, VIDEOS // 2)]
    found = compare_runs(runs)
    assert found["sentences"][0].startswith("b/id0 is worse than a/id0: -50.0 points (")
    assert found["sentences"][0].endswith("ahead in 0 % of the draws; same spec and seed.")
    assert found["runs"][0]["memory_bytes"] == 3 << 29
    assert found["paired"]["differences"][0]["ap_per_class"].keys() == {"pour", "stir"}


def test_changed_keys_are_listed_and_a_seed_alone_is_said(tmp_path, truth):
    runs = [
        write_run(tmp_path / "a" / "id0", truth, 1.0),
        write_run(tmp_path / "a" / "id1", truth, 1.0, settings="postprocess: {nms: {sigma: 0.4}}\nrun: {id: 1}\n"),
        write_run(tmp_path / "a" / "id2", truth, 1.0),
    ]
    spec = runs[2] / "spec.yaml"
    spec.write_text(spec.read_text().replace("global_batch: 2", "global_batch: 2, seed: 7"))
    found = compare_runs(runs)
    assert found["relations"] == ["1 key of the spec differs", "same spec, other seed"]
    assert found["changed"] == [
        {"key": "train.seed", "values": ["42", "42", "7"]},
        {"key": "postprocess.nms.sigma", "values": ["0.7", "0.4", "0.7"]},
    ]
    assert found["sentences"][1] == "a/id2 and a/id0 score the same: no difference can be told; same spec, other seed."


def test_the_text_is_one_screen_with_the_verdict_first(tmp_path, truth, capsys):
    runs = [write_run(tmp_path / "a" / f"id{n}", truth, 1.0, VIDEOS - n) for n in range(3)]
    assert main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < LINES_OF_A_SCREEN
    assert lines[0].startswith(("a/id1 is worse", "No difference can be told between a/id1 and a/id0"))
    assert any(line.startswith("tIoU 0.5") for line in lines)


def test_json_has_everything_and_names_as_they_are(tmp_path, truth, capsys):
    runs = [write_run(tmp_path / name / "id0", truth, 1.0) for name in ("ü 'quoted' <b>", "[b]")]
    assert main(["compare", *map(str, runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "ü 'quoted' <b>/id0"
    assert found["paired"]["differences"][0]["average_mAP"]["better"] == 0.5


def test_runs_scored_against_other_annotations_are_refused(tmp_path, truth):
    runs = [
        write_run(tmp_path / "a" / "id0", truth, 1.0),
        write_run(tmp_path / "b" / "id0", annotations(tmp_path, 3.0), 1.0),
    ]
    with pytest.raises(CompareError, match=r"b/id0: was scored against other annotations .*'v0' differ.*--ground"):
        compare_runs(runs)
    found = compare_files(runs, truth, "validation", (0.5, 0.7))
    assert found["runs"][0]["average_mAP"] > found["runs"][1]["average_mAP"]
    assert found["sentences"][0].startswith("b/id0 is worse than a/id0")


@pytest.mark.parametrize("missing", ["spec.yaml", "detections.json"])
def test_a_missing_file_costs_the_verdict_alone(tmp_path, truth, missing):
    runs = [write_run(tmp_path / name / "id0", truth, 1.0) for name in "ab"]
    (runs[1] / missing).unlink()
    found = compare_runs(runs)
    assert found["paired"] is None
    assert missing in found["notes"][0]
    assert len(found["runs"]) == 2


def test_annotations_that_have_gone_cost_the_verdict_alone(tmp_path, truth):
    runs = [write_run(tmp_path / name / "id0", truth, 1.0) for name in "ab"]
    truth.unlink()
    assert "annotations2.json" in compare_runs(runs)["notes"][0]


def test_a_list_of_blocked_videos_that_has_gone_costs_the_verdict_alone(tmp_path, truth):
    settings = f"evaluate: {{blocked_videos: {tmp_path}/gone.json}}\n"
    runs = [write_run(tmp_path / name / "id0", truth, 1.0, settings=settings) for name in "ab"]
    found = compare_runs(runs)
    assert found["paired"] is None
    assert "gone.json" in found["notes"][0]


def test_a_single_run_has_a_page_too(tmp_path, truth):
    run = write_run(tmp_path / "a" / "id0", truth, 1.0)
    assert main(["compare", str(run), "--output", str(tmp_path / "c.html")]) == 0
    assert "a/id0" in (tmp_path / "c.html").read_text()


def test_other_thresholds_are_noted_and_the_first_run_s_count(tmp_path, truth):
    runs = [write_run(tmp_path / "a" / "id0", truth, 1.0)]
    runs.append(write_run(tmp_path / "b" / "id0", truth, 1.0, settings="evaluate: {tious: [0.9]}\n"))
    found = compare_runs(runs)
    assert found["paired"]["tious"] == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert found["notes"][0] == "b/id0: its evaluate section differs; it is scored as a/id0 here"


def test_a_result_that_is_not_the_score_of_the_detections_is_noted(tmp_path, truth):
    runs = [write_run(tmp_path / name / "id0", truth, average) for name, average in (("a", 1.0), ("b", 0.8))]
    assert compare_runs(runs)["notes"] == ["b/id0: result.json says 80.00 %, its detections score 100.00 % here"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--ground-truth", "annotations2.json"], "expected two or more"),
        (["a", "b", "--subset", "validation"], "--subset: runs are scored as their spec says"),
        (["a", "b", "--ground-truth", "annotations2.json", "--group", "x=1"], "--group"),
        (["a", "b", "--ground-truth", "annotations2.json", "--tiou", "0.5", "0.5"], "each once"),
        (["a", "b", "--ground-truth", "annotations2.json", "--subset", "x"], "no video of subset 'x'"),
        (["a", "b", "--ground-truth", "annotations2.json", "--output", "new/c.png"], "name a page"),
        (["a", "annotations2.json", "--ground-truth", "annotations2.json"], "wrong order"),
        (["a", "a/detections.json"], "or detections files with --ground-truth"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, truth, monkeypatch, capsys, words, said):
    for name in "ab":
        write_run(tmp_path / name, truth, 1.0)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    done = capsys.readouterr()
    assert done.out == ""
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_group_alone_is_compared(tmp_path):
    truth = annotations(tmp_path)
    content = json.loads(truth.read_text())
    for entry in content["database"].values():
        for item in entry["annotations"]:
            item["night"] = item["label"] == "stir"
    truth.write_text(json.dumps(content))
    runs = [write_run(tmp_path / name / "id0", truth, 1.0) for name in "ab"]
    # The second run misses "stir", which is the night.
    found = json.loads((runs[1] / "detections.json").read_text())
    kept = {video: [item for item in items if item["label"] == "pour"] for video, items in found["results"].items()}
    (runs[1] / "detections.json").write_text(json.dumps({"results": kept}))
    for run in runs:
        for path in (run / "metrics.jsonl", run / "result.json"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            groups = {"groups": {f"night={name}": {"average_mAP": 1, "instances": 3} for name in ("true", "false")}}
            path.write_text("\n".join(json.dumps({**line, **groups}) for line in lines))
    values = [
        compare_runs(runs, f"night={name}")["paired"]["differences"][0]["average_mAP"]["value"]
        for name in ("true", "false")
    ]
    assert values == [-1, 0]
    truth.write_text(truth.read_text().replace('"night": true', '"night": 1'))
    found = compare_runs(runs, "night=true")
    assert found["paired"] is None
    assert "no group 'night=true' any more" in found["notes"][0]
