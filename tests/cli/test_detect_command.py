"""`adatad detect` from its arguments to its files, in one process and in two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timed_video import bright_from, even, write_timed
from untrained_model import write_model

import adatad
from adatad.convert.opentad_checkpoint import opentad_state
from adatad.detect import detect_list
from adatad.detect.output_folder import FURTHER_FORMS


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model and three small videos."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "m.safetensors", (0.5, 0.6))
    (folder / "videos").mkdir()
    for name, seconds in (("v1", 3), ("v 2's", 4), ("v10", 2)):
        write_timed(folder / "videos" / f"{name}.mp4", even(10, seconds), bright_from(1, seconds - 1))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    """A current folder of the test's own, in which the model and the videos lie."""
    (tmp_path / "m.safetensors").symlink_to(place / "m.safetensors")
    (tmp_path / "videos").symlink_to(place / "videos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(path: Path) -> list[float]:
    (found,) = json.loads(path.read_text())["results"].values()
    return [one["score"] for one in found]


def test_one_video_is_a_table(here, run_command):
    run = run_command("detect", "m.safetensors", "videos/v1.mp4", "--threshold", 0, "--top-k", 3, "--classes", "stir")
    assert run.returncode == 0, run.stderr
    rows = [line for line in run.stdout.splitlines() if "stir" in line]
    assert len(rows) == 3
    assert "pour" not in run.stdout
    assert "0:0" in rows[0]
    nothing = run_command("detect", "m.safetensors", "videos/v1.mp4", "--threshold", 1)
    assert "nothing found above the threshold; the best score is 0." in nothing.stdout


def test_a_folder_is_a_file_for_each_video_and_a_page(here, run_command):
    run = run_command("detect", "m.safetensors", "videos", "--output", "out", "--formats", "csv, srt")
    assert run.returncode == 0, run.stderr
    names = [f"{name}{ending}" for name in ("v1", "v 2's", "v10") for ending in (".json", ".csv", ".srt")]
    assert sorted(path.name for path in (here / "out").iterdir()) == sorted([*names, "detections.html"])
    assert "3 videos: 3 done; 9 s of video in" in run.stdout
    assert "out/detections.html" in run.stdout
    (found,) = json.loads((here / "out" / "v1.json").read_text())["results"].values()
    least = {"pour": 0.5, "stir": 0.6}
    assert found, "the model's own thresholds are the default"
    assert all(one["score"] >= least[one["label"]] for one in found)
    before = (here / "out" / "v1.json").read_bytes()
    again = run_command("detect", "m.safetensors", "videos", "--output", "out", "--threshold", "best")
    assert "3 videos: 0 done, 3 done before" in again.stdout
    assert (here / "out" / "v1.json").read_bytes() == before


def test_what_is_done_is_not_done_again_unless_forced(here, run_command, monkeypatch):
    run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", "out", "--threshold", 0)
    loaded = []
    load = detect_list.load_detector
    monkeypatch.setattr(detect_list, "load_detector", lambda *args: loaded.append(1) or load(*args))
    for options in (["--threshold", 0.5], ["--top-k", 1], ["--classes", "pour,stir"], ["--formats", "vtt"]):
        run = run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", "out", *options)
        assert run.returncode == 0, run.stderr
    assert not loaded, "another selection or form of what is found takes no model"
    assert all(score >= 0.5 for score in scores(here / "out" / "v10.json"))
    assert (here / "out" / "v10.vtt").exists()
    run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", "out", "--force")
    assert loaded
    refused = run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", "out", "--windows")
    assert (refused.returncode, "v10.json: was made without --windows" in refused.stderr) == (2, True)


def test_names_of_any_kind_go_through_all_forms(here, place, run_command):
    names = ["-dash", "a:b", 'it\'s "here"', "two\nlines", "ünï 視頻", "by\udcfftes", "#1", "a.via"]
    (here / "odd").mkdir()
    for name in names:
        shutil.copy(place / "videos" / "v10.mp4", here / "odd" / f"{name}.mp4")
    forms = [form for form in FURTHER_FORMS if form != "tsv"]
    run = run_command("detect", "m.safetensors", "odd", "--output", "out", "--formats", ",".join(forms))
    assert run.returncode == 0, run.stderr
    written = [path.name for path in (here / "out").iterdir()]
    assert len(written) == len(names) * (1 + len(forms)) + 1
    for name in names[:-1]:
        assert f"{name}.json" in written
        assert f"{name}.srt" in written


@pytest.fixture
def broken(here, place) -> Path:
    """A folder with one good video among broken ones."""
    folder = here / "some"
    folder.mkdir()
    (folder / "good.mp4").symlink_to(place / "videos" / "v10.mp4")
    whole = (place / "videos" / "v1.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("<html>log in</html>")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "list.txt").write_text("\n".join(["gone.mp4", "good.mp4", "cut.mp4", "empty.mp4", "text.mp4"]))
    return folder


def test_broken_videos_are_reported_and_the_others_done(broken, run_command):
    run = run_command("detect", "m.safetensors", "some/list.txt", "--output", "out")
    assert run.returncode == 1, run.stderr
    assert "5 videos: 1 done, 4 failed" in run.stdout
    for name, reason in (
        ("gone", "no such file"), ("cut", "can't be opened as a video"), ("empty", "0 bytes"), ("text", "an HTML page"),
    ):  # fmt: skip
        line = next(line for line in run.stdout.splitlines() if f"some/{name}.mp4" in line)
        assert reason in line
        assert f"failed: some/{name}.mp4: " in run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["detections.html", "good.json"]
    again = run_command("detect", "m.safetensors", "some/list.txt", "--output", "out")
    assert (again.returncode, "5 videos: 0 done, 1 done before, 4 failed" in again.stdout) == (1, True)


def test_what_was_found_before_a_video_broke_is_shown_no_more(here, place, run_command):
    shutil.copy(place / "videos" / "v10.mp4", here / "live.mp4")
    arguments = ("detect", "m.safetensors", "live.mp4", "--output", "out", "--threshold", 0, "--json")
    assert json.loads(run_command(*arguments).stdout)["results"]["live"]
    (here / "live.mp4").write_bytes(b"")
    run = run_command(*arguments)
    assert (run.returncode, json.loads(run.stdout)["results"]) == (1, {})


def test_json_is_one_document_and_nothing_else(broken, run_command, monkeypatch):
    run = run_command("detect", "m.safetensors", "some", "videos/v1.mp4", "--json", "--threshold", 0)
    assert run.returncode == 1
    results = json.loads(run.stdout)["results"]
    assert list(results) == ["good", "v1"]
    assert all(found["label"] in ("pour", "stir") for video in results.values() for found in video)
    run_command("detect", "m.safetensors", "some", "videos/v1.mp4", "--output", "out", "--threshold", 0)
    beside = run_command(
        "detect", "m.safetensors", "some", "videos/v1.mp4", "--output", "out", "--threshold", 0, "--json"
    )
    assert json.loads(beside.stdout)["results"] == results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["videos"], "3 videos: --output FOLDER writes what is found, --json prints it"),
        (["videos", "--output", "m.safetensors"], "m.safetensors: is no folder"),
        (["videos", "--output", "out", "--formats", "srtt"], "there is no format 'srtt'; did you mean srt?"),
        (["videos", "--formats", "srt"], "--formats: only with --output"),
        (["videos", "--output", "out", "--classes", "puor,stir"], "no class 'puor'; did you mean pour?"),
        (["videos", "--output", "out", "--classes", ""], "knows no class ''; it knows pour, stir"),
        (["videos", "--output", "out", "--threshold", "nan"], "expected a number from 0 to 1, or best, got 'nan'"),
        (["videos", "--output", "out", "--threshold", "bets"], "expected a number from 0 to 1, or best, got 'bets'"),
        (["videos", "--output", "out", "--top-k", "0"], "expected a whole number from 1"),
        (["nothing.mp4"], "nothing.mp4: isn't there"),
        (
            ["videos", "--output", "out", "--spec", "demo/tia"],
            "holds the spec that it was trained by; leave --spec out",
        ),
        (["videos", "--output", "out", "--ground-truth", "none.json"], "none.json"),
        (["videos", "--output", "out", "--ground-truth", "none.json", "--no-page"], "leave --no-page out"),
    ],
)
def test_mistakes_are_said_before_the_model_is_loaded(here, run_command, monkeypatch, arguments, message):
    monkeypatch.setattr(detect_list, "load_detector", lambda *args: pytest.fail("the model was loaded"))
    run = run_command("detect", "m.safetensors", *arguments)
    assert run.returncode == 2, run.stderr
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(here.glob("out/*"))


