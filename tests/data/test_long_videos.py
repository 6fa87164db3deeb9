"""A video of any length takes the memory of one window at a time: no more is ever asked of a reader."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import adatad.data.dataset as dataset
from adatad.data.annotations import Video
from adatad.data.dataset import TrainingWindows, ValidationWindows
from adatad.data.loader import Loader
from adatad.data.timeline import Timeline
from adatad.data.windows import evaluation_windows
from adatad.spec.data_sections import DataSpec, WindowSpec

FRAMES = 20_000
FPS = 25.0


class CountingReader:
    """Frames of one grey level, its number modulo 251; notes what it is asked for."""

    frame_count, timeline, stamp = FRAMES, Timeline(FRAMES), ()

    def __init__(self, asked: list[int]):
        self.asked = asked

    def frames(self, indices: np.ndarray, *_: object) -> np.ndarray:
        self.asked.append(len(indices))
        levels = (np.asarray(indices) % 251).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (len(levels), 8, 8, 3)).copy()

    def chunks(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), chunk_frames):
            yield self.frames(indices[start : start + chunk_frames])


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Frames of each request to a reader, and one entry of 0 for each opening."""
    requests: list[int] = []

    @contextmanager
    def open_counted(*_: object, **__: object):
        requests.append(0)
        yield CountingReader(requests)

    monkeypatch.setattr(dataset, "open_video", open_counted)
    return requests


def long_video() -> Video:
    starts = np.arange(0, FRAMES, 200.0)
    segments = np.stack([starts, starts + 50], 1)
    return Video("long", FRAMES / FPS, FPS, FRAMES, segments / FPS, segments, np.zeros(len(starts), np.int64))


@pytest.mark.parametrize(
    ("window", "count"),
    [
        (WindowSpec(size_grid=64, stride_frames=4, overlap=0.5), 156),
        (WindowSpec(size_grid=64, stride_frames=4, frames_per_position=2, overlap=0.0), 79),
        (WindowSpec(kind="resize", size_grid=64, frames_per_position=4), 1),
    ],
    ids=["sliding", "two frames a position", "resize"],
)
def test_a_window_s_frames_are_the_most_that_is_asked_for(asked, window, count):
    spec = DataSpec(annotations="", videos="", window=window, size_pixels=8)
    places = evaluation_windows(long_video(), window)
    seen: set[int] = set()
    most = window.size_grid * window.frames_per_position
    batches = iter(Loader(ValidationWindows(places, spec), [[number] for number in range(len(places))], workers=0))
    for number, batch in enumerate(batches, 1):
        # Nothing is read ahead of what is asked for, and nothing of it stays with the loader.
        assert sum(asked) <= number * most
        assert batch.frames.shape == (1, 3, most, 8, 8)
        seen |= set(batch.windows[0].indices.tolist())
    assert number == len(places) == count
    assert max(asked) <= most
    if window.kind == "sliding":
        assert seen == set(range(0, FRAMES, window.stride_frames // window.frames_per_position))


def test_so_it_is_in_training(asked):
    window = WindowSpec(size_grid=64, stride_frames=4)
    spec = DataSpec(annotations="", videos="", window=window, size_pixels=8)
    sample = TrainingWindows((long_video(),), spec, seed=0)[0, 0]
    assert max(asked) <= 64
    assert 1 <= len(sample.labels) <= 2
