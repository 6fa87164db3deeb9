"""From videos to windows: which frames, which positions are valid, which segments; for every kind of video."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adatad.data.annotations import Video
from adatad.data.windows import (
    MAX_TRIES,
    Window,
    WindowError,
    complete_instances,
    evaluation_window,
    evaluation_windows,
    random_window,
    resize_indices,
    sliding_window,
    sliding_windows,
    training_window,
)
from adatad.evaluation.postprocess import WindowMeta, to_seconds
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.training.validation import window_meta

FPS = 25.0


def make_video(frames: int, *segments_frames: tuple[float, float]) -> Video:
    """Segments in whole frames; their labels count from 0."""
    segments = np.array(segments_frames, np.float64).reshape(-1, 2)
    return Video("v", frames / FPS, FPS, frames, segments / FPS, segments, np.arange(len(segments)))


def starts(frames: int, repeat_windows: bool = False, **settings: float) -> list[int]:
    return [place.start_grid for place in sliding_windows(make_video(frames), WindowSpec(**settings), repeat_windows)]


class Cut:
    """Stands for a generator of random draws: gives these numbers in turn, the last one for ever."""

    def __init__(self, *numbers: int):
        self.numbers, self.drawn = list(numbers), 0

    def integers(self, low: int, high: int | None = None) -> int:
        self.drawn += 1
        number = self.numbers.pop(0) if len(self.numbers) > 1 else self.numbers[0]
        assert (0 if high is None else low) <= number < (low if high is None else high)
        return number


# ---- sliding windows


@pytest.mark.parametrize(
    ("frames", "overlap", "mended", "reference"),
    [
        (5, 0.5, [0], [0]),
        (8, 0.5, [0], [0, 0]),
        (9, 0.5, [0, 1], [0, 1]),
        (12, 0.5, [0, 4], [0, 4, 4]),
        (15, 0.5, [0, 4, 7], [0, 4, 7]),
        (16, 0.5, [0, 4, 8], [0, 4, 8, 8]),
        (13, 0.0, [0, 5], [0]),
        (16, 0.0, [0, 8], [0, 8]),
        (19, 0.0, [0, 8, 11], [0, 8]),
        (17, 0.25, [0, 6, 9], [0, 6]),
    ],
)
def test_where_windows_of_eight_lie(frames, overlap, mended, reference):
    """Differences are the rows "comes twice" and "no window" of docs/compat.md."""
    settings = {"size_grid": 8, "stride_frames": 1, "overlap": overlap}
    assert starts(frames, **settings) == mended
    assert starts(frames, repeat_windows=True, **settings) == reference


def test_frames_of_a_sliding_window():
    spec = WindowSpec(size_grid=4, stride_frames=6, frames_per_position=2)
    whole, last = sliding_windows(make_video(32), spec)
    assert sliding_window(whole, 32, spec).indices.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]
    window = sliding_window(last, 32, spec)
    assert window.indices.tolist() == [12, 15, 18, 21, 24, 27, 30, 30]
    assert (window.start_frame, window.valid_grid) == (12, 3)
    assert (window.segments_grid.shape, window.labels.shape) == ((0, 2), (0,))


def test_a_file_shorter_than_its_annotation():
    spec = WindowSpec(size_grid=4, stride_frames=2)
    first, last = sliding_windows(make_video(16), WindowSpec(size_grid=4, stride_frames=2, overlap=0))
    assert sliding_window(first, 5, spec).indices.tolist() == [0, 2, 4, 4]
    assert sliding_window(first, 5, spec).valid_grid == 3
    with pytest.raises(WindowError, match="'v' has 5 frames, the annotation says 16: its window from frame 8 would be"):
        sliding_window(last, 5, spec)


class Case(NamedTuple):
    video: Video
    total_frames: int
    """What the decoder reports."""
    spec: WindowSpec


@st.composite
def cases(draw: st.DrawFn) -> Case:
    per_position = draw(st.integers(1, 3))
    frames = draw(st.integers(1, 200))
    ends = st.tuples(st.integers(0, frames), st.integers(0, frames)).map(sorted)
    crop = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: tuple(sorted(pair)))
    spec = WindowSpec(
        size_grid=draw(st.integers(1, 24)),
        frames_per_position=per_position,
        stride_frames=per_position * draw(st.integers(1, 4)),
        overlap=draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])),
        min_visible=draw(st.sampled_from([0.0, 0.5, 0.75, 1.0])),
        crop_ratio=draw(st.none() | crop),
    )
    assume(int(spec.size_grid * (1 - spec.overlap)) >= 1)
    return Case(make_video(frames, *draw(st.lists(ends, max_size=4))), frames, spec)


def assert_whole(window: Window, case: Case) -> None:
    """Check every window: its length, frames in order and inside the video, padding, the mask's length."""
    spec, indices = case.spec, window.indices
    assert len(indices) == spec.size_grid * spec.frames_per_position
    assert indices.min() >= 0
    assert indices.max() < case.total_frames
    assert 0 <= window.valid_grid <= spec.size_grid
    assert window.start_frame == indices[0]
    step = spec.stride_frames // spec.frames_per_position
    real = len(np.unique(indices))
    assert window.valid_grid == real // spec.frames_per_position
    assert indices.tolist() == [indices[0] + step * min(number, real - 1) for number in range(len(indices))]


