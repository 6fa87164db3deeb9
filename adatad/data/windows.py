"""From a video to windows: which frames are decoded, which positions are valid, which segments lie inside.

A window is `size_grid` positions, and `frames_per_position` frames are decoded for each. In a sliding or random window
position i stands for video frame i x stride_frames, and segments are in grid units here: (frame - offset_frames - first
frame of the window) / stride_frames. In a resized one the positions share out the whole video.

Frames are numbered at the rate of the annotation, so that positions and labels are in one time: a reader that was
opened at that rate finds the frame that is shown at the time of each number (adatad/data/timeline.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from adatad.data.annotations import Video
from adatad.data.timeline import Timeline
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
    """Where a window lies: positions [start_grid, start_grid + length_grid) of its video. instances: segments in frames
    (float64 [n, 2]) and labels (int64 [n]) that it is to be given, if it is trained on."""

    video: Video
    start_grid: int
    length_grid: int
    instances: tuple[np.ndarray, np.ndarray] = (np.zeros((0, 2)), np.zeros(0, np.int64))


def evaluation_windows(video: Video, spec: WindowSpec, repeat_windows: bool = False) -> list[WindowPlace]:
    """All windows that a video is evaluated in; repeat_windows: as in `sliding_windows`."""
    match spec.kind:
        case "sliding":
            return sliding_windows(video, spec, repeat_windows)
        case "resize":
            return [WindowPlace(video, 0, spec.size_grid)]


def evaluation_window(
    place: WindowPlace, total_frames: int, spec: WindowSpec, timeline: Timeline | None = None
) -> Window:
    """Frames of such a window. total_frames: what the decoder reports; timeline: as in `resized_window`. Raises
    WindowError."""
    match spec.kind:
        case "sliding":
            return sliding_window(place, total_frames, spec)
        case "resize":
            return resized_window(place.video, total_frames, spec, timeline)


def training_window(
    video: Video, total_frames: int, spec: WindowSpec, draw: np.random.Generator, timeline: Timeline | None = None
) -> Window:
    """The window of a video that an epoch trains on, with its instances; arguments as in `evaluation_window`."""
    match spec.kind:
        case "sliding":
            return random_window(video, total_frames, spec, draw)
        case "resize":
            return resized_window(video, total_frames, spec, timeline)


def sliding_windows(video: Video, spec: WindowSpec, repeat_windows: bool = False) -> list[WindowPlace]:
    """Windows that cover a video, each `overlap` inside the one before, the last one flush with the end.

    The reference makes the last one twice where the steps fit exactly, and none for a tail it doesn't reach;
    `repeat_windows` repeats that.
    """
    positions = -(-video.frames // spec.stride_frames)
    step = int(spec.size_grid * (1 - spec.overlap))
    starts: list[int] = []
    for index in range(max(1, positions // step)):
        start, end = index * step, index * step + spec.size_grid
        starts.append(start if end <= positions else max(0, positions - spec.size_grid))
        if end > positions or (end == positions and not repeat_windows):
            break
    if not repeat_windows and starts[-1] + spec.size_grid < positions:
        starts.append(positions - spec.size_grid)
    return [WindowPlace(video, start, min(spec.size_grid, positions - start)) for start in starts]


def frame_list(total_frames: int, spec: WindowSpec) -> np.ndarray:
    """Every frame that could be decoded of a video with `total_frames` frames, in order."""
    return np.arange(0, total_frames, spec.stride_frames // spec.frames_per_position)


def complete_instances(place: WindowPlace, spec: WindowSpec, completeness: float) -> WindowPlace | None:
    """A sliding window with the instances of which more than `completeness` lies inside, cut to it; None if there are
    none. It reaches from its first position's frame to its last one's. Completeness 0: all instances of the video,
    uncut.

    Trains on, or takes the loss of, sliding windows, as the reference can.
    """
    video = place.video
    if completeness <= 0:
        return replace(place, instances=(video.segments_frames, video.labels))
    first, last = (n * spec.stride_frames for n in (place.start_grid, place.start_grid + place.length_grid - 1))
    shares, cut = _visible_shares(video.segments_frames.astype(np.float32), first, last)
    kept = np.flatnonzero(shares > completeness)
    return replace(place, instances=(cut[kept], video.labels[kept])) if len(kept) else None


def sliding_window(place: WindowPlace, total_frames: int, spec: WindowSpec) -> Window:
    """Frames of a sliding window, and the instances that its place brings: none at evaluation, where videos are scored
    whole.

    total_frames: what the decoder reports, which may differ from the annotation. Raises WindowError if it is so much
    less that no frame is left.
    """
    per_position = spec.frames_per_position
    first, last = place.start_grid * per_position, (place.start_grid + place.length_grid) * per_position
    indices = frame_list(total_frames, spec)[first:last]
    if not len(indices):
        raise WindowError(empty_window(place, total_frames, spec))
    indices, valid = _pad(indices, spec)
    start_frame, (segments, labels) = place.start_grid * spec.stride_frames, place.instances
    segments_grid = (segments - spec.offset_frames - start_frame).astype(np.float32) / np.float32(spec.stride_frames)
    return Window(place.video, start_frame, indices, valid, segments_grid, labels)


def empty_window(place: WindowPlace, total_frames: int, spec: WindowSpec) -> str:
    """What is wrong with a video that ends before one of its windows begins."""
    return (
        f"video {place.video.name!r} has {total_frames} frames, the annotation says {place.video.frames}: "
        f"its window from frame {place.start_grid * spec.stride_frames} would be empty; "
        "fix the annotation or the file, or leave the video out (data.blocked_videos)"
    )


def resized_window(video: Video, total_frames: int, spec: WindowSpec, timeline: Timeline | None = None) -> Window:
    """A whole video as one window: frames from the middle of equal parts, and all instances cut to the video.

    timeline: the parts are of the time that the annotation says the video lasts, and hold what is shown at their
    middle; those after the file's end are padding. None: the parts are of the file's frames.
    """
    count, valid = spec.size_grid * spec.frames_per_position, spec.size_grid
    if timeline is None or timeline.follows(timeline.frame_count / video.duration_seconds):
        indices = resize_indices(total_frames, count)
    else:
        middles = (np.arange(count) + 0.5) / count * video.duration_seconds
        indices = timeline.frames_at(middles)
        valid = max(int((middles < timeline.duration_seconds).sum()) // spec.frames_per_position, 1)
    shares = np.clip(video.segments_seconds.astype(np.float32) / np.float32(video.duration_seconds), 0, 1)
    segments_grid = shares * np.float32(spec.size_grid)
    return Window(video, 0, indices, valid, segments_grid, video.labels)


def resize_indices(total_frames: int, count: int) -> np.ndarray:
    """The frames nearest to the middle of `count` equal parts of a video, halves to the even one: int64 [count]."""
    step = total_frames / count
    first = step / 2 - 0.5
    # numpy's range, whose rounding the reference has too, but ending between two positions: never one too many.
    middles = np.arange(first, first + (count - 0.5) * step, step)
    return np.rint(np.clip(middles, 0, total_frames - 1)).astype(np.int64)


def random_window(
    video: Video, total_frames: int, spec: WindowSpec, draw: np.random.Generator, max_tries: int = MAX_TRIES
) -> Window:
    """A random part of a video that holds at least one instance, if one is found in `max_tries`; else the last try,
    without any.

    Instances are cut at the window's ends and stay if at least `min_visible` of them is inside.
    """
    listed = frame_list(total_frames, spec)
    # In numbers of that list; in float32 like the reference, so that a share at the threshold falls on the same side.
    per_position, stride = np.float32(spec.frames_per_position), np.float32(spec.stride_frames)
    segments = (video.segments_frames - spec.offset_frames).astype(np.float32) / stride * per_position
    length = _random_length(len(listed), spec, draw)
    start, kept = 0, np.arange(len(segments))
    if length < len(listed):
        for _ in range(max_tries):
            start = int(draw.integers(len(listed) - length + 1))
            shares, cut = _visible_shares(segments, start, start + length)
            kept = np.flatnonzero((shares > 0) & (shares >= spec.min_visible))
            if len(kept):
                break
        segments = cut
    indices, valid = _pad(listed[start : start + length], spec)
    inside = (segments[kept] - np.float32(start)) / per_position
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


def _visible_shares(segments: np.ndarray, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """How much of each segment lies in [start, end], 0 for one without a length: float32 [n]; and its part inside."""
    cut = np.clip(segments, start, end)
    lengths, inside = (ends[:, 1] - ends[:, 0] for ends in (segments, cut))
    return np.divide(inside, lengths, out=np.zeros_like(lengths), where=lengths > 0), cut


def _pad(indices: np.ndarray, spec: WindowSpec) -> tuple[np.ndarray, int]:
    """Repeat the last frame up to a whole window; returns the indices and the number of valid positions."""
    missing = spec.size_grid * spec.frames_per_position - len(indices)
    return np.pad(indices, (0, missing), mode="edge"), len(indices) // spec.frames_per_position
