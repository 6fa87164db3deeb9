"""slurm/detect.sh on a real Slurm: the tasks of an array share a list, and a second submission finds it done."""

import json

import pytest
from jobs import ROOT, quick
from timed_video import even, write_timed
from untrained_model import write_model

pytestmark = pytest.mark.slow


def test_the_tasks_of_an_array_share_a_list_and_do_no_video_twice(cluster, tmp_path):
    write_model(tmp_path / "m.safetensors")
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_timed(tmp_path / "videos" / f"v{number}.mp4", even(10, 2))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    submitted = cluster.run(
        "sbatch", "--parsable", f"--output={tmp_path}/%a.log", "--cpus-per-task=1", "--array=0-1", "slurm/detect.sh",
        f"{tmp_path}/m.safetensors", f"{tmp_path}/videos/*.mp4", "--output", f"{tmp_path}/found", "--threshold", "0",
        cwd=ROOT, **quick(),
    ).strip()  # fmt: skip
    states = sorted(cluster.wait(f"{submitted}_{task}") for task in range(2))
    logs = [(tmp_path / f"{task}.log").read_text() for task in range(2)]
    assert states == ["COMPLETED", "FAILED"], logs
    assert [f"part {task + 1} of 2 of the list: 2 of 4 videos" in log for task, log in enumerate(logs)] == [True] * 2, (
        logs
    )
    assert sum("1 done, 1 failed" in log for log in logs) == sum("2 videos: 2 done" in log for log in logs) == 1, logs
    assert sorted(path.name for path in (tmp_path / "found").glob("*.json")) == ["v0.json", "v1.json", "v2.json"]
    assert all(json.loads(path.read_text())["results"] for path in (tmp_path / "found").glob("*.json"))
    page = (tmp_path / "found" / "detections.html").read_text()
    assert all(f'"v{number}"' in page for number in range(3)), "the last task draws what all have found"
