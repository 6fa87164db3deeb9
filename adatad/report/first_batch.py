"""A picture of the windows that a run's first step was computed from: frames along time, and the labels as bars above
them with lines down through the frames, so that a label that is shifted or of another video is seen."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from adatad.data.dataset import Batch
from adatad.data.windows import Window
from adatad.report.timelines import draw_rows, draw_thumbnails, names_are_text, pack_lanes, picture_text
from adatad.spec.data_sections import WindowSpec

FIRST_BATCH = "first_batch.png"
"""Name of the picture in a run's directory."""
MAX_WINDOWS = 4
"""Windows that are drawn: more would make the picture too high to be looked at."""
FRAMES = 16
"""Frames that are drawn of a window, from the middle of equal parts."""
MAX_LANES = 8
"""Rows of labels of a window; labels beyond them are only counted."""
TICKS = 8


@names_are_text
def draw_first_batch(batch: Batch, spec: WindowSpec, classes: Sequence[str], first_frame: int = 0) -> Figure:
    """Draw the first windows of a micro-batch, one below the other.

    first_frame: number in its window of the first frame that the batch holds, where ranks share windows. Frames are
    drawn as the batch has them now: on a CPU with the step's augmentation, which changes no time.
    """
    windows = batch.windows[:MAX_WINDOWS]
    lanes = [pack_lanes(segments.tolist()) for segments in batch.segments_grid[:MAX_WINDOWS]]
    rows = [min(max(own, default=0) + 1, MAX_LANES) for own in lanes]
    # In inches: rows of labels, and for each window a strip of frames, a title and an axis.
    figure = Figure(figsize=(14, 0.3 * sum(rows) + 1.6 * len(windows)), dpi=100, layout="constrained")
    # Without pyplot, which keeps figures and looks for a display.
    FigureCanvasAgg(figure)
    heights = [height for row in rows for height in (0.3 * row + 0.1, 0.9)]
    axes = figure.subplots(2 * len(windows), 1, height_ratios=heights)
    for number, window in enumerate(windows):
        bars, strip = axes[2 * number], axes[2 * number + 1]
        segments, labels = batch.segments_grid[number].tolist(), batch.labels[number].tolist()
        drawn = [n for n, lane in enumerate(lanes[number]) if lane < MAX_LANES]
        items = [{"segment": segments[n], "label": classes[labels[n]]} for n in drawn]
        draw_rows(bars, items, [lanes[number][n] for n in drawn], 0.0, classes, faint=False)
        bars.set_ylim(rows[number], 0)
        bars.set_yticks([])
        bars.set_title(_title(window, spec, len(segments), len(drawn)), fontsize=9, loc="left")
        own = batch.frames[number].numpy()
        # The length of what is drawn, by which pictures get their width: a part of the window where ranks share it.
        draw_thumbnails(strip, _frames(own, spec, first_frame), own.shape[1] / spec.frames_per_position)
        for start, end in (item["segment"] for item in items):
            for border, style in ((start, "-"), (end, "--")):
                strip.axvline(border, color="white", linewidth=2.5)
                strip.axvline(border, color="black", linewidth=1.2, linestyle=style)
        _finish(bars, strip, window, spec)
    return figure


def image_to_png(image: np.ndarray) -> bytes:
    """Return an image, uint8 [height, width, 3], as the content of a PNG file."""
    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def _frames(frames: np.ndarray, spec: WindowSpec, first_frame: int) -> list[tuple[float, np.ndarray]]:
    """Return (position in grid units, uint8 [height, width, 3]) of frames spread evenly over uint8 [3, n, h, w]."""
    count = frames.shape[1]
    # As many to a position of a part of a window as of a whole one.
    shown = min(max(FRAMES * count // (spec.size_grid * spec.frames_per_position), 1), count)
    numbers = ((np.arange(shown) + 0.5) * count / shown).astype(int)
    # In the units of the labels as the detector gets them, and not in seconds: an error in between shows here as well.
    return [((first_frame + n) / spec.frames_per_position, frames[:, n].transpose(1, 2, 0)) for n in numbers.tolist()]


def _title(window: Window, spec: WindowSpec, labels: int, drawn: int) -> str:
    first, last = _seconds(window, spec, 0.0), _seconds(window, spec, float(window.valid_grid))
    parts = [picture_text(window.video.name), f"{first:.1f} to {last:.1f} s", f"{labels} labels"]
    parts += [f"{labels - drawn} of them not drawn"] if drawn < labels else []
    return "   ".join([*parts, "(lines: solid where a label begins, dashed where it ends)"])


def _seconds(window: Window, spec: WindowSpec, position_grid: float) -> float:
    """Return the second of its video that a position of a window stands for."""
    if spec.kind == "resize":
        return position_grid / spec.size_grid * window.video.duration_seconds
    return (window.start_frame + position_grid * spec.stride_frames) / window.video.fps


def _finish(bars: Axes, strip: Axes, window: Window, spec: WindowSpec) -> None:
    """Give both axes of a window the same extent, with seconds of the video below, and padding in grey."""
    for axes in (bars, strip):
        axes.set_xlim(0, spec.size_grid)
        axes.set_xticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
        if window.valid_grid < spec.size_grid:
            axes.axvspan(window.valid_grid, spec.size_grid, color="0.5", alpha=0.5)
    places = np.linspace(0, spec.size_grid, TICKS + 1)
    strip.set_xticks(places, [f"{_seconds(window, spec, place):.1f} s" for place in places])
