"""Made-up detections of the size of THUMOS-14's and ActivityNet's evaluations, the same on every machine.

What is drawn, and in which order, is fixed: the reference was measured and its results recorded on these very numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def nms_input(segments: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """segments float32 [n, 2] of 1 to 60 seconds in 1,000; scores float32 [n]; labels int64 [n]."""
    draw = np.random.RandomState(seed)
    centres = draw.uniform(0, 1000, segments)
    lengths = np.exp(draw.uniform(np.log(1.0), np.log(60.0), segments))
    ends = np.stack([centres - lengths / 2, centres + lengths / 2], 1).astype(np.float32)
    scores = draw.uniform(0.001, 1.0, segments).astype(np.float32)
    return ends, scores, draw.randint(0, classes, segments).astype(np.int64)


def map_input(
    videos: int, instances: int, detections: int, classes: int, durations: tuple[float, float], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of an annotation file (subset "test") and of a detections file.

    Every video has a main class and 15 in 100 a second one; 60 in 100 detections are shaken copies of an instance of
    their video, the others lie anywhere. durations: least and most seconds of a video.
    """
    draw = np.random.RandomState(seed)
    duration = draw.uniform(*durations, videos)
    main = np.arange(videos) % classes
    has_second = draw.rand(videos) < 0.15
    second = draw.randint(0, classes, videos)
    of = np.concatenate([np.arange(videos), draw.randint(0, videos, instances - videos)])
    length = np.exp(draw.uniform(np.log(1.0), np.log(30.0), instances)) * duration[of] / 200.0
    start = draw.uniform(0, 1, instances) * (duration[of] - length)
    label = np.where(has_second[of] & (draw.rand(instances) < 0.4), second[of], main[of])
    database = {
        _video(number): {"subset": "test", "duration": round(float(duration[number]), 2), "annotations": []}
        for number in range(videos)
    }
    for video, begin, end, number in zip(of, start.tolist(), (start + length).tolist(), label.tolist(), strict=True):
        segment = [round(begin, 2), round(end, 2)]
        database[_video(video)]["annotations"].append({"segment": segment, "label": _class(number)})
    results = {}
    for video in range(videos):
        own = np.flatnonzero(of == video)
        number = detections // videos + (video < detections % videos)
        drawn = _detections(draw, number, own, start, length, label, float(duration[video]), classes)
        results[_video(video)] = [
            {"segment": [begin, end], "score": score, "label": _class(name)}
            for begin, end, score, name in zip(*(array.tolist() for array in drawn), strict=True)
        ]
    return {"database": database}, {"results": results}


def _detections(
    draw: np.random.RandomState, number: int, own: np.ndarray, start: np.ndarray, length: np.ndarray,
    label: np.ndarray, duration: float, classes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Starts, ends, scores and classes of one video's detections. own: numbers of its instances."""
    source = own[draw.randint(0, len(own), number)]
    near = draw.rand(number) < 0.6
    begin, long = start[source], length[source]
    starts = np.where(near, begin + draw.normal(0, 0.25, number) * long, draw.uniform(0, 1, number) * duration)
    ends = np.where(
        near,
        begin + long + draw.normal(0, 0.25, number) * long,
        starts + np.exp(draw.uniform(0, np.log(30.0), number)) * duration / 200.0,
    )
    starts = np.clip(starts, 0, duration - 0.02)
    ends = np.clip(np.maximum(ends, starts + 0.02), 0, duration)
    scores = np.where(near, draw.beta(1.2, 6, number), draw.beta(0.6, 20, number))
    labels = np.where(near & (draw.rand(number) < 0.9), label[source], draw.randint(0, classes, number))
    return np.round(starts, 2), np.round(ends, 2), np.round(np.maximum(scores, 0.0001), 4), labels


def _video(number: int) -> str:
    return f"video_{number:05d}"


def _class(number: int) -> str:
    return f"class_{number:03d}"