def test_a_model_without_thresholds_says_so(here, run_command):
    write_model(here / "plain.safetensors")
    run = run_command("detect", "plain.safetensors", "videos/v1.mp4")
    assert "plain.safetensors has no thresholds of its own: 0.3 for all classes" in run.stderr
    refused = run_command("detect", "plain.safetensors", "videos/v1.mp4", "--threshold", "best")
    assert (refused.returncode, "has no thresholds of its own" in refused.stderr) == (2, True)
    for name in ("videos/v1.mp4", "nothing"):
        assert run_command("detect", name, "videos/v1.mp4").returncode == 2


def test_a_checkpoint_of_opentad_detects_as_the_model_file_by_its_spec(here, run_command):
    detector = adatad.load_detector(here / "m.safetensors", device="cpu")
    state = opentad_state(detector.module, 100.0)
    torch.save({"epoch": 1, "state_dict": state, "state_dict_ema": state}, here / "epoch.pth")
    spec = (here / "m.safetensors").resolve().with_suffix(".yaml").read_text()
    (here / "spec.yaml").write_text(spec.replace("  size_pixels: 32", "  size_pixels: 32\n  classes: [pour, stir]"))
    alone = run_command("detect", "epoch.pth", "videos/v1.mp4", "--json")
    assert (alone.returncode, "name it with --spec" in alone.stderr) == (2, True)
    found = {}
    for model, options in (("m.safetensors", []), ("epoch.pth", ["--spec", "spec.yaml"])):
        run = run_command("detect", model, "videos/v1.mp4", "--json", "--threshold", 0.5, *options)
        assert run.returncode == 0, run.stderr
        found[model] = json.loads(run.stdout)
    assert found["m.safetensors"] == found["epoch.pth"]
    assert found["epoch.pth"]["results"]["v1"]


