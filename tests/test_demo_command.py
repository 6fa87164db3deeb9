"""launch/demo.sh from end to end, with 8 videos and one epoch."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_runs_and_leaves_what_it_says(tmp_path):
    settings = [
        "schedule.epochs=1", "schedule.warmup_epochs=0", f"run.root={tmp_path / 'runs'}",
        f"data.annotations={tmp_path / 'demo' / 'annotations.json'}", f"data.videos={tmp_path / 'demo' / 'videos'}",
    ]  # fmt: skip
    command = ["bash", "launch/demo.sh", "--train-videos", "6", "--validation-videos", "2", "--set", *settings]
    environment = {**os.environ, "COLUMNS": "200"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "runs" / "demo" / "tia" / "id0"
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 1
    assert 0 <= result["untrained_average_mAP"] < 0.05
    assert f"{100 * result['average_mAP']:.2f}" in run.stdout
    for name in ("report.html", "timelines", "detections.json", "tensorboard"):
        assert (folder / name).exists()
        assert str(folder / name) in run.stdout
    assert len(list((folder / "timelines").glob("*.png"))) == 2
    # The model that was trained says what happens in a video that nobody labelled.
    page = folder / "new_video" / "detections.html"
    assert page.exists()
    assert str(page) in run.stdout
    assert json.loads((folder / "new_video" / "video.json").read_text())["results"].keys() == {"video"}
    # Typed a second time it works again.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
