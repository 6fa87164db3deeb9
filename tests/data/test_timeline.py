"""Frames, numbers and seconds: what is on the screen at a second is what is found for it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.annotations import Video
from adatad.data.timeline import JUMP_SECONDS, Timeline, timeline_of
from adatad.data.windows import Window, evaluation_window, evaluation_windows, resized_window, training_window
from adatad.evaluation.postprocess import WindowMeta, to_seconds
from adatad.spec.data_sections import WindowSpec

gaps = st.lists(st.floats(0.002, 3.0), min_size=1, max_size=60)


def timeline(times, start=0.0, last=0.0) -> Timeline:
    return timeline_of(np.asarray(times, np.float64), start, last)


@given(gaps, st.floats(0, 5), st.lists(st.floats(-1, 100), min_size=1, max_size=20))
def test_the_frame_of_a_second_is_the_one_on_the_screen(steps, first, seconds):
    times = first + np.cumsum([0.0, *steps])
    line, wanted = timeline(times), np.array(seconds)
    half = float(np.median(np.diff(times))) / 2 + 1e-9
    for second, frame in zip(wanted, line.frames_at(wanted), strict=True):
        has_come = frame == 0 or times[frame] <= second + half
        next_has_not = frame == len(times) - 1 or times[frame + 1] > second
        assert has_come
        assert next_has_not


@given(st.integers(2, 3000), st.sampled_from([8.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0]), st.data())
def test_frames_at_a_constant_rate_are_their_numbers(count, fps, data):
    jitter = data.draw(st.floats(0, 0.4)) / fps
    noise = np.random.default_rng(count).uniform(-jitter, jitter, count)
    noise[[0, -1]] = 0
    line = timeline(np.arange(count) / fps + noise)
    assert line.is_even
    assert line.duration_seconds == pytest.approx(count / fps)
    for rate in (fps, line.fps, count / round(count / fps, 3)):
        assert line.count_at(rate) == count
        np.testing.assert_array_equal(line.frames_of(np.arange(count), rate), np.arange(count))


@given(gaps, st.floats(1, 120))
def test_numbers_and_seconds_come_back_within_half_an_interval(steps, fps):
    line = timeline(np.cumsum([0.0, *steps]))
    count = line.count_at(fps)
    frames = line.frames_of(np.arange(count), fps)
    assert (np.diff(frames) >= 0).all()
    assert frames.min() >= 0
    assert frames.max() < line.frame_count
    if not line.follows(fps):
        assert abs(count / fps - line.duration_seconds) <= max(0.5 / fps, 1 / fps - line.duration_seconds) + 1e-9


def test_a_pause_shows_its_last_frame_until_the_next_one_comes():
    line = timeline([0.0, 0.1, 0.2, 5.2, 5.3])
    assert line.frames_at(np.array([0.2, 1.0, 3.0, 5.1, 5.16, 5.2])).tolist() == [2, 2, 2, 2, 3, 3]


def test_times_that_start_late_keep_their_offset_and_clocks_of_broadcasts_do_not():
    times = 2 + np.arange(30) / 30
    assert timeline(times, 0.0).first_seconds == 2
    assert timeline(times, 0.0).duration_seconds == pytest.approx(3)
    assert timeline(times, 0.0).frames_at(np.array([0.0, 1.0, 2.0])).tolist() == [0, 0, 0]
    assert timeline(times, 2.0).first_seconds == 0
    assert timeline_of(times, None, 0.0).first_seconds == 0
    assert timeline(times + 2 * JUMP_SECONDS, 0.0).first_seconds == 0


@pytest.mark.parametrize(
    "jump", [-50.0, JUMP_SECONDS + 1, -JUMP_SECONDS * 30], ids=["back", "an hour ahead", "a day back"]
)
def test_a_jump_is_taken_for_one_interval_and_said(jump):
    even = np.arange(200) / 25
    line = timeline(np.where(np.arange(200) < 90, even, even + jump), start=None)
    np.testing.assert_allclose(line.seconds, even)
    assert line.unreliable_because.startswith("its times jump once, first from 3.56 s to ")


def test_frames_out_of_order_are_put_in_order():
    times = np.arange(20) / 25
    line = timeline(times[[0, 2, 1, 3, 5, 4, *range(6, 20)]])
    np.testing.assert_allclose(line.seconds, times)
    assert not line.unreliable_because


def test_two_frames_at_one_time_show_the_later_one():
    line = timeline([0.0, 0.1, 0.1, 0.2])
    assert line.frames_at(np.array([0.1])).tolist() == [2]


def test_a_few_untold_times_are_filled_up_and_many_are_no_times():
    times = [None, 0.1, None, 0.3, 0.4, None]
    np.testing.assert_allclose(timeline(times, None).seconds, np.arange(6) / 10)
    for none in ([None] * 4, [0.0, None, None, None], [0.5] * 4):
        line = timeline(none)
        assert not line.has_times
        assert line.unreliable_because
        assert line.count_at(25.0) == 4
        assert line.frames_of(np.arange(4), 25.0).tolist() == [0, 1, 2, 3]


def test_the_last_frame_stays_as_long_as_the_file_says_if_that_can_be():
    uneven = [0.0, 0.1, 0.5, 1.5]
    assert timeline(uneven, last=0.4).duration_seconds == pytest.approx(1.9)
    assert timeline(uneven, last=0.0).duration_seconds == pytest.approx(2.5)
    assert timeline(uneven, last=9999.0).duration_seconds == pytest.approx(2.5)
    assert timeline([0.0], last=0.2).duration_seconds == pytest.approx(0.2)


def test_a_scale_of_a_changing_rate_is_that_of_most_frames():
    assert timeline(np.arange(100) / 25).usual_fps == pytest.approx(25)
    assert timeline([*np.arange(100) / 25, *(10 + np.arange(5))]).usual_fps == pytest.approx(25)
    assert timeline(np.cumsum([0.0, *[0.001] * 50, 3.0])).usual_fps == 120


@given(
    st.integers(2, 2000), st.sampled_from([8.0, 23.976, 25.0, 29.97, 30.0, 59.94]), st.integers(2, 64),
    st.sampled_from([(1, 1), (4, 1), (4, 2), (16, 4)]), st.integers(0, 99),
)  # fmt: skip
def test_windows_of_a_constant_rate_are_those_of_counting(count, fps, size, steps, seed):
    line = timeline(np.arange(count) / fps)
    duration = round(count / fps, 4)
    segments = np.array([[0.1, 0.4], [0.5, 0.9]]) * duration
    video = Video("v", duration, count / duration, count, segments, np.trunc(segments * count / duration), np.arange(2))
    stride, per_position = steps
    sliding = WindowSpec(size_grid=size, stride_frames=stride, frames_per_position=per_position)
    numbers = line.count_at(video.fps)
    assert numbers == count
    drawn = [training_window(video, total, sliding, np.random.default_rng(seed)) for total in (count, numbers)]
    assert_same(drawn[0], drawn[1], line.frames_of(drawn[1].indices, video.fps))
    for place in evaluation_windows(video, sliding):
        windows = [evaluation_window(place, total, sliding) for total in (count, numbers)]
        assert_same(windows[0], windows[1], line.frames_of(windows[1].indices, video.fps))
    resized = WindowSpec(kind="resize", size_grid=size, frames_per_position=per_position)
    whole = [resized_window(video, count, resized, times) for times in (None, line)]
    assert_same(whole[0], whole[1], whole[1].indices)


def assert_same(counted: Window, timed: Window, frames: np.ndarray) -> None:
    np.testing.assert_array_equal(frames, counted.indices)
    np.testing.assert_array_equal(timed.segments_grid, counted.segments_grid)
    assert (timed.valid_grid, timed.start_frame) == (counted.valid_grid, counted.start_frame)


@given(st.floats(2, 500), st.floats(5, 60), st.floats(0, 0.9), st.floats(0.01, 0.1), st.sampled_from([1, 4]))
def test_seconds_come_back_from_the_grid(duration, fps, start, length, stride):
    window = WindowSpec(size_grid=128, stride_frames=stride)
    segment = np.array([[start, start + length]]) * duration
    frames = round(duration * fps)
    rate = frames / duration
    video = Video("v", duration, rate, frames, segment, np.trunc(segment * rate), np.zeros(1, np.int64))
    place = replace(evaluation_windows(video, window)[-1], instances=(video.segments_frames, video.labels))
    found = evaluation_window(place, frames, window)
    meta = WindowMeta("v", duration, rate, stride, found.start_frame)
    np.testing.assert_allclose(to_seconds(found.segments_grid, meta), segment, atol=1 / rate + 1e-4 * duration)
