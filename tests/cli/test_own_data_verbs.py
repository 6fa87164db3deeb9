"""The commands of docs/own-data.md, in order, on the built-in data set as if it were one's own."""

import csv
import json
from pathlib import Path

import pytest
from test_documents import commands
from tiny_spec import SMALL

ROOT = Path(__file__).parents[2]


@pytest.mark.pictures
def test_the_commands_of_the_document_work_on_the_built_in_videos(tiny_data, run_command, tmp_path, monkeypatch):
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "start", "end", "label", "subset"])
        for name, entry in database.items():
            writer.writerows([name, *item["segment"], item["label"], entry["subset"]] for item in entry["annotations"])
    (tmp_path / "my_videos").symlink_to(tiny_data / "videos")
    run = commands(ROOT / "docs" / "own-data.md")
    assert [words[1:3] if words[1] == "data" else words[1] for words in run] == [
        ["data", "import"], ["data", "summary"], ["data", "check"], "train", "test", ["data", "export"],
        ["data", "export"],
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for words in run:
        small = ["--set", *SMALL] if words[1] == "train" else []
        done = run_command(*words[1:], *small)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "data/mine/check/blocked.txt").read_text() == ""
    assert {"annotations.csv", "demo_training_000.srt"} <= {path.name for path in (tmp_path / "as_tables").iterdir()}
    assert (tmp_path / "runs/mine/id0/report.html").is_file()
