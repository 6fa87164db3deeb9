"""Timelines: lanes without overlap, pictures of the right kind, videos that can't be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.report.timelines import (
    COLOURS,
    MAX_DETECTIONS,
    class_style,
    draw_timeline,
    pack_lanes,
    read_thumbnails,
    shown_detections,
    to_image,
)

segments = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda p: (p[0], p[0] + p[1])), max_size=20)


@given(segments)
def test_segments_of_a_lane_do_not_overlap_and_no_lane_is_spare(items):
    lanes = pack_lanes(items)
    for index, (start, end) in enumerate(items):
        for other in range(index):
            if lanes[other] == lanes[index]:
                assert items[other][1] <= start or end <= items[other][0]
    assert set(lanes) == set(range(max(lanes, default=-1) + 1))
    deepest = max((sum(s <= t < e for s, e in items) for t in range(71)), default=0)
    assert max(lanes, default=-1) + 1 <= max(deepest, 1) + sum(s == e for s, e in items)


def detection(start, end, label="a", score=0.5):
    return {"segment": [start, end], "label": label, "score": score}


def test_only_the_better_detections_are_drawn():
    items = [detection(i, i + 1, score=0.9 - i / 100) for i in range(80)]
    shown = shown_detections(items)
    assert len(shown) == MAX_DETECTIONS
    assert shown_detections([detection(0, 1, score=0.8), detection(0, 1, score=0.1)]) == [detection(0, 1, score=0.8)]
    assert shown_detections([]) == []


def test_classes_keep_their_colour_and_far_ones_differ_by_hatching():
    classes = [str(number) for number in range(30)]
    styles = [class_style(classes, label) for label in classes]
    assert len(set(styles)) == 30
    assert class_style(classes, "0") == (COLOURS[0], "")
    class_style(classes, "never seen")


def test_a_timeline_is_a_picture_that_shows_its_detections():
    thumbnails = [(s + 0.5, np.full((8, 8, 3), 40 * s, np.uint8)) for s in range(5)]
    truth = [{"segment": [1.0, 2.0], "label": "a"}]
    empty = to_image(draw_timeline("v", 5.0, truth, [], thumbnails, ["a"]))
    image = to_image(draw_timeline("v", 5.0, truth, [detection(1, 2)], thumbnails, ["a"]))
    assert image.dtype == np.uint8
    assert image.shape == empty.shape
    assert image.shape[1] == 1100
    colour = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    painted = [(np.abs(picture.astype(int) - colour).max(2) < 3).sum() for picture in (empty, image)]
    assert painted[1] > 1.8 * painted[0] > 0


@pytest.mark.parametrize(("seconds", "drawn"), [(0.3, False), (3.0, True)])
def test_a_label_is_drawn_only_on_a_bar_that_it_fits(seconds, drawn):
    def picture(label):
        truth = [{"segment": [1.0, 1.0 + seconds], "label": label}]
        return to_image(draw_timeline("v", 20.0, truth, [], [], [label]))

    assert (picture("Volleyball") != picture("")).any() == drawn


def test_a_video_that_cannot_be_read_gives_no_thumbnails(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"nothing")
    assert read_thumbnails(tmp_path / "v.mp4", 10.0, 80) == []
    to_image(draw_timeline("v", 10.0, [], [], [], []))


def test_thumbnails_of_a_video(tiny_data):
    video = sorted((tiny_data / "videos").iterdir())[0]
    thumbnails = read_thumbnails(video, 10.0, 80)
    assert [round(seconds, 2) for seconds, _ in thumbnails][:2] == [0.36, 1.07]
    assert thumbnails[0][1].shape == (64, 64, 3)
