"""Curves of precision, recall and F1 by score, and thresholds with the best F1: by hand, and against a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.errors import UserError
from adatad.evaluation.thresholds import best_threshold, best_thresholds, score_curve, score_curves


def truth(videos, subset="validation"):
    """{video: [(start, end, label)]} as an annotation file's content."""
    return {
        "database": {
            video: {"subset": subset, "annotations": [{"segment": [a, b], "label": name} for a, b, name in items]}
            for video, items in videos.items()
        }
    }


def found(videos):
    """{video: [(start, end, label, score)]} as a detections file's content."""
    return {
        "results": {
            video: [{"segment": [a, b], "label": name, "score": score} for a, b, name, score in items]
            for video, items in videos.items()
        }
    }


def test_a_curve_has_what_remains_above_each_score():
    annotated = truth({"v": [(0, 10, "a"), (20, 30, "a"), (40, 50, "a")]})
    detected = found({"v": [(0, 10, "a", 0.9), (60, 70, "a", 0.8), (20, 30, "a", 0.7), (0, 10, "a", 0.6)]})
    curve = score_curves(annotated, detected, "validation").by_class["a"]
    assert curve.scores.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.kept.tolist() == [1, 2, 3, 4]
    # The fourth finds an instance that the first has taken.
    assert curve.hits.tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(curve.f1, [1 / 2, 2 / 5, 2 / 3, 4 / 7])
    best = best_threshold(curve)
    assert (best.threshold, best.precision, best.recall, best.f1) == pytest.approx((0.65, 2 / 3, 2 / 3, 2 / 3))


def test_detections_of_equal_scores_are_kept_together_or_not_at_all():
    curve = score_curve(np.array([0.5, 0.5, 0.9]), np.array([True, False, True]), 4)
    assert (curve.scores.tolist(), curve.kept.tolist(), curve.hits.tolist()) == ([0.9, 0.5], [1, 3], [1, 2])


def test_of_equal_f1_the_highest_threshold_is_taken():
    curve = score_curve(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, False, True]), 2)
    assert curve.f1[0] == curve.f1[3] == pytest.approx(2 / 3)
    assert best_threshold(curve).threshold == pytest.approx(0.85)


def test_the_tiou_decides_what_is_right():
    annotated, detected = truth({"v": [(0, 10, "a")]}), found({"v": [(0, 6, "a", 0.5)]})
    assert score_curves(annotated, detected, "validation", 0.6).overall.hits.tolist() == [1]
    assert score_curves(annotated, detected, "validation", 0.61).overall.hits.tolist() == [0]
    for wrong in (0, -1, 1.1, math.nan):
        with pytest.raises(UserError, match="expected a number above 0 and up to 1"):
            score_curves(annotated, detected, "validation", wrong)