def test_a_page_of_somebody_else_is_not_replaced(here, run_command):
    (here / "detections.html").write_text("<!DOCTYPE html><title>mine</title>")
    run = run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", ".")
    assert (run.returncode, "detections.html: wasn't written by adatad detect" in run.stderr) == (2, True)
    assert run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", ".", "--no-page").returncode == 0
    assert (here / "detections.html").read_text().endswith("<title>mine</title>")
    (here / "detections.html").unlink()
    for _ in range(2):
        assert run_command("detect", "m.safetensors", "videos/v10.mp4", "--output", ".").returncode == 0


def test_the_page_has_the_ground_truth_of_annotated_videos(here, run_command):
    truth = {"database": {"v1": {"subset": "x", "annotations": [{"segment": [1, 2], "label": "pour <b>"}]}}}
    (here / "truth.json").write_text(json.dumps(truth))
    run = run_command("detect", "m.safetensors", "videos", "--output", "out", "--ground-truth", "truth.json")
    assert run.returncode == 0, run.stderr
    page = (here / "out" / "detections.html").read_text()
    assert "pour \\u003cb" in page
    assert "pour <b>" not in page
    (here / "truth.csv").write_text("video,start,end,label\nv1,x,2,pour\n")
    bad = run_command("detect", "m.safetensors", "videos", "--output", "out", "--ground-truth", "truth.csv")
    assert (bad.returncode, "truth.csv" in bad.stderr) == (2, True)


@pytest.mark.slow
def test_two_ranks_do_each_video_once_with_the_results_of_one(broken, run_command):
    command = ["detect", "m.safetensors", "videos", "some/good.mp4", "some/text.mp4", "--threshold", "0", "--output"]
    assert run_command(*command, "one").returncode == 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "adatad"]
    run = subprocess.run([*torchrun, *command, "two"], capture_output=True, text=True)
    assert run.returncode != 0, "a video of some rank couldn't be read"
    assert "4 videos: 3 done, 1 failed" in run.stdout, run.stderr
    assert run.stderr.count("failed: some/text.mp4: ") == 1
    names = sorted(path.name for path in Path("one").iterdir())
    assert names == sorted(path.name for path in Path("two").iterdir())
    for name in names:
        if name.endswith(".json"):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
