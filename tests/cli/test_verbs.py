"""The commands: help at once, clear errors with exit code 2, and no torch where none is needed."""

import json
from pathlib import Path

import pytest

from adatad.spec import load

ROOT = Path(__file__).parents[2]


def test_spec_prints_every_value_with_its_source(run_command):
    run = run_command("spec", "configs/demo/plain.yaml", "--set", "train.seed=3", "--id", 4)
    assert run.returncode == 0, run.stderr
    lines = {line.split("#")[0].strip(): line.split("# ")[1] for line in run.stdout.splitlines() if "# " in line}
    assert lines["mode: plain"] == "configs/demo/plain.yaml:5"
    assert lines["preset: tiny"].startswith("configs/demo/tia.yaml:")
    assert lines["seed: 3"] == "--set train.seed=3"
    assert lines["id: 4"] == "--set run.id=4"
    assert lines["tubelet: 2"] == "default"


def test_spec_names_the_source_of_every_value_inside_a_list(run_command, tmp_path):
    path = tmp_path / "s.yaml"
    groups = "    custom:\n      - name: adapter\n        lr: 2e-4\n      - {name: norm, lr: 0}\n"
    path.write_text(
        f"data: {{annotations: a, videos: v}}\noptimizer:\n  backbone:\n{groups}evaluate: {{tious: [0.3, 0.5]}}\n"
    )
    options = ["optimizer.backbone.custom.0.lr=1e-4", "evaluate.tious.1=0.7"]
    run = run_command("spec", path, "--cfg-options", *options)
    assert run.returncode == 0, run.stderr
    rows = [tuple(map(str.strip, line.partition("  # ")[::2])) for line in run.stdout.splitlines()]
    first = rows.index(("- name: adapter", f"{path}:5"))
    assert rows[first + 1 : first + 6] == [
        ("lr: 0.0001", f"--set {options[0]}"), ("weight_decay: 0.05", "default"),
        ("- name: norm", f"{path}:7"), ("lr: 0.0", f"{path}:7"), ("weight_decay: 0.05", "default"),
    ]  # fmt: skip
    assert ("tious: [0.3, 0.7]", f"{path}:8, --set {options[1]}") in rows
    (tmp_path / "again.yaml").write_text(run.stdout)
    assert load(tmp_path / "again.yaml", check_files=False) == load(path, options, check_files=False)


@pytest.mark.parametrize("verb", ["spec", "train"])
def test_a_bad_spec_is_explained_and_leaves_with_2(run_command, verb):
    run = run_command(verb, "configs/demo/tia.yaml", "--cfg-options", "optimizer.lr=fast", "train.sed=1")
    assert run.returncode == 2
    assert "optimizer.lr: Input should be a valid number" in run.stderr
    assert "train.sed: no such key; did you mean train.seed?" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def files(tmp_path):
    truth = {"database": {"v": {"subset": "validation", "annotations": [
        {"segment": [0, 10], "label": "a"}, {"segment": [20, 30], "label": "b"}]}}}  # fmt: skip
    found = {"results": {"v": [{"segment": [0, 10], "label": "a", "score": 0.9},
                               {"segment": [21, 40], "label": "b", "score": 0.5}]}}  # fmt: skip
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    return tmp_path


