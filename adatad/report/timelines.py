"""Timelines of videos: annotated segments above, detections below, thumbnails along the time axis."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from adatad.data.annotations import Annotations, Video, read_annotations
from adatad.data.dataset import video_path
from adatad.data.decode import open_video
from adatad.files import shown
from adatad.spec import Spec
from adatad.spec.quirks import Quirks

Detection = dict[str, Any]
Thumbnail = tuple[float, np.ndarray]
"""Seconds, uint8 [height, width, 3]."""

THUMBNAILS = 14
MAX_DETECTIONS = 40
"""Detections of a video that are drawn, the best by score."""
LEAST_SHARE = 0.25
"""Detections below this share of the video's best score aren't drawn, but counted."""
# Data sets such as MultiTHUMOS have hundreds of instances in a video; the figure grows by each lane.
MAX_LANES = 40
"""Rows of annotated segments; segments beyond them are only counted."""
LEAST_STRENGTH = 0.12
"""Share of the colour that a detection with score 0 has; one with score 1 has all of it, in every video."""
LEGEND_SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_CHARACTERS = 80
"""Characters of a name in a picture."""
# As in page_files/base.css, light: a class looks alike in pictures and on pages.
COLOURS = ("#7e85da", "#a9400c", "#056339", "#81316c", "#1f9bb3", "#c78000", "#523db1", "#a88577")
HATCHES = ("", "//", "..", "++")
names_are_text = matplotlib.rc_context({"text.parse_math": False, "text.usetex": False})
"""Decorator for functions that draw names: matplotlib would read "costs $5 or $6" as a formula."""


def picture_text(name: str) -> str:
    """Return a name as it is drawn: without control characters, cut to MAX_CHARACTERS."""
    text = shown(name)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "\u2026"


def class_style(classes: Sequence[str], label: str) -> tuple[str, str]:
    """Return colour and hatching of a class, by its position in the class list."""
    # A class that isn't in the list, as of an older run, gets the look after the last.
    # By its place in the list, so that one class has one colour in every picture of a run.
    number = classes.index(label) if label in classes else len(classes)
    return COLOURS[number % len(COLOURS)], HATCHES[number // len(COLOURS) % len(HATCHES)]


def pack_lanes(segments: Sequence[Sequence[float]], gap_seconds: float = 0.0) -> list[int]:
    """Return a lane for each segment so that none overlap in a lane: by start, each in the lowest free lane."""
    ends: list[float] = []
    lanes = [0] * len(segments)
    for index in sorted(range(len(segments)), key=lambda i: segments[i][0]):
        start, end = segments[index]
        # The lowest lane that has ended by now; with this order, lanes are as few as can be.
        lane = next((lane for lane, last in enumerate(ends) if last + gap_seconds <= start), len(ends))
        if lane == len(ends):
            ends.append(end)
        ends[lane] = end
        lanes[index] = lane
    return lanes


def shown_detections(detections: Sequence[Detection]) -> list[Detection]:
    """Return the detections that a timeline draws: the best ones, down to a share of the best score."""
    best = sorted(detections, key=lambda item: -item["score"])[:MAX_DETECTIONS]
    # Scores below 0 are no probabilities, and have no share.
    return [item for item in best if best[0]["score"] <= 0 or item["score"] >= LEAST_SHARE * best[0]["score"]]


def strength(score: float) -> float:
    """Return the share of its class's colour that a detection has, by its score alone: pictures stay comparable."""
    return LEAST_STRENGTH + (1 - LEAST_STRENGTH) * min(max(score, 0.0), 1.0)


