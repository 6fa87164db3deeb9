"""mAP against hand-computed figures, a plain second way of matching, and the reference's numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad.evaluation.detection_map import average_precision, evaluate, interpolated_area

TIOUS = (0.3, 0.5, 0.7)


def truth(**videos):
    database = {
        name: {"subset": "val", "annotations": [{"segment": [s, e], "label": label} for s, e, label in items]}
        for name, items in videos.items()
    }
    return {"database": database}


def found(**videos):
    results = {
        name: [{"segment": [s, e], "label": label, "score": score} for s, e, label, score in items]
        for name, items in videos.items()
    }
    return {"results": results}


def test_perfect_detections_score_one():
    result = evaluate(truth(v=[(0, 5, "a"), (7, 9, "b")]), found(v=[(0, 5, "a", 0.4), (7, 9, "b", 0.2)]), "val", TIOUS)
    assert result.average_mAP == 1.0
    assert result.ap_per_class == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert (result.num_ground_truth, result.num_detections) == (2, 2)


def test_precision_is_interpolated():
    # true, false, true of four: recall steps of 1/4 at precisions 1 and 2/3.
    assert interpolated_area(np.array([True, False, True]), 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)


def test_an_instance_is_found_once_and_the_next_best_may_be_taken():
    ground = truth(v=[(0, 10, "a"), (1, 11, "a")])
    twice = found(v=[(0, 10, "a", 0.9), (0, 10, "a", 0.8), (0, 10, "a", 0.7)])
    assert evaluate(ground, twice, "val", (0.5,)).average_mAP == 1.0
    assert evaluate(ground, twice, "val", (0.95,)).average_mAP == 0.5


def test_what_counts_as_false_and_what_does_not_count():
    ground = truth(v=[(0, 10, "a")], w=[(0, 10, "b")])
    right = (0, 10, "a", 0.5)
    assert evaluate(ground, found(v=[(50, 60, "a", 0.9), right]), "val", (0.5,)).ap_per_class["a"] == [0.5]
    assert evaluate(ground, found(v=[right], w=[(0, 10, "a", 0.9)]), "val", (0.5,)).ap_per_class["a"] == [0.5]
    assert evaluate(ground, found(v=[right], other=[(0, 10, "a", 0.9)]), "val", (0.5,)).ap_per_class["a"] == [0.5]
    assert evaluate(ground, found(v=[right, (0, 10, "c", 0.9)]), "val", (0.5,)).ap_per_class["a"] == [1.0]


def test_of_equal_scores_the_later_one_comes_first():
    ground = truth(v=[(0, 10, "a")])
    right, wrong = (0, 10, "a", 0.5), (50, 60, "a", 0.5)
    assert evaluate(ground, found(v=[wrong, right]), "val", (0.5,)).average_mAP == 1.0
    assert evaluate(ground, found(v=[right, wrong]), "val", (0.5,)).average_mAP == 0.5


def test_annotations_that_are_left_out():
    ground = truth(v=[(0, 10, "a"), (0.0005, 10, "a"), (3, 3, "a"), (5, 4, "a"), (20, 30, "Ambiguous")])
    result = evaluate(ground, found(v=[(0, 10, "a", 1.0)]), "val", (0.5,))
    assert result.num_ground_truth == 1
    assert list(result.ap_per_class) == ["a"]
    kept = evaluate(ground, found(v=[(0, 10, "a", 1.0)]), "val", (0.5,), keep_ambiguous=True)
    assert kept.ap_per_class == {"a": [1.0], "Ambiguous": [0.0]}


instances = st.lists(st.tuples(st.sampled_from("uvw"), st.integers(0, 20), st.integers(1, 10)), min_size=1, max_size=8)
guesses = st.lists(st.tuples(st.sampled_from("uvwx"), st.integers(0, 20), st.integers(1, 10)), max_size=15)


def plain_average_precision(instances, guesses, threshold):
    """Sorted lists, one match after the other, and a sum over recall steps."""
    free = list(instances)
    hits = []
    for video, start, end, _ in sorted(guesses, key=lambda guess: -guess[3]):
        overlaps = []
        for item in free:
            if item[0] == video:
                intersection = max(0, min(end, item[2]) - max(start, item[1]))
                overlaps.append((intersection / (end - start + item[2] - item[1] - intersection), item))
        best = max(overlaps, default=(0, None), key=lambda pair: pair[0])
        hits.append(best[0] >= threshold)
        if hits[-1]:
            free.remove(best[1])
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precision[k:]) for k in range(len(hits)) if hits[k]) / len(instances)


@settings(deadline=None)
@given(instances, guesses, st.sampled_from(TIOUS), st.randoms())
def test_against_a_plain_second_way(instances, guesses, threshold, random):
    # Instances of one video that don't overlap one another equally: ties of overlap may be matched either way.
    items = list({(video, start): (video, start, start + length) for video, start, length in instances}.values())
    detections = [(v, float(s), float(s + n), 1 - i / 100) for i, (v, s, n) in enumerate(guesses)]
    by_video: dict[str, list] = {}
    for video, start, end in items:
        by_video.setdefault(video, []).append((start, end))
    arrays = {video: np.array(segments, float) for video, segments in by_video.items()}
    expected = plain_average_precision(items, detections, threshold)
    if len(items) == len(by_video):
        assert average_precision(arrays, detections, [threshold])[0] == pytest.approx(expected)
    shuffled = random.sample(detections, len(detections))
    assert average_precision(arrays, shuffled, TIOUS) == pytest.approx(average_precision(arrays, detections, TIOUS))


def test_cases_of_the_reference(shared_folder):
    content = json.loads((shared_folder / "golden" / "data" / "map.json").read_text())
    for case in content["cases"] + content["tie_cases"]:
        result = evaluate(
            case["ground_truth"], case["detections"], case["subset"], case["tious"], case.get("blocked_videos") or (),
            keep_ambiguous=True,
        )  # fmt: skip
        expected = case["tie_orders"]["later_first"] if "tie_orders" in case else case["expected"]
        metrics = expected.get("metrics", expected)
        assert result.average_mAP == pytest.approx(metrics["average_mAP"], abs=1e-6), case["name"]
        per_class = np.array(list(result.ap_per_class.values())).T
        np.testing.assert_allclose(per_class, expected["ap_per_class"], atol=1e-6, err_msg=case["name"])
        if "num_gt" in expected:
            assert (result.num_ground_truth, result.num_detections) == (expected["num_gt"], expected["num_pred"])


def test_scoring_imports_no_torch():
    code = "import sys, adatad.evaluation.files, adatad.evaluation.nms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
