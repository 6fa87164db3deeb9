"""mAP and recall@kx against hand-computed figures and a plain second way of matching."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation import detection_map
from adatad.evaluation.detection_map import evaluate, interpolated_area

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


# Few places and scores, so that many are equal.
segments = st.tuples(st.sampled_from("uvw"), st.integers(0, 12), st.integers(1, 8), st.sampled_from("ab"))
guesses = st.lists(st.tuples(segments, st.integers(1, 6)), max_size=25)


def plain_tiou(a, b):
    intersection = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return intersection / (a[1] - a[0] + b[1] - b[0] - intersection)


def plain_average_precision(instances, detections, threshold):
    """One class. instances, detections: (video, start, end[, score]); one match after the other, then a sum."""
    free = dict(enumerate(instances))
    hits = []
    for video, *segment, _ in sorted(reversed(detections), key=lambda found: -found[3]):
        own = [(plain_tiou(segment, item[1:]), n) for n, item in free.items() if item[0] == video]
        overlap, best = max(own, default=(0, None))
        hits.append(overlap >= threshold)
        if hits[-1]:
            del free[best]
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precision[k:]) for k in range(len(hits)) if hits[k]) / len(instances)


def plain_recall(instances, detections, threshold, k):
    """Return the recall of the k x n best detections of each video, for one class."""
    found = 0
    for video in {item[0] for item in instances}:
        own = [item[1:] for item in instances if item[0] == video]
        ranked = sorted(reversed([d for d in detections if d[0] == video]), key=lambda d: -d[3])
        best = [d[1:3] for d in ranked[: k * len(own)]]
        found += sum(any(plain_tiou(segment, d) >= threshold for d in best) for segment in own)
    return found / len(instances)


@given(st.lists(segments, min_size=1, max_size=12), guesses)
def test_against_a_plain_second_way(instances, guesses):
    wanted, made = {"u": [], "v": [], "w": []}, {"w": [], "x": [], "u": [], "v": []}
    for video, start, length, label in dict.fromkeys(instances):
        wanted[video].append((start, start + length, label))
    for (video, start, length, label), score in guesses:
        made["x" if score == 1 else video].append((start, start + length, label, score / 10))
    result = evaluate(truth(**wanted), found(**made), "val", TIOUS, top_k=(1, 3))
    for label, values in result.ap_per_class.items():
        items = [(video, s, e) for video, own in wanted.items() for s, e, name in own if name == label]
        detections = [(video, s, e, x) for video, own in made.items() for s, e, name, x in own if name == label]
        assert values == pytest.approx([plain_average_precision(items, detections, tiou) for tiou in TIOUS])
        recalls = [[plain_recall(items, detections, tiou, k) for k in (1, 3)] for tiou in TIOUS]
        assert np.array(result.recall_per_class[label]) == pytest.approx(np.array(recalls))


def test_pairs_and_matches_may_be_computed_in_shares(monkeypatch):
    draw = np.random.default_rng(0)
    wanted = {v: [(s, s + 3, "a") for s in draw.integers(0, 20, 6).tolist()] for v in "uvw"}
    made = {v: [(s, s + 3, "a", x) for s, x in zip(draw.uniform(0, 20, 9), draw.random(9), strict=True)] for v in "wux"}
    whole = evaluate(truth(**wanted), found(**made), "val", TIOUS)
    monkeypatch.setattr(detection_map, "PAIRS_AT_A_TIME", 7)
    monkeypatch.setattr(detection_map, "DETECTIONS_AT_A_TIME", 2)
    assert evaluate(truth(**wanted), found(**made), "val", TIOUS) == whole
    assert whole.average_mAP > 0


def test_recall_counts_what_the_best_few_find():
    ground = truth(v=[(0, 10, "a"), (20, 30, "a")], w=[(0, 10, "a")], x=[(0, 1, "b")])
    made = found(v=[(0, 10, "a", 0.1), (50, 60, "a", 0.9), (20, 30, "a", 0.8)], w=[(5, 15, "a", 0.5)])
    result = evaluate(ground, made, "val", (0.3, 0.5), top_k=(1, 2))
    # 2 x n = 4 detections of v are let in, its third one only then; class b has no detection.
    assert result.recall_per_class["a"] == [pytest.approx([2 / 3, 1.0]), pytest.approx([1 / 3, 2 / 3])]
    assert result.recall == {0.3: pytest.approx({1: 1 / 3, 2: 1 / 2}), 0.5: pytest.approx({1: 1 / 6, 2: 1 / 3})}
    assert result.summary()["recall"]["0.5"] == pytest.approx({"1": 1 / 6, "2": 1 / 3})
    assert "recall" not in evaluate(ground, made, "val", (0.5,)).summary()


def test_blocked_videos_are_nowhere_and_others_are_named():
    ground = truth(v=[(0, 10, "a")], w=[(0, 10, "a")])
    ground["database"]["t"] = {"subset": "train", "annotations": []}
    made = found(v=[(0, 10, "a", 0.5)], w=[(50, 60, "a", 0.9)], t=[(0, 1, "a", 0.9)], unknown=[(0, 1, "a", 0.9)], e=[])
    result = evaluate(ground, made, "val", (0.5,), blocked_videos=["w"])
    assert (result.num_ground_truth, result.num_detections) == (1, 3)
    assert result.average_mAP == pytest.approx(1 / 3)
    assert result.other_videos == ("t", "unknown")
    assert evaluate(ground, made, ("val", "train"), (0.5,)).other_videos == ("unknown",)


def test_scoring_imports_no_torch():
    code = "import sys, adatad.evaluation.score_files, adatad.evaluation.nms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_scoring_starts_without_a_compiler():
    # numba takes half a second to import, which scoring a file has no use for.
    code = "import sys, adatad.evaluation.score_files; sys.exit('numba' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
