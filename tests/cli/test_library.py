"""`import adatad`: the page's example runs, finds what `adatad test` finds, and every name is documented."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import adatad

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"


def test_every_name_is_there_and_on_the_page():
    page = PAGE.read_text()
    for name in adatad.__all__:
        assert getattr(adatad, name).__doc__
        assert f"`{name}" in page, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        adatad.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = "import sys, adatad; adatad.UserError; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def place(tiny_data, tmp_path_factory):
    """A folder as the demo leaves it, with a run of one epoch."""
    from adatad.training.run import train

    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "data" / "demo").symlink_to(tiny_data)
    settings = [
        f"data.annotations={tiny_data}/annotations.json", f"data.videos={tiny_data}/videos", "data.workers=0",
        f"run.root={folder}/runs", "schedule.epochs=1", "schedule.warmup_epochs=0", "train.evaluate_untrained=false",
    ]  # fmt: skip
    train(adatad.load_spec("demo/tia", settings))
    return folder


@pytest.mark.slow
def test_the_example_of_the_page_finds_what_the_run_found(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    run = place / "runs" / "demo" / "tia" / "id0"
    assert names["found"] == json.loads((run / "detections.json").read_text())["results"]
    assert names["result"].average_mAP == json.loads((run / "result.json").read_text())["average_mAP"]
    assert "average mAP" in capsys.readouterr().out
    detector = names["detector"]
    with pytest.raises(adatad.UserError, match=r"expected uint8 \[frames, height, width, 3\]"):
        detector.detect(np.zeros((4, 3, 8, 8), np.float32), 8)
    with pytest.raises(adatad.UserError, match="no video of subset 'test'"):
        adatad.score({}, "data/demo/annotations.json", subset="test")
