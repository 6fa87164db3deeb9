"""From scores to detections: thresholds, seconds, rounding, merging, and the reference's numbers."""

import json

import numpy as np
import pytest

from adatad.evaluation.classifiers import fuse
from adatad.evaluation.postprocess import WindowMeta, candidates, merge_windows, to_seconds, window_detections
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


def test_windows_of_a_video_are_merged_after_rounding():
    one = {"segment": [1.0, 2.0], "label": "a", "score": 0.9}
    other = {"segment": [1.0, 2.0], "label": "b", "score": 0.8}
    spec = PostprocessSpec(nms=NmsSpec(sigma=0.5, min_score=0.2))
    merged = merge_windows({"v": [[one, other], [one]], "w": [[]]}, spec)
    assert merged["w"] == []
    assert merged["v"] == [one, other]


def test_detections_of_a_window_are_rounded_and_named():
    meta = WindowMeta("v", 10.0, fps=3.0, stride_frames=1)
    items = window_detections(SEGMENTS, np.array([[0.12346, 0.0], [0.0, 0.5]], np.float32), meta, ("x", "y"), SPEC)
    assert items == [
        {"segment": [0.67, 2.67], "label": "y", "score": 0.5},
        {"segment": [0.0, 1.33], "label": "x", "score": 0.1235},
    ]


def test_fusion_repeats_segments_for_the_best_classes():
    segments, scores, labels = fuse(SEGMENTS, np.array([0.5, 0.4]), np.array([0.1, 0.3, 0.6]), 2, "product")
    assert labels.tolist() == [2, 2, 1, 1]
    assert scores.tolist() == pytest.approx([0.3, 0.24, 0.15, 0.12])
    assert segments.tolist() == SEGMENTS.tolist() * 2
    assert fuse(SEGMENTS, np.array([0.5, 0.4]), np.array([800.0, 0.0]), 1, "sqrt", softmax=True)[1].tolist() == (
        pytest.approx([0.5**0.5, 0.4**0.5])
    )


def key(item):
    return (-item["score"], item["segment"], item["label"])


def test_merges_of_the_reference(shared_folder):
    content = json.loads((shared_folder / "golden" / "data" / "post.json").read_text())
    for case in content["merge_cases"]:
        nms = case["settings"]["nms"]
        if not case["settings"]["sliding_window"] or nms is None:
            continue
        spec = PostprocessSpec(
            nms=NmsSpec(
                kind="soft" if nms.get("use_soft_nms", True) else "hard",
                sigma=nms.get("sigma", 0.5),
                iou_threshold=nms.get("iou_threshold", 0.0),
                min_score=nms.get("min_score", 0.0),
                max_segments=nms.get("max_seg_num", 100),
                multiclass=nms.get("multiclass", True),
                voting_threshold=None if nms.get("multiclass", True) else nms.get("voting_thresh") or None,
            )
        )
        windows: dict[str, list] = {}
        for result in case["per_process_results"]:
            for video, items in result.items():
                windows.setdefault(video, []).append(items)
        merged = merge_windows(windows, spec)
        assert merged.keys() == case["merged"].keys()
        for video, expected in case["merged"].items():
            assert len(merged[video]) == len(expected), case["name"]
            for mine, theirs in zip(sorted(merged[video], key=key), sorted(expected, key=key), strict=True):
                assert mine["label"] == theirs["label"]
                assert mine["segment"] == pytest.approx(theirs["segment"], abs=0.0101)
                assert mine["score"] == pytest.approx(theirs["score"], abs=1.01e-4)
