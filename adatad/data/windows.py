"""From a video to windows: which frames are decoded, which positions are valid, which segments lie inside.

A window is `size_grid` positions; position i stands for video frame i x stride_frames, and `frames_per_position` frames
are decoded for it. Segments are in grid units here: (frame - first frame of the window) / stride_frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adatad.data.annotations import Video
from adatad.errors import UserError
from adatad.spec.schema import WindowSpec

MAX_TRIES = 200
"""Random windows that are tried for one that holds an instance."""


class WindowError(UserError):
    """A video too short for its annotation; the message names it."""


@dataclass(frozen=True)
class Window:
    """A window of a video. indices: int64 [size_grid x frames_per_position], frames to decode, the last one repeated
    as padding; valid_grid: positions that aren't padding; segments_grid: float32 [n, 2]; labels: int64 [n]."""

    video: Video
    start_frame: int
    indices: np.ndarray
    valid_grid: int
    segments_grid: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class WindowPlace:
    """Where a sliding window lies: positions [start_grid, start_grid + length_grid) of its video."""

    video: Video
    start_grid: int
    length_grid: int


def sliding_windows(video: Video, spec: WindowSpec, repeat_last: bool = False) -> list[WindowPlace]:
    """Windows that cover a video, each `overlap` inside the one before, the last one flush with the end.

    The reference makes the last one twice where the steps fit exactly, and none for a tail it doesn't reach;
    `repeat_last` repeats that.
    """
    positions = -(-video.frames // spec.stride_frames)
    step = int(spec.size_grid * (1 - spec.overlap))
    starts: list[int] = []
    for index in range(max(1, positions // step)):
        start, end = index * step, index * step + spec.size_grid
        starts.append(start if end <= positions else max(0, positions - spec.size_grid))
        if end > positions or (end == positions and not repeat_last):
            break
    if not repeat_last and starts[-1] + spec.size_grid < positions:
        starts.append(positions - spec.size_grid)
    return [WindowPlace(video, start, min(spec.size_grid, positions - start)) for start in starts]


def frame_list(total_frames: int, spec: WindowSpec) -> np.ndarray:
    """Every frame that could be decoded of a video with `total_frames` frames, in order."""
    return np.arange(0, total_frames, spec.stride_frames // spec.frames_per_position)


def sliding_window(place: WindowPlace, total_frames: int, spec: WindowSpec) -> Window:
    """Frames of a sliding window; no segments, since windows are evaluated against whole videos.

    total_frames: what the decoder reports, which may differ from the annotation. Raises WindowError if it is so much
    less that no frame is left.
    """
    per_position = spec.frames_per_position
    first, last = place.start_grid * per_position, (place.start_grid + place.length_grid) * per_position
    indices = frame_list(total_frames, spec)[first:last]
    if not len(indices):
        raise WindowError(
            f"video {place.video.name!r} has {total_frames} frames, the annotation says {place.video.frames}: "
            f"its window from frame {place.start_grid * spec.stride_frames} would be empty; "
            "mend the annotation or the file"
        )
    indices, valid = _pad(indices, spec)
    nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    return Window(place.video, place.start_grid * spec.stride_frames, indices, valid, *nothing)


def random_window(video: Video, total_frames: int, spec: WindowSpec, draw: np.random.Generator) -> Window:
    """A random part of a video that holds at least one instance, if one is found in `MAX_TRIES`.

    Instances are cut at the window's ends and stay if at least `min_visible` of them is inside.
    """
    listed = frame_list(total_frames, spec)
    segments = video.segments_frames / spec.stride_frames * spec.frames_per_position
    length = _random_length(len(listed), spec, draw)
    start, kept = 0, np.arange(len(segments))
    if length < len(listed):
        for _ in range(MAX_TRIES):
            start = int(draw.integers(len(listed) - length + 1))
            kept = _visible(segments, start, start + length, spec.min_visible)
            if len(kept):
                break
        segments = np.clip(segments, start, start + length)
    indices, valid = _pad(listed[start : start + length], spec)
    inside = ((segments[kept] - start) / spec.frames_per_position).astype(np.float32)
    return Window(video, int(listed[start]), indices, valid, inside, video.labels[kept])


def _random_length(available: int, spec: WindowSpec, draw: np.random.Generator) -> int:
    """Frames of a random window: a full window, or for a short video all of it or a random share of it."""
    wanted = spec.size_grid * spec.frames_per_position
    if available > wanted:
        return wanted
    if spec.crop_ratio is None:
        return available
    low, high = (round(ratio * available) for ratio in spec.crop_ratio)
    return int(draw.integers(max(low, 1), max(min(high, available), max(low, 1)) + 1))


def _visible(segments: np.ndarray, start: float, end: float, min_visible: float) -> np.ndarray:
    """Numbers of the segments of which at least `min_visible` lies in [start, end]."""
    lengths = segments[:, 1] - segments[:, 0]
    inside = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], start)
    return np.flatnonzero((lengths > 0) & (inside > 0) & (inside >= min_visible * lengths))


def _pad(indices: np.ndarray, spec: WindowSpec) -> tuple[np.ndarray, int]:
    """Repeat the last frame up to a whole window; returns the indices and the number of valid positions."""
    missing = spec.size_grid * spec.frames_per_position - len(indices)
    return np.pad(indices, (0, missing), mode="edge"), len(indices) // spec.frames_per_position
