"""Fusion of detections files: what is drawn together, what is left, and files that can't be fused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.cli.main import main
from adatad.errors import UserError
from adatad.evaluation.fusion import fuse
from adatad.evaluation.postprocess import suppress_rounded
from adatad.spec.schema import NmsSpec, PostprocessSpec


def detection(start, end, score, label="a"):
    return {"segment": [start, end], "label": label, "score": score}


def rows(items):
    """Return starts, ends, scores and classes as numbers, float64 [n, 4]."""
    return np.array([(*i["segment"], i["score"], ord(i["label"])) for i in items], np.float64).reshape(-1, 4)


def in_any_order(table):
    return table[np.lexsort(table.T)]


@st.composite
def results_of_videos(draw, videos=2):
    """Detections of `videos` videos: no two have one score, so that the order of files decides nothing."""
    found = {}
    for number in range(videos):
        parts = draw(st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 20), st.sampled_from("ab")), max_size=8))
        scores = draw(st.lists(st.floats(0.01, 1), min_size=len(parts), max_size=len(parts), unique=True))
        found[f"v{number}"] = [
            detection(start, start + length, score, label)
            for (start, length, label), score in zip(parts, scores, strict=True)
        ]
    # Every file has a label of the others.
    found["all"] = [detection(0, 1, draw(st.floats(0.01, 1)), label) for label in "ab"]
    return found


def test_borders_lie_between_by_score_and_the_better_score_stays():
    fused = fuse([{"v": [detection(10, 20, 0.9)]}, {"v": [detection(11, 19, 0.3)]}]).results["v"]
    np.testing.assert_allclose(rows(fused), rows([detection(10.25, 19.75, 0.9)]), atol=1e-6)


def test_weights_move_borders_and_lower_scores():
    files = [{"v": [detection(10, 20, 0.8)]}, {"v": [detection(11, 19, 0.8), detection(50, 60, 0.8)]}]
    fused = fuse(files, weights=[0.6, 0.2]).results["v"]
    assert [item["segment"] for item in fused] == [[10.25, 19.75], [50.0, 60.0]]
    assert [item["score"] for item in fused] == pytest.approx([0.8, 0.8 / 3], abs=1e-6)


def test_a_group_has_one_detection_of_each_file():
    first = {"v": [detection(10, 20, 0.9), detection(10.1, 20, 0.8)]}
    assert len(fuse([first, {"v": [detection(10, 20, 0.7)]}], nms=None).results["v"]) == 2


def test_other_classes_and_detections_apart_are_not_drawn_together():
    first, second = {"v": [detection(10, 20, 0.9), detection(0, 5, 0.5, "b")]}, {"v": [detection(16, 26, 0.8)]}
    assert len(fuse([first, second], nms=None).results["v"]) == 3


def test_a_video_of_one_file_keeps_its_scores_and_is_named():
    files = [{"v": [detection(0, 1, 0.5)], "w": [detection(0, 1, 0.4)]}, {"v": [detection(0, 1, 0.5)]}]
    fused = fuse(files, weights=[1, 4])
    assert fused.videos_of_some == ["w"]
    assert fused.results["w"] == [detection(0.0, 1.0, 0.4)]


@given(results_of_videos())
def test_a_file_fused_with_itself_is_that_file_after_nms_once_more(found):
    nms = NmsSpec(min_score=0)
    fused = fuse([found, found], nms=nms).results
    for video, items in found.items():
        # By name, since NMS ranks classes in the order of their first appearance.
        alone = suppress_rounded(sorted(items, key=lambda item: item["label"]), PostprocessSpec(nms=nms))
        np.testing.assert_allclose(rows(fused[video]), rows(alone), atol=0.006)


@given(results_of_videos())
def test_a_file_fused_with_itself_without_nms_keeps_its_order(found):
    fused = fuse([found, found], nms=None).results
    for video, items in found.items():
        expected = sorted(items, key=lambda item: -item["score"])
        np.testing.assert_allclose(rows(fused[video]), rows(expected), atol=0.001)


@given(st.permutations(range(3)), st.data())
def test_the_order_of_files_with_their_weights_changes_nothing(order, data):
    files = [data.draw(results_of_videos()) for _ in order]
    weights = data.draw(st.lists(st.sampled_from([0.5, 0.7, 0.9, 1.1, 1.3]), min_size=3, max_size=3, unique=True))
    one = fuse(files, weights).results
    other = fuse([files[number] for number in order], [weights[number] for number in order]).results
    assert one.keys() == other.keys()
    for video, items in one.items():
        np.testing.assert_allclose(in_any_order(rows(items)), in_any_order(rows(other[video])), atol=0.0015)


@given(results_of_videos(), results_of_videos(), st.floats(0.01, 1))
def test_scores_stay_in_range_and_borders_within_those_of_the_files(first, second, group_tiou):
    fused = fuse([first, second], [0.3, 0.9], group_tiou=group_tiou).results
    for video, items in fused.items():
        for item in items:
            own = [i["segment"] for i in (*first[video], *second[video]) if i["label"] == item["label"]]
            assert 0 <= item["score"] <= 1
            for place in (0, 1):
                borders = [segment[place] for segment in own]
                assert min(borders) - 0.001 <= item["segment"][place] <= max(borders) + 0.001


GOOD = {"v": [detection(0, 1, 0.5)]}


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([GOOD], {}, "two files or more"),
        ([GOOD, GOOD], {"weights": [1]}, "expected 2, one a file"),
        ([GOOD, GOOD], {"weights": [1, 0]}, "leave a file out"),
        ([GOOD, GOOD], {"weights": [1, float("nan")]}, "got nan"),
        ([GOOD, GOOD], {"group_tiou": 0}, "above 0"),
        ([GOOD, {"w": GOOD["v"]}], {}, "file 1: has no video in common"),
        ([GOOD, {}], {}, "file 2: has no video in common .*here none; there v"),
        ([GOOD, {"v": [detection(0, 1, 0.5, "b")]}], {}, "no label in common .*here a; there b"),
        ([GOOD, GOOD, {"v": []}], {"names": ["x", "y", "z"]}, "z: has no label in common .*here none"),
        ([GOOD, {"v": [detection(0, 1, -0.5)]}], {}, "video 'v': the score -0.5 is negative"),
    ],
)
def test_what_cannot_be_fused_is_named(files, options, message):
    with pytest.raises(UserError, match=message):
        fuse(files, **options)


def write(path, results):
    path.write_text(json.dumps({"results": results}))
    return str(path)


def test_the_command_fuses_runs_and_files(tmp_path, capsys):
    run = tmp_path / "a run"
    run.mkdir()
    write(run / "detections.json", {**GOOD, "ü": []})
    other, output = write(tmp_path / "other.json", GOOD), tmp_path / "new folder" / "fused.json"
    assert main(["fuse", str(run), other, "--weights", "2", "1", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["results"] == {**GOOD, "ü": []}
    said = capsys.readouterr()
    assert "1 detections in 2 videos, from 2 files" in said.out
    assert "1 of 2 videos are in some of the files only" in said.err


@pytest.mark.parametrize("text", ["", "[]", '{"results": 3}', '{"results": {"v": [{"segment": [0, NaN]}]}}', "\x00"])
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path, capsys, text):
    good, bad, output = write(tmp_path / "good.json", GOOD), tmp_path / "bad.json", tmp_path / "new" / "fused.json"
    bad.write_text(text)
    assert main(["fuse", good, str(bad), "--output", str(output)]) == 2
    assert "bad.json" in capsys.readouterr().err
    assert not output.parent.exists()


def test_no_file_is_written_over_an_input(tmp_path, capsys):
    paths = [write(tmp_path / name, GOOD) for name in ("one.json", "two.json")]
    assert main(["fuse", *paths, "--output", paths[1]]) == 2
    assert "is read here" in capsys.readouterr().err
    assert main(["fuse", str(tmp_path), paths[1], "--output", str(tmp_path / "x.json")]) == 2
    assert "detections.json" in capsys.readouterr().err