@names_are_text
def draw_timeline(
    name: str,
    duration_seconds: float,
    truth: Sequence[Detection],
    detections: Sequence[Detection],
    thumbnails: Sequence[Thumbnail],
    classes: Sequence[str],
) -> Figure:
    """Draw one video: rows of annotated segments, rows of detections (the lower the score, the fainter), thumbnails.

    The title counts what isn't drawn.
    """
    best = shown_detections(detections)
    lanes_above, lanes_below = (pack_lanes([item["segment"] for item in items]) for items in (truth, best))
    annotated = [item for item, lane in zip(truth, lanes_above, strict=True) if lane < MAX_LANES]
    lanes_above = [lane for lane in lanes_above if lane < MAX_LANES]
    rows_above, rows_below = max(lanes_above, default=0) + 1, max(lanes_below, default=0) + 1
    # In inches: title and axis, the lanes, the strip of pictures.
    height = 1.0 + 0.3 * (rows_above + rows_below) + 0.75
    figure = Figure(figsize=(11, height), dpi=100, layout="constrained")
    # Without pyplot, which keeps figures and looks for a display.
    FigureCanvasAgg(figure)
    bars, strip = figure.subplots(2, 1, sharex=True, height_ratios=[rows_above + rows_below + 0.6, 2.2])
    draw_rows(bars, annotated, lanes_above, 0.0, classes, faint=False)
    draw_rows(bars, best, lanes_below, rows_above + 0.6, classes, faint=True)
    # Downwards: annotations above detections.
    bars.set_ylim(rows_above + rows_below + 0.6, 0)
    bars.set_yticks([rows_above / 2, rows_above + 0.6 + rows_below / 2], ["annotated", "detected"])
    bars.axhline(rows_above + 0.3, color="0.8", linewidth=0.8)
    if not best:
        middle = rows_above + 0.6 + rows_below / 2
        bars.text(duration_seconds / 2, middle, "nothing detected", ha="center", va="center", color="0.5", fontsize=8)
    draw_thumbnails(strip, thumbnails, duration_seconds)
    strip.set_xlim(0, duration_seconds)
    for axes in (bars, strip):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
    strip.set_xlabel("seconds", fontsize=8)
    title = [f"{picture_text(name)}   {duration_seconds:.1f} s", *_not_drawn(truth, annotated, detections, best)]
    # Drawn up to the video's end; that there is more hints at a wrong duration or frame rate.
    outside = sum(item["segment"][1] < 0 or item["segment"][0] > duration_seconds for item in (*annotated, *best))
    title += [f"{outside} segments outside of the video"] if outside else []
    bars.set_title("   ".join(title), fontsize=9, loc="left")
    _draw_scale(bars)
    return figure


def _not_drawn(
    truth: Sequence[Detection],
    annotated: Sequence[Detection],
    detections: Sequence[Detection],
    best: Sequence[Detection],
) -> Iterator[str]:
    if len(annotated) < len(truth):
        yield f"{len(truth) - len(annotated)} annotated segments not drawn"
    if len(best) < len(detections):
        least = min(item["score"] for item in best)
        yield f"{len(detections) - len(best)} detections not drawn, none above {least:.2g}"


def _draw_scale(axes: Axes) -> None:
    """Draw the legend of scores above the right end of the axes."""
    grey = to_rgb("0.2")
    patches = [Rectangle((0, 0), 1, 1, facecolor=_mixed(grey, strength(score))) for score in LEGEND_SCORES]
    labels = [f"score {score:g}" if score == LEGEND_SCORES[0] else f"{score:g}" for score in LEGEND_SCORES]
    axes.legend(
        patches, labels, ncols=len(labels), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False,
        fontsize=7, handlelength=1.2, columnspacing=0.8, handletextpad=0.4,
    )  # fmt: skip


def _mixed(colour: Sequence[float], share: float) -> tuple[float, ...]:
    """Return a colour mixed with white: transparency would make text on it unreadable."""
    return tuple(1 - share * (1 - channel) for channel in colour)


class BarLabel(Text):
    """A label on a bar, left out if the bar is too short: a text's width is known only when it is drawn."""

    def __init__(self, bar: Rectangle, *place_and_text: object, **looks: object):
        super().__init__(*place_and_text, **looks)
        self._bar = bar

    def draw(self, renderer: RendererBase) -> None:
        """Draw the label if it fits."""
        if self.get_window_extent(renderer).x1 <= self._bar.get_window_extent(renderer).x1:
            super().draw(renderer)


