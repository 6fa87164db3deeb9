"""Submissions: the forms, what a check must find, and that nothing is written when something is wrong."""

import copy
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation.score_files import FileError
from adatad.evaluation.submission import (
    Expected,
    activitynet,
    ego4d,
    epic,
    expected_of,
    problems,
    read_ids,
    write_submission,
)

FOUND = {"v_a": [{"segment": [1.0, 2.5], "label": "run", "score": 0.5}], "v_b": []}
EXPECTED = Expected({"v_a": 10.0, "v_b": 5.0}, frozenset({"run", "jump"}))
IDS = {"cut": 7, "wash": 2, "knife": 4}


def test_forms():
    sent = activitynet(FOUND, "Kinetics")
    assert sent["version"] == "VERSION 1.3"
    assert sent["external_data"] == {"used": True, "details": "Kinetics"}
    assert sent["results"] == {"a": FOUND["v_a"], "b": []}
    assert problems("activitynet", sent, EXPECTED) == []
    moments = ego4d(FOUND)
    assert moments["challenge"] == "ego4d_moment_queries"
    assert moments["detect_results"] == moments["retrieve_results"] == FOUND
    assert problems("ego4d", moments, EXPECTED) == []


def test_verbs_and_nouns_that_overlap_become_actions():
    verbs = {
        "P01_11": [{"segment": [0, 4], "label": "cut", "score": 0.5}, {"segment": [8, 9], "label": "cut", "score": 1}]
    }
    nouns = {
        "P01_11": [
            {"segment": [2, 4], "label": "knife", "score": 0.5},
            {"segment": [3, 9], "label": "knife", "score": 1},
        ]
    }
    sent = epic(verbs, nouns, IDS, IDS)
    assert sent["results"] == {
        "P01_11": [{"verb": 7, "noun": 4, "action": "7,4", "score": 0.25, "segment": [1.0, 4.0]}]
    }
    assert (sent["version"], sent["challenge"]) == ("0.2", "action_detection")
    assert problems("epic", sent) == []
    assert problems("epic", sent, Expected({"P01_12": 9.0}, frozenset())) == [
        "results: video 'P01_11' isn't of the subset", "results: video 'P01_12' is missing",
    ]  # fmt: skip
    with pytest.raises(FileError, match="no number for 'cut'"):
        epic(verbs, nouns, {}, IDS)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 1)), max_size=20))
def test_actions_of_any_segments_are_submittable(drawn):
    items = [{"segment": sorted(pair), "label": "cut", "score": score} for *pair, score in drawn]
    sent = epic({"a": items}, {"a": items}, IDS, IDS)
    assert problems("epic", sent) == []
    scores = [item["score"] for item in sent["results"].get("a", [])]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) >= sum(pair["segment"][1] - pair["segment"][0] > 1e-6 for pair in items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("external_data"), "external_data: missing"),
        (lambda c: c.update(team="us"), "team: not part of the form"),
        (lambda c: c["results"].pop("b"), "video 'b' is missing"),
        (lambda c: c["results"].update(c=[]), "video 'c' isn't of the subset"),
        (lambda c: c["results"]["a"][0].update(label="swim"), "entry 0: 'swim' is no label"),
        (lambda c: c["results"]["a"][0].update(extra=1), "expected label, score and segment"),
        (lambda c: c["results"]["a"][0].update(segment=[3.0, 2.0]), "isn't a start and a later end"),
        (lambda c: c["results"]["a"][0].update(segment=[-1.0, 2.0]), "isn't a start and a later end"),
        (lambda c: c["results"]["a"][0].update(segment=[1.0, 10.2]), "ends after the video"),
        (lambda c: c["results"]["a"][0].update(score=float("nan")), "score nan"),
        (lambda c: c.update(results=[]), "expected detections by video"),
    ],
)
def test_every_problem_is_found(change, message):
    content = copy.deepcopy(activitynet(FOUND))
    change(content)
    found = problems("activitynet", content, EXPECTED)
    assert any(message in line for line in found), found