def test_classes_without_instances_or_right_detections_have_the_overall_threshold():
    annotated = truth({"v": [(0, 10, "a"), (20, 30, "b")]})
    detected = found({"v": [(0, 10, "a", 0.9), (50, 60, "b", 0.8), (0, 10, "c", 0.99)]})
    thresholds = best_thresholds(score_curves(annotated, detected, "validation"), ["a", "b", "c"])
    assert thresholds.from_overall == ("b", "c")
    assert thresholds.by_class["b"] == thresholds.by_class["c"] == thresholds.overall
    assert thresholds.by_class["a"].threshold == 0.9
    assert (thresholds.tiou, thresholds.overall.f1) == (0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize("detected", [{}, {"v": []}, {"v": [(50, 60, "a", 0.9)]}, {"v": [(0, 10, "b", 0.9)]}])
def test_there_is_no_best_threshold_where_nothing_is_right(detected):
    curves = score_curves(truth({"v": [(0, 10, "a")]}), found(detected), "validation")
    assert best_thresholds(curves, ["a"]) is None
    assert best_thresholds(score_curves(truth({}), found(detected), "validation"), ["a"]) is None


def test_detections_in_other_and_blocked_videos_count_as_in_map():
    annotated = truth({"v": [(0, 10, "a")], "w": [(0, 10, "a")]})
    detected = found({"v": [(0, 10, "a", 0.5)], "w": [(0, 10, "a", 0.6)], "elsewhere": [(0, 1, "a", 0.7)]})
    curve = score_curves(annotated, detected, "validation", blocked_videos={"w"}).overall
    assert (curve.kept.tolist(), curve.hits.tolist(), curve.instances) == ([1, 2], [0, 1], 1)


def test_a_threshold_between_neighbouring_numbers_keeps_what_it_kept():
    low = 0.5
    high = math.nextafter(low, 1)
    curve = score_curve(np.array([high, low]), np.array([True, False]), 1)
    assert low < best_threshold(curve).threshold <= high


def naive_counts(annotated, detected, label, threshold, tiou):
    """Detections and right ones that score at least `threshold`, one by one, of a class."""
    kept = [
        (item["score"], number, video, *item["segment"])
        for number, (video, item) in enumerate((v, i) for v, items in detected["results"].items() for i in items)
        if item["label"] == label and item["score"] >= threshold
    ]
    free = {
        (video, n): item["segment"]
        for video, entry in annotated["database"].items()
        for n, item in enumerate(entry["annotations"])
        if item["label"] == label
    }
    hits = 0
    # Of equal scores the later one comes first, and of equal overlaps the later instance, as in mAP.
    for _, _, video, start, end in sorted(kept, key=lambda item: item[:2], reverse=True):
        best = None
        for (place, n), (a, b) in free.items():
            inside = max(min(end, b) - max(start, a), 0)
            overlap = inside / max(b - a + end - start - inside, 1e-8)
            if place == video and overlap >= tiou and (best is None or overlap >= best[0]):
                best = overlap, (place, n)
        if best:
            del free[best[1]]
            hits += 1
    return len(kept), hits


segments = st.tuples(st.integers(0, 20), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))
labels, videos = st.sampled_from("ab"), st.sampled_from("vw")
instances = st.lists(st.tuples(videos, segments, labels), min_size=1, max_size=8, unique=True)
detections = st.lists(st.tuples(videos, segments, labels, st.integers(0, 5)), max_size=14)


@given(instances, detections, st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_curves_are_those_of_a_naive_loop(items, guesses, tiou):
    annotated = truth({v: [(*s, name) for video, s, name in items if video == v] for v in "vw"})
    detected = found({v: [(*s, name, n / 5) for video, s, name, n in guesses if video == v] for v in "vw"})
    curves = score_curves(annotated, detected, "validation", tiou)
    thresholds = {n / 5 for *_, n in guesses}
    for label, curve in curves.by_class.items():
        for score, kept, hits in zip(curve.scores, curve.kept, curve.hits, strict=True):
            assert (kept, hits) == naive_counts(annotated, detected, label, score, tiou)
    for score, kept, hits in zip(*(getattr(curves.overall, name) for name in ("scores", "kept", "hits")), strict=True):
        parts = [naive_counts(annotated, detected, label, score, tiou) for label in curves.by_class]
        assert (kept, hits) == tuple(map(sum, zip(*parts, strict=True)))
    best = best_threshold(curves.overall)
    f1 = [2 * h / (k + len(items)) for k, h in (
        tuple(map(sum, zip(*(naive_counts(annotated, detected, n, s, tiou) for n in curves.by_class), strict=True)))
        for s in thresholds)]  # fmt: skip
    assert (best.f1 if best else 0) == pytest.approx(max(f1, default=0))


def test_a_hundred_thousand_detections_take_moments():
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 600, (200, 10))
    annotated = truth({f"v{n}": [(s, s + 5, f"c{i}") for i, s in enumerate(own)] for n, own in enumerate(starts)})
    guesses = {
        f"v{n}": [(s, s + 5, f"c{rng.integers(10)}", float(p)) for s, p in rng.uniform((0, 0), (600, 1), (500, 2))]
        for n in range(200)
    }
    curves = score_curves(annotated, found(guesses), "validation")
    assert curves.overall.kept[-1] == 100_000
    assert 0 < curves.overall.hits[-1] < curves.overall.instances == 2000