@given(cases())
def test_sliding_windows_cover_every_position(case):
    places = sliding_windows(case.video, case.spec)
    seen: set[int] = set()
    for place in places:
        window = sliding_window(place, case.total_frames, case.spec)
        assert_whole(window, case)
        seen |= set(window.indices.tolist())
    step = case.spec.stride_frames // case.spec.frames_per_position
    assert seen == set(range(0, case.total_frames, step))
    first_grid = [place.start_grid for place in places]
    assert first_grid == sorted(set(first_grid))
    ends = [place.start_grid + place.length_grid for place in places]
    assert ends[-1] == -(-case.video.frames // case.spec.stride_frames)
    steps = np.diff(first_grid)
    assert (steps <= max(1, int(case.spec.size_grid * (1 - case.spec.overlap)))).all()


@given(cases())
def test_the_reference_s_windows_are_ours_but_for_repeats_and_tails(case):
    ours, theirs = (
        [place.start_grid for place in sliding_windows(case.video, case.spec, repeat_windows)]
        for repeat_windows in (False, True)
    )
    assert set(theirs) <= set(ours)
    if case.spec.overlap >= 0.5:
        assert sorted(set(theirs)) == ours


# ---- random windows


def test_a_short_video_is_taken_whole_and_padded():
    spec = WindowSpec(size_grid=6, stride_frames=2)
    window = random_window(make_video(7, (0, 3), (4, 7)), 7, spec, Cut())
    assert window.indices.tolist() == [0, 2, 4, 6, 6, 6]
    assert (window.start_frame, window.valid_grid) == (0, 4)
    assert window.segments_grid.tolist() == [[0, 1.5], [2, 3.5]]


def test_a_long_video_is_cut_and_its_segments_with_it():
    spec = WindowSpec(size_grid=4, stride_frames=2, min_visible=0.5)
    video = make_video(40, (0, 8), (6, 14), (9, 11), (16, 30))
    window = random_window(video, 40, spec, Cut(5))
    assert window.indices.tolist() == [10, 12, 14, 16]
    assert (window.start_frame, window.valid_grid) == (10, 4)
    # The first and the last have too little inside; half of the second and third is enough.
    assert window.labels.tolist() == [1, 2]
    assert window.segments_grid.tolist() == [[0, 2], [0, 0.5]]


@pytest.mark.parametrize(("min_visible", "labels"), [(0.25, [0, 1]), (0.26, [1]), (0.75, [1]), (0.76, [])])
def test_how_much_of_an_instance_must_be_visible(min_visible, labels):
    """One and three of their four frames are inside."""
    spec = WindowSpec(size_grid=4, stride_frames=1, min_visible=min_visible)
    assert random_window(make_video(20, (7, 11), (11, 15)), 20, spec, Cut(10)).labels.tolist() == labels


def test_it_tries_until_an_instance_is_inside():
    video, spec = make_video(100, (50, 54)), WindowSpec(size_grid=8, stride_frames=1)
    draw = Cut(0, 80, 10, 49)
    assert random_window(video, 100, spec, draw).segments_grid.tolist() == [[1, 5]]
    assert draw.drawn == 4
    draw = Cut(90)
    window = random_window(video, 100, spec, draw)
    assert (draw.drawn, window.start_frame, len(window.labels)) == (MAX_TRIES, 90, 0)


def test_crop_ratio_shortens_short_videos_alone():
    spec = WindowSpec(size_grid=8, stride_frames=1, crop_ratio=(0.5, 1.0))
    video = make_video(6, (0, 6))
    window = random_window(video, 6, spec, Cut(4, 2))
    assert window.indices.tolist() == [2, 3, 4, 5, 5, 5, 5, 5]
    assert (window.valid_grid, window.segments_grid.tolist()) == (4, [[0, 4]])
    lengths = {random_window(video, 6, spec, np.random.default_rng(seed)).valid_grid for seed in range(50)}
    assert lengths == {3, 4, 5, 6}
    assert random_window(make_video(20, (0, 20)), 20, spec, Cut(0)).valid_grid == 8


@given(cases(), st.integers(0, 2**32))
def test_random_windows(case, seed):
    window = random_window(case.video, case.total_frames, case.spec, np.random.default_rng(seed))
    assert_whole(window, case)
    assert len(window.segments_grid) == len(window.labels)
    if case.spec.crop_ratio is None:
        listed = -(-case.total_frames // (case.spec.stride_frames // case.spec.frames_per_position))
        assert len(np.unique(window.indices)) == min(listed, len(window.indices))


@given(cases(), st.integers(0, 2**32))
def test_grid_units_turn_back_into_the_annotation_s_seconds(case, seed):
    """By the function that turns detections into seconds. What the window cuts off ends at the window."""
    window = random_window(case.video, case.total_frames, case.spec, np.random.default_rng(seed))
    step = case.spec.stride_frames // case.spec.frames_per_position
    ends = window.start_frame, window.start_frame + step * len(np.unique(window.indices))
    meta = WindowMeta("v", case.video.duration_seconds, FPS, case.spec.stride_frames, window.start_frame)
    seconds = to_seconds(window.segments_grid, meta)
    expected = np.clip(case.video.segments_seconds[window.labels] * FPS, *ends) / FPS
    np.testing.assert_allclose(seconds, expected, atol=1e-4)
    inside = (window.segments_grid >= 0) & (window.segments_grid <= case.spec.size_grid)
    assert inside.all()


# ---- instances of sliding windows, offsets


@pytest.mark.parametrize(("completeness", "labels"), [(0.3, [0, 1, 2]), (0.74, [1, 2]), (0.75, [2]), (0.99, [2])])
def test_a_sliding_window_holds_what_is_more_than_complete_in_it(completeness, labels):
    """It reaches to its last position's frame, 6. Of the instances 2, 3 and 2 of 4, 4 and 2 frames are inside."""
    spec = WindowSpec(size_grid=4, stride_frames=2)
    place = sliding_windows(make_video(12, (4, 8), (3, 7), (1, 3), (9, 12), (2, 2)), spec)[0]
    held = complete_instances(place, spec, completeness)
    window = sliding_window(held, 12, spec)
    assert window.labels.tolist() == labels
    expected = {0: [2, 3], 1: [1.5, 3], 2: [0.5, 1.5]}
    assert window.segments_grid.tolist() == [expected[label] for label in labels]


def test_completeness_of_zero_keeps_all_and_uncut_and_none_leaves_the_window_out():
    spec = WindowSpec(size_grid=4, stride_frames=2)
    place = sliding_windows(make_video(30, (10, 20)), spec)[0]
    assert complete_instances(place, spec, 0.1) is None
    assert sliding_window(complete_instances(place, spec, 0), 30, spec).segments_grid.tolist() == [[5, 10]]


def test_an_offset_moves_labels_but_no_frames():
    plain, moved = (WindowSpec(size_grid=4, stride_frames=2, offset_frames=offset) for offset in (0, 3))
    video = make_video(20, (6, 12))
    one, other = (random_window(video, 20, spec, Cut(2)) for spec in (plain, moved))
    assert one.indices.tolist() == other.indices.tolist()
    assert (one.segments_grid.tolist(), other.segments_grid.tolist()) == ([[1, 4]], [[0, 2.5]])


# ---- whole videos as windows


def test_frames_of_a_whole_video_are_the_middles_of_equal_parts():
    assert resize_indices(12, 4).tolist() == [1, 4, 7, 10]
    # Halves go to the even frame, as in the reference; a short video's frames repeat.
    assert resize_indices(8, 4).tolist() == [0, 2, 4, 6]
    assert resize_indices(2, 4).tolist() == [0, 0, 1, 1]


@given(st.integers(1, 9000), st.integers(1, 800))
def test_a_whole_video_gives_as_many_frames_as_there_are_positions(total, count):
    indices = resize_indices(total, count)
    assert len(indices) == count
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0
    assert indices[-1] < total
    middles = (np.arange(count) + 0.5) * total / count - 0.5
    assert np.abs(indices - middles).max() <= 0.5 + 1e-6
    # Symmetric but for halves.
    assert np.abs(indices + indices[::-1] - (total - 1)).max() <= 1


@pytest.mark.parametrize(("total", "count"), [(8189, 768), (2045, 192), (4087, 192), (57, 100), (485, 100)])
def test_totals_that_give_the_reference_one_frame_too_many(total, count):
    """The row "one frame too many" of docs/compat.md; its range is numpy's, up to the last middle and one step."""
    step = total / count
    assert len(np.arange(step / 2 - 0.5, total + step / 2 - 0.5, step)) == count + 1
    assert len(resize_indices(total, count)) == count


@given(cases())
def test_a_whole_video_as_a_window(case):
    spec = case.spec.model_copy(update={"kind": "resize"})
    (place,) = evaluation_windows(case.video, spec)
    for window in (
        evaluation_window(place, case.total_frames, spec),
        training_window(case.video, case.total_frames, spec, Cut()),
    ):
        assert len(window.indices) == spec.size_grid * spec.frames_per_position
        assert (window.start_frame, window.valid_grid) == (0, spec.size_grid)
        data = DataSpec(annotations="", videos="", window=spec)
        np.testing.assert_allclose(
            to_seconds(window.segments_grid, window_meta(window, data)), case.video.segments_seconds, atol=1e-4
        )


def test_instances_of_a_whole_video_are_cut_to_it():
    spec = WindowSpec(kind="resize", size_grid=10)
    video = make_video(50, (-5, 25), (40, 80))
    window = training_window(video, 47, spec, Cut())
    np.testing.assert_allclose(window.segments_grid, [[0, 5], [8, 10]])


def test_sliding_is_the_kind_that_is_drawn_and_stepped():
    spec, video = WindowSpec(size_grid=8, stride_frames=1), make_video(20, (0, 20))
    assert evaluation_windows(video, spec) == sliding_windows(video, spec)
    assert [p.start_grid for p in evaluation_windows(make_video(16), spec, repeat_windows=True)] == [0, 4, 8, 8]
    assert training_window(video, 20, spec, Cut(3)).start_frame == 3
    assert evaluation_window(evaluation_windows(video, spec)[1], 20, spec).start_frame == 4
