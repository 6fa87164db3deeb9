"""Submissions: the forms, what a check must find, and that nothing is written when something is wrong."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation.files import FileError
from adatad.evaluation.submission import Expected, activitynet, ego4d, epic, problems, write_submission

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
    with pytest.raises(FileError, match="no number for cut"):
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


def test_nothing_is_written_when_something_is_wrong(tmp_path, run_tool):
    detections, truth, output = (tmp_path / name for name in ("d.json", "gt.json", "out.json"))
    detections.write_text(json.dumps({"results": FOUND}))
    with pytest.raises(FileError, match=r"d\.json: can't be submitted as activitynet, 1 problems"):
        write_submission("activitynet", detections, output, expected=Expected({"v_a": 10.0}, EXPECTED.labels))
    assert list(tmp_path.iterdir()) == [detections]
    annotations = [{"segment": [0, 1], "label": "run"}]
    entries = {video: {"subset": "test", "duration": 10, "annotations": annotations} for video in FOUND}
    truth.write_text(json.dumps({"database": entries}))
    done = run_tool("submission.py", "ego4d", detections, output, "--annotations", truth, "--subset", "test")
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["detect_results"] == FOUND
