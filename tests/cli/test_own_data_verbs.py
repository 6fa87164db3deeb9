"""The commands of docs/own-data.md, in order, on the built-in data set as if it were one's own."""

import csv
import json
from pathlib import Path

import pytest
from test_documents import commands

ROOT = Path(__file__).parents[2]

SMALL = [
    "model.backbone.weights=random",
    "model.backbone.width=16",
    "model.backbone.depth=1",
    "model.backbone.heads=2",
    "model.detector.width=16",
    "model.detector.heads=2",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "data.workers=0",
]


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
        ["data", "from-csv"], ["data", "summary"], ["data", "check"], "train", "test",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for words in run:
        small = ["--set", *SMALL] if words[1] in ("train", "test") else []
        done = run_command(*words[1:], *small)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "data/mine/check/blocked.txt").read_text() == ""
    assert (tmp_path / "runs/mine/id0/report.html").is_file()
