"""adatad explain: of a run and of files, on one screen and as JSON, and what it refuses."""

import json

import pytest
from small_data_set import database, write_annotations, write_spec

LINES_OF_A_SCREEN = 45


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run directory, and its detections and annotations as files of their own."""
    monkeypatch.chdir(tmp_path)
    write_annotations(tmp_path, database())
    run = tmp_path / "runs with a blank" / "id0"
    run.mkdir(parents=True)
    write_spec(run, annotations=tmp_path / "annotations.json")
    found = {"k2": [{"segment": [2, 5], "label": "stir", "score": 0.9}], "k3": [], "k9": []}
    for path in (run / "detections.json", tmp_path / "found.json"):
        path.write_text(json.dumps({"results": found}))
    return tmp_path


def test_a_run_is_explained_as_its_files_are(folder, run_command):
    done = run_command("explain", folder / "runs with a blank" / "id0", "--json")
    assert done.returncode == 0, done.stderr
    of_run, of_files = (
        json.loads(done.stdout),
        json.loads(run_command("explain", "found.json", "annotations.json", "--json").stdout),
    )
    # "stir" is found, the "pour" of k3 isn't.
    assert of_run["average_mAP"]["value"] == of_files["average_mAP"]["value"] == 0.5
    assert of_run["sensitivity"] == of_files["sensitivity"], "coverage too, which needs durations"
    assert of_run["classes"]["stir"]["bouts"]["detected"] == 1


def test_the_text_is_one_screen_with_the_sentences_first(folder, run_command):
    done = run_command("explain", "found.json", "annotations.json")
    lines = done.stdout.splitlines()
    assert len(lines) < LINES_OF_A_SCREEN
    assert lines[0].startswith("average mAP 50.0 (")
    assert "1. Missed instances cost 50.0 points" in done.stdout
    assert all(name in done.stdout for name in ("double detection", "XL", "stir", "pour"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["found.json"], "no run directory"),
        (["found.json", "annotations.json", "--subset", "x"], "no video of subset 'x'"),
        (["found.json", "annotations.json", "--tiou", "0.5", "0.5"], "each once"),
        (["found.json", "annotations.json", "--tiou", "0"], "above 0"),
        (["annotations.json", "found.json"], "wrong order"),
        (["runs with a blank/id0", "--subset", "x"], "--subset: a run is scored as its spec says"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_line(folder, run_command, words, said):
    done = run_command("explain", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_run_without_detections_is_refused_and_the_file_named(folder, run_command):
    (folder / "runs with a blank" / "id0" / "detections.json").unlink()
    done = run_command("explain", "runs with a blank/id0")
    assert done.returncode == 2
    assert "detections.json" in done.stderr
