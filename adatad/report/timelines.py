"""Timelines of videos: what is annotated above, what was detected below, thumbnails along the time axis."""

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
"""Of a video, the best by score."""
LEAST_SHARE = 0.25
"""Detections below this share of the video's best score aren't drawn, but counted."""
MAX_LANES = 40
"""Rows of annotated segments; what overlaps more is counted."""
LEAST_STRENGTH = 0.12
"""Of the colour of a detection with score 0; one with score 1 has the whole colour, in every video."""
LEGEND_SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_CHARACTERS = 80
"""Of a name in a picture."""
# Paul Tol's "bright" and "muted" schemes: told apart also by readers who don't see all colours.
COLOURS = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377",
    "#332288", "#DDCC77", "#117733", "#882255", "#44AA99", "#999933",
)  # fmt: skip
HATCHES = ("", "//", "xx", "..")
names_are_text = matplotlib.rc_context({"text.parse_math": False, "text.usetex": False})
"""Decorates what draws names of classes, videos and groups: "costs $5 or $6" is no formula."""


def picture_text(name: str) -> str:
    """A name as it stands in a picture: without control characters, and cut if it is too long for any picture."""
    text = shown(name)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "\u2026"


def class_style(classes: Sequence[str], label: str) -> tuple[str, str]:
    """Colour and hatching of a class, by its place in the class list."""
    number = classes.index(label) if label in classes else len(classes)
    return COLOURS[number % len(COLOURS)], HATCHES[number // len(COLOURS) % len(HATCHES)]


def pack_lanes(segments: Sequence[Sequence[float]], gap_seconds: float = 0.0) -> list[int]:
    """A lane for each segment, so that none overlap in a lane: first come, lowest lane."""
    ends: list[float] = []
    lanes = [0] * len(segments)
    for index in sorted(range(len(segments)), key=lambda i: segments[i][0]):
        start, end = segments[index]
        lane = next((lane for lane, last in enumerate(ends) if last + gap_seconds <= start), len(ends))
        if lane == len(ends):
            ends.append(end)
        ends[lane] = end
        lanes[index] = lane
    return lanes


def shown_detections(detections: Sequence[Detection]) -> list[Detection]:
    """The detections that a timeline draws: the best ones, as far as they come near the best of all."""
    best = sorted(detections, key=lambda item: -item["score"])[:MAX_DETECTIONS]
    # Scores below 0 are no probabilities, and have no share.
    return [item for item in best if best[0]["score"] <= 0 or item["score"] >= LEAST_SHARE * best[0]["score"]]


def strength(score: float) -> float:
    """How much of its class's colour a detection has: by its score alone, so that pictures can be compared."""
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
    """One video: rows of annotated segments, rows of detections (fainter where the score is low, with a legend of the
    scale), thumbnails below. What isn't drawn is counted in the title."""
    best = shown_detections(detections)
    lanes_above, lanes_below = (pack_lanes([item["segment"] for item in items]) for items in (truth, best))
    annotated = [item for item, lane in zip(truth, lanes_above, strict=True) if lane < MAX_LANES]
    lanes_above = [lane for lane in lanes_above if lane < MAX_LANES]
    rows_above, rows_below = max(lanes_above, default=0) + 1, max(lanes_below, default=0) + 1
    height = 1.0 + 0.3 * (rows_above + rows_below) + 0.75
    figure = Figure(figsize=(11, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    bars, strip = figure.subplots(2, 1, sharex=True, height_ratios=[rows_above + rows_below + 0.6, 2.2])
    _draw_rows(bars, annotated, lanes_above, 0.0, classes, faint=False)
    _draw_rows(bars, best, lanes_below, rows_above + 0.6, classes, faint=True)
    bars.set_ylim(rows_above + rows_below + 0.6, 0)
    bars.set_yticks([rows_above / 2, rows_above + 0.6 + rows_below / 2], ["annotated", "detected"])
    bars.axhline(rows_above + 0.3, color="0.8", linewidth=0.8)
    if not best:
        middle = rows_above + 0.6 + rows_below / 2
        bars.text(duration_seconds / 2, middle, "nothing detected", ha="center", va="center", color="0.5", fontsize=8)
    _draw_thumbnails(strip, thumbnails, duration_seconds)
    strip.set_xlim(0, duration_seconds)
    for axes in (bars, strip):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
    strip.set_xlabel("seconds", fontsize=8)
    title = [f"{picture_text(name)}   {duration_seconds:.1f} s", *_not_drawn(truth, annotated, detections, best)]
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
    """A legend of what the strength of a colour means, above the right end of the axes."""
    grey = to_rgb("0.2")
    patches = [Rectangle((0, 0), 1, 1, facecolor=_mixed(grey, strength(score))) for score in LEGEND_SCORES]
    labels = [f"score {score:g}" if score == LEGEND_SCORES[0] else f"{score:g}" for score in LEGEND_SCORES]
    axes.legend(
        patches, labels, ncols=len(labels), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False,
        fontsize=7, handlelength=1.2, columnspacing=0.8, handletextpad=0.4,
    )  # fmt: skip


def _mixed(colour: Sequence[float], share: float) -> tuple[float, ...]:
    """A colour mixed with white rather than transparent: text on it stays readable."""
    return tuple(1 - share * (1 - channel) for channel in colour)


class BarLabel(Text):
    """A label on a bar, left out if the bar is too short for it: how long it is shows only when it is drawn."""

    def __init__(self, bar: Rectangle, *place_and_text: object, **looks: object):
        super().__init__(*place_and_text, **looks)
        self._bar = bar

    def draw(self, renderer: RendererBase) -> None:
        if self.get_window_extent(renderer).x1 <= self._bar.get_window_extent(renderer).x1:
            super().draw(renderer)


def _draw_rows(
    axes: Axes, items: Sequence[Detection], lanes: Sequence[int], top: float, classes: Sequence[str], faint: bool
) -> None:
    for item, lane in zip(items, lanes, strict=True):
        start, end = item["segment"]
        colour, hatch = class_style(classes, item["label"])
        face = _mixed(to_rgb(colour), strength(item["score"]) if faint else 1.0)
        bar = Rectangle((start, top + lane + 0.06), end - start, 0.88, facecolor=face, hatch=hatch, edgecolor="w")
        axes.add_patch(bar)
        text = (f"{item['score']:.2f} " if faint else "") + picture_text(item["label"])
        bright = 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] > 0.55
        colour = "black" if bright else "white"
        axes.add_artist(BarLabel(bar, start + 0.1, top + lane + 0.52, text, fontsize=7, va="center", color=colour))


def _draw_thumbnails(axes: Axes, thumbnails: Sequence[Thumbnail], duration_seconds: float) -> None:
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    if not thumbnails:
        axes.text(duration_seconds / 2, 0.5, "no pictures: unreadable video", ha="center", fontsize=8, color="0.5")
    width = duration_seconds / max(len(thumbnails), 1)
    for seconds, image in thumbnails:
        axes.imshow(image, extent=(seconds - 0.48 * width, seconds + 0.48 * width, 0, 1), aspect="auto")


def read_thumbnails(path: Path, duration_seconds: float, frames: int) -> list[Thumbnail]:
    """Pictures from the middle of equal parts of a video; none if it can't be read, which the picture says. frames: 0
    for those of the file."""
    seconds = (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS * duration_seconds
    try:
        # At the annotation's rate, so that pictures are of the seconds that they stand at.
        with open_video(path, fps=frames / duration_seconds) as reader:
            frames = frames or reader.frame_count
            last = min(frames, reader.frame_count) - 1
            indices = np.minimum((seconds / duration_seconds * frames).astype(int), last)
            return list(zip(seconds.tolist(), reader.frames(indices), strict=True))
    except Exception:
        # Whatever a broken video makes its reader do: a result's pictures are drawn after all work is done.
        return []


def to_image(figure: Figure) -> np.ndarray:
    """uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    with _without_warnings():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with _without_warnings():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A letter that the font lacks is drawn as a box, and a long name leaves less room: neither is worth a line for
    each picture."""
    with warnings.catch_warnings(action="ignore"):
        yield


def validation_timelines(
    spec: Spec,
    detections: dict[str, list[Detection]],
    limit: int | None = None,
    annotations: Annotations | None = None,
) -> Iterator[tuple[str, Figure]]:
    """(name, timeline) of the validation videos, in the order of the annotation file. annotations: the spec's, if they
    have been read already."""
    annotations = annotations or read_annotations(spec.data, Quirks.of(spec.compat))
    for video in annotations.validation[:limit]:
        thumbnails = read_thumbnails(video_path(spec.data, video.name), video.duration_seconds, video.frames)
        found = detections.get(video.name, [])
        truth = _truth(video, annotations)
        yield (
            video.name,
            draw_timeline(video.name, video.duration_seconds, truth, found, thumbnails, annotations.classes),
        )


def _truth(video: Video, annotations: Annotations) -> list[Detection]:
    return [
        {"segment": segment.tolist(), "label": annotations.classes[label]}
        for segment, label in zip(video.segments_seconds, video.labels, strict=True)
    ]