def test_nothing_is_written_when_something_is_wrong(tmp_path, run_command):
    detections, truth, output = (tmp_path / name for name in ("d.json", "gt.json", "out.json"))
    detections.write_text(json.dumps({"results": FOUND}))
    with pytest.raises(FileError, match=r"d\.json: can't be submitted as activitynet, 1 problems"):
        write_submission("activitynet", detections, output, expected=Expected({"v_a": 10.0}, EXPECTED.labels))
    assert list(tmp_path.iterdir()) == [detections]
    annotations = [{"segment": [0, 1], "label": "run"}]
    entries = {video: {"subset": "test", "duration": 10, "annotations": annotations} for video in FOUND}
    truth.write_text(json.dumps({"database": entries}))
    done = run_command(
        "submission", "ego4d", detections, "--output", output, "--annotations", truth, "--subset", "test"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["detect_results"] == FOUND


def test_a_video_that_one_of_two_models_has_not_seen_is_refused():
    assert epic({"a": []}, {"a": []}, IDS, IDS)["results"] == {"a": []}
    with pytest.raises(FileError, match="2 videos are in one of the two detections files alone: 'b', 'c';"):
        epic({"a": [], "b": []}, {"a": [], "c": []}, IDS, IDS)


def test_one_video_under_two_names_is_refused():
    with pytest.raises(FileError, match="1 videos are there under two names, such as 'v_a' and 'a'"):
        activitynet({"v_a": [], "a": []})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tcut\n1\twash\n", "line 2: the name 'wash' or the number 1 appears twice"),
        ("cut\n\ncut\n", "line 3: the name 'cut' or the number 1 appears twice"),
        ("x\tcut\n", "line 1: expected id<TAB>name"),
        (f"{'9' * 5000}\tcut\n", "line 1: expected id<TAB>name"),
    ],
)
def test_class_files_whose_numbers_cannot_be_trusted_are_refused(tmp_path, text, message):
    (tmp_path / "verbs.txt").write_text(text)
    with pytest.raises(FileError, match=message):
        read_ids(tmp_path / "verbs.txt")
    (tmp_path / "verbs.txt").write_text("1\tcut\n7\twash\n")
    assert read_ids(tmp_path / "verbs.txt") == {"1": 1, "7": 7, "cut": 1, "wash": 7}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"subset": "test", "duration": float("nan")}, "video 'v': expected \"duration\" in seconds"),
        ({"subset": "test", "duration": 10**400}, 'expected "duration" in seconds'),
        ({"subset": "test"}, 'expected "duration" in seconds'),
        ({"subset": "test", "duration": 3, "annotations": ["label"]}, "expected a list of annotations"),
        ({"subset": "val"}, "no video of subset 'test'; the file has 'val'"),
    ],
)
def test_what_a_submission_is_checked_against_is_checked_too(tmp_path, entry, message):
    (tmp_path / "gt.json").write_text(json.dumps({"database": {"v": entry}}))
    with pytest.raises(FileError, match=message):
        expected_of(tmp_path / "gt.json", "test")


def test_a_submission_never_replaces_what_it_is_made_of_or_a_device(tmp_path, run_command):
    detections = tmp_path / "d.json"
    detections.write_text(json.dumps({"results": FOUND}))
    before = detections.read_text()
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    (tmp_path / "real.json").write_text("old")
    # In the place of a device, which a defect would replace for the whole machine.
    os.mkfifo(tmp_path / "pipe")
    for output, message in (
        (detections, "is read here"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path, "a folder"),
        ("", ""),
    ):
        done = run_command("submission", "activitynet", detections, "--output", output)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert detections.read_text() == before
    assert run_command("submission", "activitynet", detections, "--output", tmp_path / "link.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["version"] == "VERSION 1.3"
    assert {path.name for path in tmp_path.iterdir()} == {"d.json", "link.json", "pipe", "real.json"}


def test_detections_that_stand_several_times_are_told_and_written(tmp_path, run_command):
    item = {"segment": [1.0, 2.0], "label": "run", "score": 0.5}
    (tmp_path / "found.json").write_text(json.dumps({"results": {"k0": [item] * 3}}))
    done = run_command("submission", "activitynet", tmp_path / "found.json", "--output", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "warning: 2 detections repeated" in done.stderr
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]["k0"]) == 3
