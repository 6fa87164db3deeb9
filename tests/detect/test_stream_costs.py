"""Costs of a stream: half of the windows' FLOPs, and memory that doesn't grow with the length of the video."""

import gc

import psutil
import torch
from small_data_set import write_video
from streamed_models import detector_of, pictures

from adatad.memory.flops import FlopCount
from adatad.memory.meter import Meter

MINUTES, HOURS = 120, 7200
MAX_GROWTH_BYTES = 20 << 20


def test_the_backbone_computes_little_more_than_half_of_what_windows_cost():
    detector, frames = detector_of("adapter"), pictures(32 + 16 * 11)
    with FlopCount() as head, torch.no_grad():
        detector.module.detector(torch.zeros(1, 16, 32), torch.ones(1, 32, dtype=torch.bool))
    totals = []
    for windows in (False, True):
        with FlopCount() as count:
            parts = len(list(detector.parts(frames, fps=8, windows=windows)))
        totals.append(count.total - parts * head.total)
        assert parts == 12
    streamed, windowed = totals
    assert 0.5 < streamed / windowed < 0.55


def test_tensors_on_the_device_are_those_of_a_few_groups_of_clips():
    detector, peaks = detector_of("adapter", "tile"), []
    # The first run makes what all others find ready.
    for windows in (12, 12, 24):
        with Meter("cpu") as meter:
            assert len(list(detector.parts(pictures(32 + 16 * (windows - 1)), fps=8))) == windows
        peaks.append(meter.peak.bytes)
    assert peaks[1] == peaks[2]


def test_two_hours_take_the_memory_of_two_minutes(tmp_path):
    detector, process = detector_of("adapter"), psutil.Process()
    for name, seconds in (("short", MINUTES), ("long", HOURS)):
        write_video(tmp_path / f"{name}.mp4", range(seconds), lambda second: int(second * 37 % 200), side=32)
    # The first runs fill caches of libraries.
    for _ in range(2):
        detector(tmp_path / "short.mp4")
    gc.collect()
    before, most, wholes = process.memory_info().rss, 0, []
    for part in detector.parts(tmp_path / "long.mp4"):
        most = max(most, process.memory_info().rss)
        wholes.append(part.whole)
    assert len(wholes) == 1 + -(-(HOURS - 32) // 16)
    assert wholes[-1]
    assert most - before < MAX_GROWTH_BYTES, f"{(most - before) >> 20} MB"