def draw_rows(
    axes: Axes, items: Sequence[Detection], lanes: Sequence[int], top: float, classes: Sequence[str], faint: bool
) -> None:
    """Draw segments as bars of their class, each in its lane below `top`; faint: the fainter the lower their score."""
    for item, lane in zip(items, lanes, strict=True):
        start, end = item["segment"]
        colour, hatch = class_style(classes, item["label"])
        face = _mixed(to_rgb(colour), strength(item["score"]) if faint else 1.0)
        bar = Rectangle((start, top + lane + 0.06), end - start, 0.88, facecolor=face, hatch=hatch, edgecolor="w")
        axes.add_patch(bar)
        text = (f"{item['score']:.2f} " if faint else "") + picture_text(item["label"])
        # Luma (BT.601): dark text on bright bars.
        bright = 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] > 0.55
        colour = "black" if bright else "white"
        axes.add_artist(BarLabel(bar, start + 0.1, top + lane + 0.52, text, fontsize=7, va="center", color=colour))


def draw_thumbnails(axes: Axes, thumbnails: Sequence[Thumbnail], duration_seconds: float) -> None:
    """Draw pictures side by side, each at its place on an axis of that length."""
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    if not thumbnails:
        axes.text(duration_seconds / 2, 0.5, "no pictures: unreadable video", ha="center", fontsize=8, color="0.5")
    width = duration_seconds / max(len(thumbnails), 1)
    for seconds, image in thumbnails:
        # In data coordinates: each stands at its seconds, with a gap to the next.
        axes.imshow(image, extent=(seconds - 0.48 * width, seconds + 0.48 * width, 0, 1), aspect="auto")


def read_thumbnails(path: Path, duration_seconds: float, frames: int) -> list[Thumbnail]:
    """Read pictures from the middle of equal parts of a video; none if it can't be read.

    frames: of the video by its annotation; 0 to take the file's own number.
    """
    # Middles of the parts: the very first and last frames are often black.
    seconds = (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS * duration_seconds
    try:
        # At the annotation's rate, so that pictures show the seconds at which they are drawn.
        with open_video(path, fps=frames / duration_seconds) as reader:
            frames = frames or reader.frame_count
            last = min(frames, reader.frame_count) - 1
            # A file may have fewer frames than its annotation says.
            indices = np.minimum((seconds / duration_seconds * frames).astype(int), last)
            return list(zip(seconds.tolist(), reader.frames(indices), strict=True))
    except Exception:
        # A broken video can make a reader raise anything, and no picture may cost the result of a run.
        return []


def to_image(figure: Figure) -> np.ndarray:
    """Render a figure as uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    with _without_warnings():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_png(figure: Figure) -> bytes:
    """Render a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with _without_warnings():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence warnings about letters that the font lacks and about little room: one for each picture would be many."""
    with warnings.catch_warnings(action="ignore"):
        yield


def validation_timelines(
    spec: Spec,
    detections: dict[str, list[Detection]],
    limit: int | None = None,
    annotations: Annotations | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Yield (name, timeline) of the validation videos, in the order of the annotation file.

    annotations: the spec's, if they have been read already.
    """
    annotations = annotations or read_annotations(spec.data, Quirks.of(spec.compat))
    for video in annotations.validation[:limit]:
        yield video.name, draw_video(spec, annotations, video, detections.get(video.name, []))[0]


def draw_video(
    spec: Spec, annotations: Annotations, video: Video, detections: Sequence[Detection]
) -> tuple[Figure, list[Thumbnail]]:
    """Return the timeline of a validation video, and the thumbnails in it."""
    thumbnails = read_thumbnails(video_path(spec.data, video.name), video.duration_seconds, video.frames)
    truth = [
        {"segment": segment.tolist(), "label": annotations.classes[label]}
        for segment, label in zip(video.segments_seconds, video.labels, strict=True)
    ]
    classes = annotations.classes
    return draw_timeline(video.name, video.duration_seconds, truth, detections, thumbnails, classes), thumbnails
