"""From scores to detections: thresholds, seconds, rounding, merging."""

import numpy as np
import pytest

from adatad.evaluation.postprocess import (
    WindowDetections,
    WindowMeta,
    candidates,
    join_windows,
    to_seconds,
    window_detections,
)
from adatad.spec.schema import NmsSpec, PostprocessSpec

SPEC = PostprocessSpec(pre_nms_threshold=0.1, pre_nms_topk=3, nms=NmsSpec(min_score=0.0))
SEGMENTS = np.array([[0, 4], [2, 8]], np.float32)


def test_candidates_are_above_the_threshold_and_the_best_come_first():
    scores = np.array([[0.1, 0.5, 0.2], [0.05, 0.9, 0.3]], np.float32)
    segments, values, classes = candidates(SEGMENTS, scores, SPEC)
    assert values.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert classes.tolist() == [1, 1, 2]
    assert segments.tolist() == [[2, 8], [0, 4], [2, 8]]


def test_one_class_passes_whole():
    _, values, classes = candidates(SEGMENTS, np.array([[0.01], [0.9]], np.float32), SPEC)
    assert values.tolist() == pytest.approx([0.01, 0.9])
    assert classes.tolist() == [0, 0]


def test_seconds_of_a_window_and_of_a_resized_video():
    window = WindowMeta("v", duration_seconds=10.0, fps=25.0, stride_frames=4, start_frame=100)
    np.testing.assert_allclose(to_seconds(np.array([[-50.0, 5.0], [10.0, 90.0]]), window), [[0, 4.8], [5.6, 10.0]])
    resized = WindowMeta("v", duration_seconds=10.0, resize_grid=20)
    np.testing.assert_allclose(to_seconds(np.array([[5.0, 30.0]]), resized), [[2.5, 10.0]])


def window(video, start, *items, sliding=True):
    return WindowDetections(video, start, sliding, list(items))


ONE = {"segment": [1.0, 2.0], "label": "a", "score": 0.9}
OTHER = {"segment": [1.0, 2.0], "label": "b", "score": 0.8}


def test_windows_of_a_video_are_joined_after_rounding():
    spec = PostprocessSpec(nms=NmsSpec(sigma=0.5, min_score=0.2))
    joined = join_windows([window("v", 0, ONE, OTHER), window("v", 8, ONE), window("w", 0)], spec)
    assert joined == {"v": [ONE, OTHER], "w": []}
    without = join_windows([window("v", 0, ONE, OTHER), window("v", 8, ONE)], PostprocessSpec(nms=None))
    assert without == {"v": [ONE, OTHER, ONE]}


def test_a_repeated_window_counts_once_but_in_the_reference_twice():
    sliding = [window("v", 0, ONE), window("v", 8, OTHER), window("v", 0, ONE)]
    spec = PostprocessSpec(nms=NmsSpec(sigma=0.5, min_score=0.0))
    assert join_windows(sliding, spec)["v"] == [ONE, OTHER]
    twice = join_windows(sliding, spec, repeat_windows=True)["v"]
    assert [item["score"] for item in twice] == pytest.approx([0.9, 0.8, 0.9 * np.exp(-1 / 0.5)], abs=1e-4)
    whole = [window("v", 0, ONE, sliding=False), window("v", 0, ONE, sliding=False)]
    assert join_windows(whole, spec)["v"] == [ONE]
    assert join_windows(whole, spec, repeat_windows=True)["v"] == [ONE, ONE]


def test_a_whole_video_has_its_nms_in_its_window_and_not_again():
    meta = WindowMeta("v", 10.0, resize_grid=10)
    spec = PostprocessSpec(nms=NmsSpec(kind="hard", iou_threshold=0.5))
    segments, scores = np.array([[0, 4], [0, 5]], np.float32), np.array([[0.9, 0.0], [0.8, 0.0]], np.float32)
    found = window_detections(segments, scores, meta, ("a", "b"), spec, sliding=False)
    assert [item["segment"] for item in found] == [[0.0, 4.0]]
    assert len(window_detections(segments, scores, meta, ("a", "b"), spec, sliding=True)) == 2
    assert len(window_detections(segments, scores, meta, ("a", "b"), PostprocessSpec(nms=None), sliding=False)) == 2
    assert len(join_windows([window("v", 0, ONE, ONE, sliding=False)], spec)["v"]) == 2


def test_detections_of_a_window_are_rounded_and_named():
    meta = WindowMeta("v", 10.0, fps=3.0, stride_frames=1)
    items = window_detections(SEGMENTS, np.array([[0.12346, 0.0], [0.0, 0.5]], np.float32), meta, ("x", "y"), SPEC)
    assert items == [
        {"segment": [0.67, 2.67], "label": "y", "score": 0.5},
        {"segment": [0.0, 1.33], "label": "x", "score": 0.1235},
    ]
