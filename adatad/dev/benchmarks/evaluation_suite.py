"""NMS and mAP on one thread, in units of a matrix product, with their results checked against the reference's.

A unit is the CPU time of a float32 product of two 1024 x 1024 matrices on one thread in the same process. It is
measured again before every run: a busy machine slows both down alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adatad.dev.benchmarks.results import Result
from adatad.dev.benchmarks.scored_data import map_input, nms_input
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.nms import apply_nms
from adatad.spec.schema import NmsSpec

NMS = NmsSpec(kind="soft", sigma=0.7, max_segments=2000, multiclass=True, min_score=0.0)


@dataclass(frozen=True)
class NmsCase:
    """sums: of the scores and of the segments that the reference's compiled code gave; units: what that took, the
    higher of two measurements, which is the bar."""

    segments: int
    seed: int
    sums: tuple[float, float]
    units: float


@dataclass(frozen=True)
class MapCase:
    """size: arguments of `map_input`. values: mAP by tIoU of the reference's way of matching in a stable order; units:
    what the reference took."""

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
    """Half a minute. Functions are compiled before they are measured."""
    torch.set_num_threads(1)
    results = []
    for case in nms_cases:
        results += _nms_results(case, nms_rounds)
    for case in map_cases:
        results += _map_results(case, map_rounds)
    return results


def _nms_results(case: NmsCase, rounds: int) -> list[Result]:
    arrays = nms_input(case.segments, 20, case.seed)
    segments, scores, _ = apply_nms(*arrays, NMS)
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
    """CPU time of this process in `action`, with a calibration before each round."""
    seconds, calibrations = [], []
    for _ in range(rounds):
        calibrations.append(calibrate())
        seconds.append(cpu_seconds(action))
    units = [spent / unit for spent, unit in zip(seconds, calibrations, strict=True)]
    return ScoringTime(statistics.median(seconds), statistics.median(units), statistics.median(calibrations))


def calibrate() -> float:
    """CPU seconds of one unit, the median of five."""
    matrix = torch.ones(1024, 1024)
    return statistics.median(cpu_seconds(lambda: torch.mm(matrix, matrix)) for _ in range(5))


def cpu_seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def _note(took: ScoringTime) -> str:
    return f"{1000 * took.seconds:.1f} ms, calibration {1000 * took.calibration_seconds:.1f} ms"
