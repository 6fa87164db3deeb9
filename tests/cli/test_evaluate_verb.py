"""`adatad evaluate`: what it prints, in which order, and what it refuses before it scores."""

import json
import os

import pytest


@pytest.fixture
def files(tmp_path):
    """gt.json and found.json of a class whose name is markup."""
    label = "[/red]\x1b[31m:smile: $x$"
    truth = {"database": {"v": {"subset": "validation", "annotations": [{"segment": [0, 2], "label": label}]}}}
    found = {"results": {"v": [{"segment": [0, 2], "label": label, "score": 0.5}]}}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    return tmp_path


def test_names_are_printed_as_they_are(files, run_command):
    done = run_command("evaluate", files / "gt.json", files / "found.json")
    assert done.returncode == 0, done.stderr
    assert r"[/red]\x1b[31m:smile: $x$" in done.stdout
    assert "\x1b" not in done.stdout


def test_warnings_go_to_stderr_and_into_the_file(files, run_command):
    (files / "found.json").write_text('{"results": {}}')
    done = run_command("evaluate", files / "gt.json", files / "found.json", "--output", files / "new" / "r.json")
    assert done.returncode == 0
    assert "warning: 1 of 1 video of subset 'validation' not in the detections file" in done.stderr
    (line,) = json.loads((files / "new" / "r.json").read_text())["warnings"]
    assert line in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiou", "0"], "above 0 and up to 1"),
        (["--tiou", "nan"], "expected a number from 0 to 1, got 'nan'"),
        (["--tiou", "0.5", "0.50"], "a value is there twice"),
        (["--top-k", "0"], "expected a whole number from 1"),
        (["--top-k", "9e29"], "expected a whole number from 1"),
        (["--top-k", str(10**30)], "expected a whole number from 1"),
        (["--top-k", "1", "--score", "recall"], "only with --score mAP"),
        (["--subset", ""], "no video of subset ''; the file has 'validation'"),
        (["--subset", "None"], "no video of subset 'None'"),
        (["--output", ""], "expected a path, got ''"),
        (["--output", "pipe"], "no regular file"),
        (["--output", "."], "expected the name of a file"),
        (["--output", "x" * 300], "File name too long"),
        (["--output", "gt.json/x"], "can't be written"),
        (["--output", "loop"], "can't be written"),
        (["--output", "found.json"], "is read here, and would be written over"),
        (["--output", "new/folder/r.json", "--subset", "none"], "no video of subset 'none'"),
        (["--blocked", "loop"], "loop"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_scored(files, run_command, monkeypatch, options, message):
    monkeypatch.chdir(files)
    (files / "loop").symlink_to("loop")
    # In the place of a device, which a defect would replace for the whole machine.
    os.mkfifo(files / "pipe")
    before = {path.name for path in files.iterdir()}
    done = run_command("evaluate", "gt.json", "found.json", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert {path.name for path in files.iterdir()} == before


def test_a_full_disk_costs_the_file_and_not_the_score(files, run_command, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    (files / "r.json").write_text("old")
    done = run_command("evaluate", files / "gt.json", files / "found.json", "--output", files / "r.json")
    assert done.returncode == 2
    assert "100.00" in done.stdout
    assert "r.json: can't be written: No space left on device; what was there is as it was" in done.stderr
    assert (files / "r.json").read_text() == "old"
    assert not list(files.glob("*unfinished*"))
    assert not list(files.glob(".*"))


def test_a_detection_that_stands_several_times_is_warned_of(files, run_command):
    content = json.loads((files / "found.json").read_text())
    content["results"]["v"] *= 3
    (files / "found.json").write_text(json.dumps(content))
    for score in ("mAP", "recall"):
        done = run_command("evaluate", files / "gt.json", files / "found.json", "--score", score)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning: 2 detections repeated") == 1
