"""The picture of a run's first batch: labels stand where the detector gets them, whatever the window."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from adatad.data.annotations import Video
from adatad.data.dataset import Batch
from adatad.data.windows import Window
from adatad.report.first_batch import FRAMES, MAX_LANES, MAX_WINDOWS, draw_first_batch, image_to_png
from adatad.report.timelines import to_image
from adatad.spec.data_sections import WindowSpec

GRID = 16
SLIDING = WindowSpec(size_grid=GRID, frames_per_position=2, stride_frames=4)


def batch_of(segments, windows=1, name="cut $5 / \u6599\u7406\n", frames=2 * GRID, valid=GRID, start=40):
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)
    video = Video(name, 60.0, 10.0, 600, nothing[0], *nothing)
    window = Window(video, start, np.arange(frames), valid, *nothing)
    own = torch.tensor(segments, dtype=torch.float32).reshape(-1, 2)
    return Batch(
        torch.randint(0, 256, (windows, 3, frames, 8, 12), dtype=torch.uint8), torch.ones(windows, GRID).bool(),
        torch.zeros(windows, dtype=torch.int64), [own] * windows, [torch.zeros(len(own), dtype=torch.int64)] * windows,
        [window] * windows, [None] * windows,
    )  # fmt: skip


def bars_of(axes) -> list[tuple[float, float]]:
    return [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches if isinstance(p, Rectangle)]


def lines_of(axes) -> set[float]:
    return {float(line.get_xdata()[0]) for line in axes.lines}


def test_a_label_is_drawn_at_its_place_above_the_frames_and_through_them():
    figure = draw_first_batch(batch_of([[2.0, 5.5]]), SLIDING, ["pour"])
    bars, strip = figure.axes
    assert bars_of(bars) == [(2.0, 5.5)]
    assert lines_of(strip) == {2.0, 5.5}
    assert bars.get_xlim() == strip.get_xlim() == (0, GRID)
    # Position 0 is frame 40 of 10 a second, and a position is 4 frames.
    assert [label.get_text() for label in strip.get_xticklabels()][::8] == ["4.0 s", "10.4 s"]
    # Frame n of the window stands at position n / 2.
    places = [np.mean(image.get_extent()[:2]) for image in strip.images]
    assert places == pytest.approx([n / 2 for n in range(1, 2 * GRID, 2)])


def test_a_window_of_a_whole_video_and_a_part_of_a_window():
    whole = WindowSpec(kind="resize", size_grid=GRID)
    _, strip = draw_first_batch(batch_of([[2.0, 5.5]], frames=GRID), whole, ["pour"]).axes
    assert [label.get_text() for label in strip.get_xticklabels()][::8] == ["0.0 s", "60.0 s"]
    # The second half of the frames, as a rank that shares windows has them.
    _, strip = draw_first_batch(batch_of([[2.0, 5.5]], frames=GRID), SLIDING, ["pour"], first_frame=GRID).axes
    extents = [image.get_extent()[:2] for image in strip.images]
    assert len(extents) == FRAMES // 2
    assert np.mean(extents[0]) == GRID / 2 + 0.5
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(extents))


@pytest.mark.parametrize(("windows", "valid"), [(1, GRID), (MAX_WINDOWS + 2, 1)])
def test_no_label_and_many_windows_can_be_drawn(windows, valid):
    figure = draw_first_batch(batch_of([], windows, valid=valid), SLIDING, ["pour"])
    assert len(figure.axes) == 2 * min(windows, MAX_WINDOWS)
    assert not lines_of(figure.axes[1])
    # Padding is grey in both axes.
    assert bars_of(figure.axes[0]) == ([] if valid == GRID else [(valid, GRID)])


def test_the_picture_is_a_png_and_says_what_it_leaves_out():
    crowded = draw_first_batch(batch_of([[1.0, 9.0]] * (MAX_LANES + 3)), SLIDING, ["pour"])
    assert f"{MAX_LANES + 3} labels   3 of them not drawn" in crowded.axes[0].get_title(loc="left")
    assert image_to_png(to_image(crowded)).startswith(b"\x89PNG")
