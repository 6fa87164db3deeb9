"""Timelines: lanes without overlap, pictures of the right kind, videos that can't be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.report.timelines import (
    COLOURS,
    MAX_DETECTIONS,
    MAX_LANES,
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
    assert len(shown_detections([detection(0, 1, score=-1), detection(0, 1, score=-9)])) == 2


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
    image = to_image(draw_timeline("v", 5.0, truth, [detection(1, 2, score=1.0)], thumbnails, ["a"]))
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


def title(*arguments) -> str:
    return draw_timeline(*arguments).axes[0].get_title(loc="left")


def faces(*detections):
    """Colours of the bars of detections."""
    axes = draw_timeline("v", 20.0, [], detections, [], ["a"]).axes[0]
    return [bar.get_facecolor() for bar in axes.patches]


def test_a_score_has_one_colour_in_every_video():
    alone, beside_a_better_one = (
        faces(detection(1, 2, score=0.3)),
        faces(detection(1, 2, score=0.3), detection(4, 5, score=0.9)),
    )
    assert alone[0] in beside_a_better_one
    colours = [faces(detection(1, 2, score=score))[0] for score in (-1, 0, 0.03, 0.5, 1, 7)]
    assert colours[0] == colours[1]
    assert colours[4] == colours[5]
    brightness = [sum(colour[:3]) for colour in colours[1:5]]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(brightness)) == 4
    legend = draw_timeline("v", 20.0, [], [], [], ["a"]).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["score 0", "0.25", "0.5", "0.75", "1"]


def test_what_is_not_drawn_is_counted():
    items = [detection(i % 9, i % 9 + 1, score=0.9 - i / 1000) for i in range(300)]
    assert "260 detections not drawn, none above 0.86" in title("v", 10.0, [], items, [], ["a"])
    assert "not drawn" not in title("v", 10.0, [], items[:MAX_DETECTIONS], [], ["a"])
    many = [{"segment": [0, 5], "label": "a"}] * (MAX_LANES + 7)
    assert "7 annotated segments not drawn" in title("v", 10.0, many, [], [], ["a"])
    outside = title("v", 10.0, [{"segment": [1000, 4000], "label": "a"}], [detection(-3, -1)], [], ["a"])
    assert "2 segments outside of the video" in outside


NAMES = [
    "$\\frac{$",
    "a $x_{y$ b",
    "costs $5 or $6",
    "\ud800",
    "\x1b[31m",
    "two\nlines",
    "\u4e2d",
    "x" * 5000,
    "",
    "_",
    "\0",
]


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn():
    truth = [{"segment": [i, i + 1], "label": name} for i, name in enumerate(NAMES)]
    found = [detection(i, i + 1, name) for i, name in enumerate(NAMES)]
    to_image(draw_timeline(" ".join(NAMES[:7]), 12.0, truth, found, [], NAMES))
    assert "costs $5 or $6" in title("costs $5 or $6", 12.0, [], [], [], [])


def test_a_video_that_cannot_be_read_gives_no_thumbnails(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"nothing")
    assert read_thumbnails(tmp_path / "v.mp4", 10.0, 80) == []
    to_image(draw_timeline("v", 10.0, [], [], [], []))


def test_thumbnails_of_a_video(tiny_data):
    video = sorted((tiny_data / "videos").iterdir())[0]
    thumbnails = read_thumbnails(video, 10.0, 80)
    assert [round(seconds, 2) for seconds, _ in thumbnails][:2] == [0.36, 1.07]
    assert thumbnails[0][1].shape == (64, 64, 3)
