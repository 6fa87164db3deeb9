"""Quality of settings derived from the data: a quarter of an hour, so only with --full."""

import json

import pytest

from adatad.data.prepare.demo import make_demo

HAND_MADE = "configs/demo/tia.yaml"


@pytest.mark.full
def test_a_derived_spec_reaches_the_hand_made_one_on_the_built_in_videos(tmp_path, run_command):
    demo, mine = tmp_path / "demo", tmp_path / "mine"
    make_demo(demo)
    imported = run_command("data", "import", demo / "annotations.json", "--videos", demo / "videos", "--output", mine)
    assert imported.returncode == 0, imported.stderr
    scores = []
    for spec, settings in (
        (HAND_MADE, [f"data.annotations={demo}/annotations.json", f"data.videos={demo}/videos"]),
        (mine / "spec.yaml", []),
    ):
        name = f"name=quality-{len(scores)}"
        done = run_command("train", spec, "--set", name, f"run.root={tmp_path}", "train.seed=0", *settings)
        assert done.returncode == 0, done.stderr
        scores.append(json.loads((tmp_path / name[5:] / "id0/result.json").read_text())["average_mAP"])
    assert scores[1] >= 0.97 * scores[0], scores
