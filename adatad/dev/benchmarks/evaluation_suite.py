"""Time of NMS and mAP on one thread, in units of a matrix product, and their results against the reference's.

A unit is the CPU time of a float32 product of two 1024 x 1024 matrices on one thread in the same process. It is
measured again before every run: a busy machine slows both down alike. The detections are made up at the size of
THUMOS-14's and ActivityNet's, from fixed draws: the reference was measured on these very numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adatad.dev.benchmarks.tables import Result
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.nms import apply_nms
from adatad.spec.schema import NmsSpec

NMS = NmsSpec(kind="soft", sigma=0.7, max_segments=2000, multiclass=True, min_score=0.0)


@dataclass(frozen=True)
class NmsCase:
    """A case of soft NMS. sums: of the scores and of the segments that the reference gave; units: its time, the higher
    of two measurements, which is the bar."""

    segments: int
    seed: int
    sums: tuple[float, float]
    units: float


@dataclass(frozen=True)
class MapCase:
    """A case of mAP. size: arguments of `map_input`; values: mAP by tIoU by the reference's matching in a stable order;
    units: the reference's time."""

    name: str
    size: tuple[Any, ...]
    tious: tuple[float, ...]
    values: tuple[float, ...]
    bar_units: float
    units: float


NMS_CASES = (
    NmsCase(2000, 3000, (911.8741457409342, 1979116.2946295738), 0.17),
    NmsCase(20000, 21000, (1835.2880435585976, 2016534.2613083571), 3.3),
)
MAP_CASES = (
    MapCase(
        "THUMOS-14", (213, 3325, 422000, 20, (30.0, 400.0), 20241), (0.3, 0.4, 0.5, 0.6, 0.7),
        (0.654370686, 0.623872496, 0.573381449, 0.475802261, 0.325425373), 84.0, 8400.0,
    ),
    MapCase(
        "ActivityNet", (4728, 7293, 472800, 200, (20.0, 230.0), 20242),
        (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
        (0.544318247, 0.513940131, 0.46512699, 0.402977862, 0.330279182, 0.247081179, 0.166229312, 0.094240612,
         0.039838993, 0.006636738), 130.0, 13014.0,
    ),
)  # fmt: skip
NMS_ROUNDS, MAP_ROUNDS = 15, 5


@dataclass(frozen=True)
class ScoringTime:
    """Medians of CPU time over several runs: seconds, and units of the product measured just before each."""

    seconds: float
    units: float
    calibration_seconds: float


def run(
    nms_cases: tuple[NmsCase, ...] = NMS_CASES,
    map_cases: tuple[MapCase, ...] = MAP_CASES,
    nms_rounds: int = NMS_ROUNDS,
    map_rounds: int = MAP_ROUNDS,
) -> list[Result]:
    """Measure all cases; half a minute. Functions are compiled before they are measured."""
    torch.set_num_threads(1)
    return [
        *(result for case in nms_cases for result in _nms_results(case, nms_rounds)),
        *(result for case in map_cases for result in _map_results(case, map_rounds)),
    ]


def _nms_results(case: NmsCase, rounds: int) -> list[Result]:
    arrays = nms_input(case.segments, 20, case.seed)
    segments, scores, _ = apply_nms(*arrays, NMS)
    # Sums tell any changed figure, and a file of all of them isn't needed. This call also compiles.
    sums = float(scores.astype(np.float64).sum()), float(segments.astype(np.float64).sum())
    error = max(abs(ours - wanted) / wanted for ours, wanted in zip(sums, case.sums, strict=True))
    took = measure(lambda: apply_nms(*arrays, NMS), rounds)
    name = f"soft NMS of {case.segments:,} segments"
    return [
        Result(f"{name}, units", took.units, case.units, case.units, _note(took)),
        Result(f"{name}, error of its sums / 1e-4", error / 1e-4, 1.0, None, f"{error:.1e}"),
    ]


def _map_results(case: MapCase, rounds: int) -> list[Result]:
    truth, found = map_input(*case.size)
    values = evaluate(truth, found, "test", case.tious).mAP.values()
    error = max(abs(ours - wanted) for ours, wanted in zip(values, case.values, strict=True))
    took = measure(lambda: evaluate(truth, found, "test", case.tious), rounds)
    name = f"mAP of {case.size[2]:,} detections at {len(case.tious)} tIoUs ({case.name})"
    return [
        Result(f"{name}, units", took.units, case.bar_units, case.units, _note(took)),
        Result(f"{name}, error / 1e-6", error / 1e-6, 1.0, None, f"{error:.1e}"),
    ]


def measure(action: Callable[[], object], rounds: int) -> ScoringTime:
    """Measure the CPU time of `action` in this process, with a calibration before each round."""
    seconds, calibrations = [], []
    for _ in range(rounds):
        calibrations.append(calibrate())
        seconds.append(cpu_seconds(action))
    # Each run in units of the calibration just before it.
    units = [spent / unit for spent, unit in zip(seconds, calibrations, strict=True)]
    return ScoringTime(statistics.median(seconds), statistics.median(units), statistics.median(calibrations))


def calibrate() -> float:
    """Return the CPU seconds of one unit, the median of five."""
    matrix = torch.ones(1024, 1024)
    return statistics.median(cpu_seconds(lambda: torch.mm(matrix, matrix)) for _ in range(5))


def cpu_seconds(action: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    action()
    return time.process_time() - started


def _note(took: ScoringTime) -> str:
    return f"{1000 * took.seconds:.1f} ms, calibration {1000 * took.calibration_seconds:.1f} ms"


def nms_input(segments: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return segments float32 [n, 2] of 1 to 60 seconds within 1,000, scores float32 [n] and labels int64 [n]."""
    # RandomState, not Generator: its stream is frozen across versions of NumPy.
    draw = np.random.RandomState(seed)
    centres = draw.uniform(0, 1000, segments)
    lengths = np.exp(draw.uniform(np.log(1.0), np.log(60.0), segments))
    ends = np.stack([centres - lengths / 2, centres + lengths / 2], 1).astype(np.float32)
    scores = draw.uniform(0.001, 1.0, segments).astype(np.float32)
    return ends, scores, draw.randint(0, classes, segments).astype(np.int64)


def map_input(
    videos: int, instances: int, detections: int, classes: int, durations: tuple[float, float], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of an annotation file (subset "test") and of a detections file.

    Every video has a main class and 15 % a second one; 60 % of detections are jittered copies of an instance of their
    video, the others lie anywhere. durations: least and most seconds of a video.
    """
    # The order of draws is fixed: recorded results belong to these numbers.
    draw = np.random.RandomState(seed)
    duration = draw.uniform(*durations, videos)
    main = np.arange(videos) % classes
    has_second = draw.rand(videos) < 0.15
    second = draw.randint(0, classes, videos)
    # Every video has an instance.
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
    """Return starts, ends, scores and classes of one video's detections. own: numbers of its instances."""
    source = own[draw.randint(0, len(own), number)]
    near = draw.rand(number) < 0.6
    begin, long = start[source], length[source]
    starts = np.where(near, begin + draw.normal(0, 0.25, number) * long, draw.uniform(0, 1, number) * duration)
    ends = np.where(
        near,
        begin + long + draw.normal(0, 0.25, number) * long,
        starts + np.exp(draw.uniform(0, np.log(30.0), number)) * duration / 200.0,
    )
    # Segments lie within their video and have a length.
    starts = np.clip(starts, 0, duration - 0.02)
    ends = np.clip(np.maximum(ends, starts + 0.02), 0, duration)
    scores = np.where(near, draw.beta(1.2, 6, number), draw.beta(0.6, 20, number))
    labels = np.where(near & (draw.rand(number) < 0.9), label[source], draw.randint(0, classes, number))
    # Rounded as in detections files; a score of 0 would be no detection.
    return np.round(starts, 2), np.round(ends, 2), np.round(np.maximum(scores, 0.0001), 4), labels


def _video(number: int) -> str:
    return f"video_{number:05d}"


def _class(number: int) -> str:
    return f"class_{number:03d}"
