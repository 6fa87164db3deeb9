"""Detection in a video as a stream: it equals detection by windows where clips align, and holds little."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed_models import detector_of, pictures

from adatad.data.frame_stream import ArraySource, made_ahead
from adatad.data.windows import sliding_windows, streamed_windows
from adatad.detect.video import from_frames, unlabelled
from adatad.spec.data_sections import WindowSpec
from adatad.training.video_detections import VideoDetector

ALIGNED = [
    {},
    {"frames_per_position": 2, "stride_frames": 2},
    {"frames_per_position": 1, "stride_frames": 3, "offset_frames": 5},
    {"overlap": 0.25},
    {"overlap": 0.75},
    {"overlap": 0},
]


def both_ways(detector, frames, fps=8.0):
    """Return what points of all windows predict, streamed and by windows."""
    source, video = from_frames(frames, fps, "video", detector.spec.data)
    videos = VideoDetector(detector.module, detector._run, detector.device)
    return (list(videos.predictions(source, video, stream)) for stream in (True, False))


@pytest.mark.parametrize("memory", ["none", "tile"])
@pytest.mark.parametrize("mode", ["frozen", "plain", "side", "full"])
@pytest.mark.parametrize("count", [5, 32, 40, 77])
def test_without_neighbours_a_stream_predicts_what_windows_do(mode, memory, count):
    assert_same(*both_ways(detector_of(mode, memory), pictures(count)))


@pytest.mark.parametrize("window", ALIGNED)
def test_windows_of_any_kind_share_features(window):
    assert_same(*both_ways(detector_of("frozen", window=window), pictures(150)))


def test_a_video_of_one_window_is_the_same_with_adapters_too():
    for count in (3, 32):
        assert_same(*both_ways(detector_of("adapter"), pictures(count)))


def test_adapters_see_their_neighbours_where_windows_see_zeros():
    streamed, windowed = both_ways(detector_of("adapter"), pictures(97))
    differences = [np.abs(a[2] - b[2]).max() for a, b in zip(streamed, windowed, strict=True)]
    assert len(differences) == 6
    # The last one, whose clips are its own, is run by itself.
    assert min(differences[:-1]) > 1e-6
    assert differences[-1] < 1e-6


def test_a_shared_window_is_the_same_wherever_the_video_ends_behind_what_adapters_see():
    detector, frames = detector_of("adapter"), pictures(120)
    # The window's 32 frames, and a clip of 8 for each of two blocks.
    counts = (33, 47, 48, 120)
    scores = [next(iter(next(iter(both_ways(detector, frames[:count])))))[2] for count in counts]
    assert [np.abs(one - scores[-1]).max() > 1e-6 for one in scores] == [True, False, False, False]
    np.testing.assert_allclose(scores[2], scores[3], rtol=1e-6, atol=1e-7)


def assert_same(streamed, windowed):
    assert len(streamed) == len(windowed) > 0
    for ours, theirs in zip(streamed, windowed, strict=True):
        assert (ours[0].start_frame, ours[0].valid_grid) == (theirs[0].start_frame, theirs[0].valid_grid)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-4, atol=1e-6)


@given(
    frames=st.integers(1, 700), size=st.sampled_from([16, 32, 48]), overlap=st.floats(0, 0.95),
    per=st.sampled_from([1, 2, 4]), stride=st.sampled_from([4, 8]),
)  # fmt: skip
def test_streamed_windows_cover_the_video_and_begin_at_whole_tubelets(frames, size, overlap, per, stride):
    spec = WindowSpec(size_grid=size, overlap=overlap, frames_per_position=per, stride_frames=stride)
    shared, alone = streamed_windows(unlabelled("v", frames / 8, 8.0, frames), spec, clip_frames=8, tubelet=2)
    positions, starts = -(-frames // stride), [place.start_grid for place in shared + alone]
    assert starts[0] == 0
    assert all(before < after <= before + size for before, after in itertools.pairwise(starts))
    assert starts[-1] + size == max(positions, size)
    whole = 8 if int(size * (1 - overlap)) * per >= 8 else 2
    assert all(place.start_grid * per % whole == 0 for place in shared)
    assert [place.start_grid * per % whole > 0 for place in alone] in ([], [True])


@given(frames=st.integers(1, 700))
def test_where_steps_are_whole_clips_windows_are_those_of_an_evaluation(frames):
    spec = WindowSpec(size_grid=32, stride_frames=2)
    video = unlabelled("v", frames / 8, 8.0, frames)
    shared, alone = streamed_windows(video, spec, 16, 2)
    assert shared + alone == sliding_windows(video, spec)


def test_an_error_of_the_thread_reaches_the_caller_and_the_thread_ends():
    def broken():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), made_ahead(broken()) as items:
        assert list(items)
    closed = []

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    with made_ahead(endless()) as items:
        assert [next(items), next(items)] == [0, 1]
    assert closed


def test_a_source_that_fails_in_the_middle_ends_the_detection(monkeypatch):
    detector, frames = detector_of("frozen"), pictures(100)
    real = ArraySource.chunks

    def broken(self, indices, chunk_frames):
        yield from itertools.islice(real(self, indices, chunk_frames), 3)
        raise OSError("the disk is gone")

    monkeypatch.setattr(ArraySource, "chunks", broken)
    for windows in (False, True):
        with pytest.raises(OSError, match="the disk is gone"):
            detector(frames, fps=8, windows=windows)


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_parts_follow_one_another_and_end_with_the_list_of_the_whole_video(seed):
    detector = detector_of("frozen")
    frames = pictures(int(np.random.default_rng(seed).integers(1, 150)), seed=seed)
    parts = list(detector.parts(frames, fps=8))
    assert parts[0].start_seconds == 0
    assert all(before.end_seconds == after.start_seconds for before, after in itertools.pairwise(parts))
    assert parts[-1].end_seconds == len(frames) / 8
    assert [part.whole is None for part in parts] == [True] * (len(parts) - 1) + [False]
    for part in parts[:-1]:
        middles = [sum(item["segment"]) / 2 for item in part.detections]
        assert all(part.start_seconds <= middle < part.end_seconds for middle in middles)
