"""Detections: from a window's scores to seconds, and from a video's windows to one list.

Arrays stay in float32 and are rounded where the reference rounds, so that ties fall as they do there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adatad.evaluation.classifiers import Classifier
from adatad.evaluation.nms import apply_nms
from adatad.spec.schema import PostprocessSpec

Detection = dict[str, Any]
"""A detection: {"segment": [start, end] in seconds, "label": name, "score": number}."""


@dataclass(frozen=True)
class WindowMeta:
    """Position of a window in its video.

    resize_grid: number of positions, if the whole video was resized to them; otherwise position x is video frame x *
    stride_frames + start_frame.
    """

    video: str
    duration_seconds: float
    fps: float = 0.0
    stride_frames: int = 1
    start_frame: int = 0
    resize_grid: int | None = None


def candidates(
    segments_grid: np.ndarray, scores: np.ndarray, spec: PostprocessSpec
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best (segment, class) pairs of a window: segments [k, 2], scores [k], class numbers [k].

    segments_grid: [n, 2]; scores: [n, classes]. A single class passes without threshold or limit, as in the reference.
    """
    if scores.shape[1] == 1:
        return segments_grid, scores[:, 0], np.zeros(len(scores), np.int64)
    # One segment may stand for several classes: pairs are ranked, number n x classes + class.
    flat = scores.ravel()
    above = np.flatnonzero(flat > np.float32(spec.pre_nms_threshold))
    best = above[np.argsort(-flat[above], kind="stable")[: spec.pre_nms_topk]]
    return segments_grid[best // scores.shape[1]], flat[best], best % scores.shape[1]


def to_seconds(segments_grid: np.ndarray, meta: WindowMeta) -> np.ndarray:
    """Convert grid units of a window to seconds of its video, clipped to the video: float32 [n, 2]."""
    if meta.resize_grid is not None:
        seconds = segments_grid / np.float32(meta.resize_grid) * np.float32(meta.duration_seconds)
    else:
        frames = segments_grid * np.float32(meta.stride_frames) + np.float32(meta.start_frame)
        seconds = frames / np.float32(meta.fps)
    return np.clip(seconds, 0.0, np.float32(meta.duration_seconds)).astype(np.float32)


def window_candidates(
    segments_grid: np.ndarray, scores: np.ndarray, meta: WindowMeta, spec: PostprocessSpec, sliding: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return segments in seconds [k, 2], scores [k] and class numbers [k] of one window, before rounding; see
    `window_detections`."""
    segments, values, numbers = candidates(segments_grid, scores, spec)
    # In grid units, before times are clipped to the video.
    if not sliding and spec.nms is not None:
        segments, values, numbers = apply_nms(segments, values, numbers, spec.nms)
    return to_seconds(segments, meta), values, numbers


def window_results(
    segments_grid: np.ndarray,
    scores: np.ndarray,
    meta: WindowMeta,
    classes: Sequence[str],
    spec: PostprocessSpec,
    sliding: bool,
    classifier: Classifier | None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return segments in seconds [k, 2], scores [k] and labels of one window, before rounding; see
    `window_detections`."""
    seconds, values, numbers = window_candidates(segments_grid, scores, meta, spec, sliding)
    # The detector's own classes are given up: the classifier names every segment, once for each of its best classes.
    if classifier is not None:
        return classifier.label(meta.video, seconds, values)
    return seconds, values, [classes[number] for number in numbers]


def window_detections(
    segments_grid: np.ndarray,
    scores: np.ndarray,
    meta: WindowMeta,
    classes: Sequence[str],
    spec: PostprocessSpec,
    sliding: bool = True,
    classifier: Classifier | None = None,
) -> list[Detection]:
    """Return the detections of one window, rounded to 2 decimals of a second and 4 of the score.

    segments_grid: float32 [n, 2]; scores: float32 [n, classes]. NMS runs here only if the window is a whole video
    (`sliding` false); otherwise it runs over all windows of a video, in `join_windows`. classifier: gives the labels
    instead of `classes`.
    """
    return _rounded(*window_results(segments_grid, scores, meta, classes, spec, sliding, classifier))


@dataclass(frozen=True)
class WindowDetections:
    """Detections of one window. start_frame: its first frame; sliding: whether its video may have other windows, over
    which NMS still has to run."""

    video: str
    start_frame: int
    sliding: bool
    detections: list[Detection]


def join_windows(
    found: Iterable[WindowDetections], spec: PostprocessSpec, repeat_windows: bool = False
) -> dict[str, list[Detection]]:
    """Join the windows of each video to one list, in the order of `found`.

    A window with the video and start of an earlier one is dropped, as its detections would count twice. repeat_windows:
    keep it, as the reference does.
    """
    windows: dict[str, dict[Any, WindowDetections]] = {}
    for number, window in enumerate(found):
        # Windows of one video that start alike are the same window, unless repeats are wanted.
        key = (window.start_frame, number if repeat_windows else 0)
        windows.setdefault(window.video, {}).setdefault(key, window)
    joined = {}
    for video, own in windows.items():
        detections = [item for window in own.values() for item in window.detections]
        # A video in one window has been through NMS already, unless its windows slide.
        sliding = any(window.sliding for window in own.values())
        joined[video] = suppress_rounded(detections, spec) if sliding else detections
    return joined


def suppress_rounded(detections: Sequence[Detection], spec: PostprocessSpec) -> list[Detection]:
    """Run NMS over the rounded detections of one video's windows, and round again."""
    if spec.nms is None:
        return list(detections)
    # NMS runs on rounded numbers, as in the reference, whose processes exchange rounded detections.
    names = list(dict.fromkeys(item["label"] for item in detections))
    numbers = {name: number for number, name in enumerate(names)}
    segments, scores, labels = apply_nms(
        np.array([item["segment"] for item in detections], np.float32).reshape(-1, 2),
        np.array([item["score"] for item in detections], np.float32),
        np.array([numbers[item["label"]] for item in detections], np.int64),
        spec.nms,
    )
    return _rounded(segments, scores, [names[label] for label in labels])


def _rounded(seconds: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> list[Detection]:
    # As Python floats first: rounded float32 would be written with many digits.
    return [
        {"segment": [round(start, 2), round(end, 2)], "label": name, "score": round(score, 4)}
        for (start, end), score, name in zip(seconds.tolist(), scores.tolist(), names, strict=True)
    ]