def test_evaluate_scores_files(run_command, files):
    run = run_command(
        "evaluate", files / "gt.json", files / "found.json", "--tiou", 0.4, 0.6, "--output", files / "r.json"
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((files / "r.json").read_text())
    assert result["mAP"] == {"0.4": 1.0, "0.6": 0.5}
    assert result["average_mAP"] == 0.75
    assert result["ap_per_class"] == {"a": [1.0, 1.0], "b": [1.0, 0.0]}
    assert "75.00" in run.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", 'expected {"results"'),
        ('{"results": {"v": {}}}', "video 'v': expected a list"),
        ('{"results": {"v": [{"segment": [1, 2], "label": "a"}]}}', "video 'v', detection 0: expected segment, label"),
        ('{"results": {"v": [{"segment": [2, 1], "label": "a", "score": 1}]}}', "ends before it starts"),
        ('{"results": {"v": [{"segment": [NaN, 1], "label": "a", "score": 1}]}}', "finite numbers"),
        ('{"results": {"v": [{"segment": [0, 1], "label": ["a"], "score": 1}]}}', "expected a name as label"),
    ],
)
def test_evaluate_explains_a_bad_file(run_command, files, content, message):
    (files / "found.json").write_text(content)
    run = run_command("evaluate", files / "gt.json", files / "found.json", "--output", files / "r.json")
    assert run.returncode == 2
    assert "found.json" in run.stderr
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not (files / "r.json").exists()


@pytest.mark.parametrize(("tious", "columns"), [(5, 80), (10, 140)])
def test_evaluate_cuts_neither_names_nor_figures_on_80_columns(run_command, files, tious, columns, monkeypatch):
    name = "VolleyballSpikingHigh"
    for file in ("gt.json", "found.json"):
        (files / file).write_text((files / file).read_text().replace('"a"', f'"{name}"'))
    thresholds = [0.5 + 0.05 * number for number in range(tious)]
    arguments = (files / "gt.json", files / "found.json", "--tiou", *thresholds)
    monkeypatch.setenv("COLUMNS", "80")
    run = run_command("evaluate", *arguments)
    assert run.returncode == 0, run.stderr
    row = next(line for line in run.stdout.splitlines() if name in line)
    assert row.count("100.00") == 1 + tious
    assert max(map(len, run.stdout.splitlines())) <= columns


def test_evaluate_reports_recall_and_leaves_blocked_videos_out(run_command, files):
    (files / "blocked.json").write_text('["w"]')
    found = json.loads((files / "found.json").read_text())
    found["results"]["w"] = [{"segment": [0, 10], "label": "a", "score": 1.0}]
    (files / "found.json").write_text(json.dumps(found))
    arguments = [files / "gt.json", files / "found.json", "--tiou", 0.4, 0.6, "--output", files / "r.json"]
    run = run_command("evaluate", *arguments, "--top-k", 1, 5)
    assert run.returncode == 0, run.stderr
    assert "1 video with detections but in no annotation" in run.stderr
    result = json.loads((files / "r.json").read_text())
    assert result["ap_per_class"]["a"] == [0.5, 0.5]
    assert result["recall"] == {"0.4": {"1": 1.0, "5": 1.0}, "0.6": {"1": 0.5, "5": 0.5}}
    assert "recall@5x" in run.stdout
    run = run_command("evaluate", *arguments, "--blocked", files / "blocked.json")
    assert "1 of 1 blocked name in no annotation (no instance left out): 'w'" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert json.loads((files / "r.json").read_text())["ap_per_class"]["a"] == [1.0, 1.0]
    run = run_command("evaluate", *arguments, "--blocked", files / "gt.json")
    assert run.returncode == 2
    assert "gt.json: expected a JSON list of names" in run.stderr


def test_evaluate_scores_proposals_and_epic_labels(run_command, files):
    arguments = [files / "gt.json", files / "found.json", "--tiou", 0.4, 0.6, "--output", files / "r.json"]
    assert run_command("evaluate", *arguments, "--score", "recall").returncode == 0
    assert json.loads((files / "r.json").read_text())["average_recall"][-1] == 0.75
    run = run_command("evaluate", *arguments, "--score", "verb")
    assert run.returncode == 2
    assert "annotation 0: expected segment and verb_label" in run.stderr
    for file in ("gt.json", "found.json"):
        text = (files / file).read_text()
        for number, label in enumerate("ab"):
            text = text.replace(f'"label": "{label}"', f'"verb_label": "id_{number}", "verb": {number}')
        (files / file).write_text(text)
    assert run_command("evaluate", *arguments, "--score", "verb").returncode == 0
    assert json.loads((files / "r.json").read_text())["ap_per_class"] == {"0": [1.0, 1.0], "1": [1.0, 0.0]}


