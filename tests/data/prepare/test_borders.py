"""Labels against pixels: true borders pass, shifted ones are listed with the shift, and nothing is said where nothing
can be."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.decode import open_video
from adatad.data.prepare.borders import frames_for_borders, suspicious_instances
from adatad.data.prepare.cells import SIDE, grey_cells

RATE = 8
INSTANCES = [(3.0, 7.0), (12.0, 15.5), (22.0, 28.0)]


def video(moving, seconds=36.0, rate=RATE):
    """Times and cells of a video in which one cell flickers, or another one is bright, within the instances."""
    times = np.arange(0, seconds, 1 / rate)
    cells = 90 + np.random.default_rng(0).normal(0, 0.3, (len(times), SIDE * SIDE)).astype(np.float32)
    inside = np.any([(times >= start) & (times < end) for start, end in INSTANCES], axis=0)
    # Twice a second, so that every rate shows it.
    cells[inside, 5] += 60 * (times[inside] * 2 % 1 < 0.5) if moving else 60
    return times, cells


def moved(by):
    return [(start + by, end + by) for start, end in INSTANCES]


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("rate", [8, 30, 5])
def test_labels_that_are_shifted_by_two_seconds_are_suspicious_and_true_ones_are_not(moving, rate):
    times, cells = video(moving, rate=rate)
    assert suspicious_instances(times, cells, INSTANCES) == []
    for by in (-2.0, 2.0):
        found = suspicious_instances(times, cells, moved(by))
        assert [(s.start_seconds, s.end_seconds) for s in found] == moved(by)
        assert all(s.better_shift_seconds == pytest.approx(-by, abs=0.5) for s in found)


def test_on_the_built_in_videos_shifted_labels_are_found_and_true_ones_pass(tiny_data):
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    found = {0.0: 0, 2.0: 0}
    for name, entry in database.items():
        with open_video(tiny_data / "videos" / f"{name}.mp4") as reader:
            times, cells = reader.timeline.seconds, grey_cells(reader.frames(np.arange(reader.frame_count)))
        for by in found:
            instances = [(start + by, end + by) for start, end in (item["segment"] for item in entry["annotations"])]
            found[by] += bool(suspicious_instances(times, cells, instances))
    assert found[0.0] == 0
    assert found[2.0] >= len(database) / 2


def test_where_nothing_can_be_said_nothing_is():
    times, cells = video(moving=True)
    still = np.full_like(cells, 90)
    assert suspicious_instances(times, still, moved(2.0)) == []
    assert suspicious_instances(times, cells, []) == []
    # At the ends, outside, and of a video that is shorter than what is compared.
    assert suspicious_instances(times, cells, [(0.0, 36.0), (-5.0, 1e300)]) == []
    assert suspicious_instances(times[:16], cells[:16], INSTANCES) == []
    assert suspicious_instances(times[:0], cells[:0], INSTANCES) == []


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=6))
def test_only_given_instances_are_listed(instances):
    times, cells = video(moving=True)
    assert {s[:2] for s in suspicious_instances(times, cells, instances)} <= set(instances)


def test_frames_are_spread_over_a_video_at_the_rate_that_is_looked_at():
    assert frames_for_borders(np.arange(300) / 30).size == 80
    assert frames_for_borders(np.arange(50) / 5).tolist() == list(range(50))
    assert frames_for_borders(np.zeros(0)).size == 0