def test_the_demo_finds_its_spec_from_anywhere(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_command("demo", "--set", "train.sed=1")
    assert run.returncode == 2
    assert "train.sed: no such key" in run.stderr


def test_a_shipped_spec_is_found_by_name_and_copied_to_be_changed(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "preset: tiny" in run_command("spec", "demo/plain").stdout
    assert run_command("spec", "--copy", "demo/plain").stdout == "plain.yaml\n"
    copied = load("plain.yaml", check_files=False)
    shipped = load(ROOT / "configs/demo/plain.yaml", check_files=False)
    assert copied.model_copy(update={"name": shipped.name}) == shipped
    assert Path(copied.model.backbone.weights).is_file()
    again = run_command("spec", "--copy", "demo/plain")
    assert (again.returncode, "--force replaces it" in again.stderr) == (2, True)
    assert run_command("spec", "--copy", "demo/plain", "--force").returncode == 0


def test_evaluate_names_the_subsets_there_are(run_command, files):
    run = run_command("evaluate", files / "gt.json", files / "found.json", "--subset", "test")
    assert run.returncode == 2
    assert "no video of subset 'test'; the file has 'validation'" in run.stderr


def test_verify_golden_without_cases(run_command, tmp_path):
    run = run_command("dev verify-golden", tmp_path)
    assert run.returncode == 2
    assert "holds no case" in run.stderr


@pytest.fixture
def someone_s_data(tmp_path):
    """A data set that isn't ours, and a spec of it."""
    folder = tmp_path / "data"
    (folder / "videos").mkdir(parents=True)
    (folder / "annotations.json").write_text("{}")
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        f"base: {ROOT / 'configs' / 'demo' / 'tia.yaml'}\n"
        f"data: {{annotations: {folder}/annotations.json, videos: {folder}/videos}}\nrun: {{root: {tmp_path / 'runs'}}}"
    )
    return folder, spec


@pytest.mark.parametrize("verb", ["demo", "data demo"])
def test_the_demo_s_tools_leave_other_data_alone(run_command, someone_s_data, verb):
    folder, spec = someone_s_data
    run = run_command(verb, *(("--spec", spec) if verb == "demo" else ("--output", folder)))
    assert run.returncode == 2, run.stdout
    assert f"{folder}: holds something else than the built-in data set" in run.stderr
    assert "Traceback" not in run.stderr
    assert {path.name for path in folder.iterdir()} == {"annotations.json", "videos"}


@pytest.fixture
def damaged(tiny_data, tiny_spec, tmp_path):
    """tiny_spec's runs on a copy of its videos, that a test may damage; the folder and the --set that names it."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in (tiny_data / "videos").iterdir():
        (folder / video.name).symlink_to(video)
    return folder, f"data.videos={folder}"


def test_missing_videos_are_listed_before_a_run_is_made(run_command, tiny_spec, damaged, tmp_path):
    folder, setting = damaged
    names = ["demo_training_001.mp4", "demo_validation_000.mp4"]
    for name in names:
        (folder / name).unlink()
    run = run_command("train", tiny_spec, "--set", setting)
    assert run.returncode == 2
    assert "2 of 8 videos of" in run.stderr
    assert all(name in run.stderr for name in names)
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_training_001.mp4", "demo_validation_001.mp4"])
def test_a_broken_video_ends_a_run_with_its_name(run_command, tiny_spec, damaged, name):
    """In a loader process, of training and of validation."""
    folder, setting = damaged
    (folder / name).unlink()
    (folder / name).write_text("no video")
    run = run_command("train", tiny_spec, "--set", setting, "data.workers=1")
    assert run.returncode == 2
    assert f"{folder / name}: can't be opened as a video" in run.stderr
    assert "Traceback" not in run.stderr
