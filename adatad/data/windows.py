"""Windows of a video: which frames are decoded, which positions are valid, which segments lie inside.

A window is `size_grid` positions, and `frames_per_position` frames are decoded for each. In a sliding or random window
position i stands for video frame i x stride_frames, and segments are in grid units here: (frame - offset_frames - first
frame of the window) / stride_frames. In a resized one the positions divide the whole video evenly.

Frames are numbered at the annotation's rate, so that positions and labels share one time: a reader that was opened at
that rate finds the frame shown at the time of each number (adatad/data/timeline.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from adatad.data.annotations import Video
from adatad.data.timeline import Timeline
from adatad.errors import UserError
from adatad.spec.data_sections import WindowSpec

# As the reference; with one instance in a long video a try succeeds only now and then.
MAX_TRIES = 200
"""Random windows that are tried for one that holds an instance."""


class WindowError(UserError):
    """Raised for a video too short for its annotation; the message names it."""


@dataclass(frozen=True)
class Window:
    """A window of a video.

    indices: int64 [size_grid x frames_per_position], frames to decode, the last one repeated as padding; valid_grid:
    positions that aren't padding; segments_grid: float32 [n, 2]; labels: int64 [n].
    """

    video: Video
    start_frame: int
    indices: np.ndarray
    valid_grid: int
    segments_grid: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class WindowPlace:
    """Place of a window: positions [start_grid, start_grid + length_grid) of its video.

    instances: segments in frames (float64 [n, 2]) and labels (int64 [n]) that it gets if it is trained on.
    """

    video: Video
    start_grid: int
    length_grid: int
    instances: tuple[np.ndarray, np.ndarray] = (np.zeros((0, 2)), np.zeros(0, np.int64))


def evaluation_windows(video: Video, spec: WindowSpec, repeat_windows: bool = False) -> list[WindowPlace]:
    """Return all windows in which a video is evaluated; repeat_windows: as in `sliding_windows`."""
    match spec.kind:
        case "sliding":
            return sliding_windows(video, spec, repeat_windows)
        case "resize":
            return [WindowPlace(video, 0, spec.size_grid)]


def evaluation_window(
    place: WindowPlace, total_frames: int, spec: WindowSpec, timeline: Timeline | None = None
) -> Window:
    """Return the window at a place of `evaluation_windows`.

    total_frames: reported by the decoder; timeline: as in `resized_window`. Raises WindowError.
    """
    match spec.kind:
        case "sliding":
            return sliding_window(place, total_frames, spec)
        case "resize":
            return resized_window(place.video, total_frames, spec, timeline)


def training_window(
    video: Video, total_frames: int, spec: WindowSpec, rng: np.random.Generator, timeline: Timeline | None = None
) -> Window:
    """Return the window of a video for one epoch of training, with its instances; arguments as in
    `evaluation_window`."""
    match spec.kind:
        case "sliding":
            return random_window(video, total_frames, spec, rng)
        case "resize":
            return resized_window(video, total_frames, spec, timeline)


def sliding_windows(video: Video, spec: WindowSpec, repeat_windows: bool = False) -> list[WindowPlace]:
    """Return windows that cover a video, each `overlap` inside the one before, the last one flush with the end.

    repeat_windows: as in the reference, the last one comes twice where the steps fit exactly, and a tail that no step
    reaches gets none.
    """
    # Rounded up: the last position may stand for fewer frames than a stride.
    positions = -(-video.frames // spec.stride_frames)
    step = int(spec.size_grid * (1 - spec.overlap))
    starts: list[int] = []
    # The reference's loop, step by step, since its quirks come from its bounds.
    for index in range(max(1, positions // step)):
        start, end = index * step, index * step + spec.size_grid
        starts.append(start if end <= positions else max(0, positions - spec.size_grid))
        # An exact fit ends the loop here; the reference only stops past the end, and so repeats the last window.
        if end > positions or (end == positions and not repeat_windows):
            break
    if not repeat_windows and starts[-1] + spec.size_grid < positions:
        starts.append(positions - spec.size_grid)
    return [WindowPlace(video, start, min(spec.size_grid, positions - start)) for start in starts]


def streamed_windows(
    video: Video, spec: WindowSpec, clip_frames: int, tubelet: int
) -> tuple[list[WindowPlace], list[WindowPlace]]:
    """Return windows that cover a video: those that begin where its clips do, counted from its start, and so can share
    the features of these clips; and the last one, if it doesn't (docs/decisions/stream-windows.md).

    They are `sliding_windows`, but that steps are rounded down to whole clips, or to whole tubelets where they are
    shorter than a clip.
    """
    positions = -(-video.frames // spec.stride_frames)
    step = max(1, int(spec.size_grid * (1 - spec.overlap)))
    by_clip, by_tubelet = (whole // math.gcd(whole, spec.frames_per_position) for whole in (clip_frames, tubelet))
    unit = by_clip if step >= by_clip else by_tubelet
    step = max(step // unit, 1) * unit
    last = max(0, positions - spec.size_grid)
    starts = [*range(0, last, step), last]
    places = [WindowPlace(video, start, min(spec.size_grid, positions - start)) for start in starts]
    shared = len(places) - (last % unit > 0)
    return places[:shared], places[shared:]


def frame_list(total_frames: int, spec: WindowSpec) -> np.ndarray:
    """Return the numbers of all frames that may be decoded of a video with `total_frames` frames, in order."""
    return np.arange(0, total_frames, spec.stride_frames // spec.frames_per_position)


def complete_instances(place: WindowPlace, spec: WindowSpec, completeness: float) -> WindowPlace | None:
    """Return a sliding window with its instances: those of which more than `completeness` lies inside, cut to it; None
    if there are none.

    The window reaches from its first position's frame to its last one's. Completeness 0: all instances of the video,
    uncut. For training on sliding windows, as the reference can.
    """
    video = place.video
    if completeness <= 0:
        return replace(place, instances=(video.segments_frames, video.labels))
    first, last = (n * spec.stride_frames for n in (place.start_grid, place.start_grid + place.length_grid - 1))
    shares, cut = _visible_shares(video.segments_frames.astype(np.float32), first, last)
    kept = np.flatnonzero(shares > completeness)
    return replace(place, instances=(cut[kept], video.labels[kept])) if len(kept) else None


def sliding_window(place: WindowPlace, total_frames: int, spec: WindowSpec) -> Window:
    """Return a sliding window with the instances of its place: none at evaluation, where whole videos are scored.

    total_frames: reported by the decoder, which may differ from the annotation. Raises WindowError if no frame is left.
    """
    per_position = spec.frames_per_position
    first, last = place.start_grid * per_position, (place.start_grid + place.length_grid) * per_position
    # By the frames that are there, whatever the annotation counts: a shorter file gives padding.
    indices = frame_list(total_frames, spec)[first:last]
    if not len(indices):
        raise WindowError(empty_window(place, total_frames, spec))
    indices, valid = _pad(indices, spec)
    start_frame, (segments, labels) = place.start_grid * spec.stride_frames, place.instances
    segments_grid = (segments - spec.offset_frames - start_frame).astype(np.float32) / np.float32(spec.stride_frames)
    return Window(place.video, start_frame, indices, valid, segments_grid, labels)


def empty_window(place: WindowPlace, total_frames: int, spec: WindowSpec) -> str:
    """Return a message on a video that ends before one of its windows begins."""
    return (
        f"video {place.video.name!r} has {total_frames} frames, the annotation says {place.video.frames}: "
        f"its window from frame {place.start_grid * spec.stride_frames} would be empty; "
        "fix the annotation or the file, or leave the video out (data.blocked_videos)"
    )


def resized_window(video: Video, total_frames: int, spec: WindowSpec, timeline: Timeline | None = None) -> Window:
    """Return a whole video as one window: frames from the middle of equal parts, and all instances cut to the video.

    timeline: the parts divide the duration that the annotation gives, and hold what is shown at their middle; those
    after the file's end are padding. None: the parts divide the file's frames.
    """
    count, valid = spec.size_grid * spec.frames_per_position, spec.size_grid
    if timeline is None or timeline.follows(timeline.frame_count / video.duration_seconds):
        indices = resize_indices(total_frames, count)
    else:
        # Parts of the annotated duration, not of the file's, so that positions and labels share one time.
        middles = (np.arange(count) + 0.5) / count * video.duration_seconds
        indices = timeline.frames_at(middles)
        valid = max(int((middles < timeline.duration_seconds).sum()) // spec.frames_per_position, 1)
    # Cut to the video: an instance that ends late would have an end outside of the grid.
    shares = np.clip(video.segments_seconds.astype(np.float32) / np.float32(video.duration_seconds), 0, 1)
    segments_grid = shares * np.float32(spec.size_grid)
    return Window(video, 0, indices, valid, segments_grid, video.labels)


def resize_indices(total_frames: int, count: int) -> np.ndarray:
    """Return the frames nearest to the middle of `count` equal parts of a video, halves to the even one: int64
    [count]."""
    step = total_frames / count
    first = step / 2 - 0.5
    # np.arange, whose rounding the reference has too, but ending between two positions: never one too many.
    middles = np.arange(first, first + (count - 0.5) * step, step)
    return np.rint(np.clip(middles, 0, total_frames - 1)).astype(np.int64)


def random_window(
    video: Video, total_frames: int, spec: WindowSpec, rng: np.random.Generator, max_tries: int = MAX_TRIES
) -> Window:
    """Return a random part of a video that holds at least one instance; after `max_tries` the last try, without any.

    Instances are cut at the window's ends and stay if at least `min_visible` of them is inside.
    """
    listed = frame_list(total_frames, spec)
    # Segments in units of that list, and in float32 like the reference, so that a visible share right at the threshold
    # falls on the same side.
    per_position, stride = np.float32(spec.frames_per_position), np.float32(spec.stride_frames)
    segments = (video.segments_frames - spec.offset_frames).astype(np.float32) / stride * per_position
    length = _random_length(len(listed), spec, rng)
    # A video that fits in whole has all its instances, uncut, and takes no further draw.
    start, kept = 0, np.arange(len(segments))
    if length < len(listed):
        for _ in range(max_tries):
            start = int(rng.integers(len(listed) - length + 1))
            shares, cut = _visible_shares(segments, start, start + length)
            kept = np.flatnonzero((shares > 0) & (shares >= spec.min_visible))
            if len(kept):
                break
        segments = cut
    indices, valid = _pad(listed[start : start + length], spec)
    inside = (segments[kept] - np.float32(start)) / per_position
    return Window(video, int(listed[start]), indices, valid, inside, video.labels[kept])


def _random_length(available: int, spec: WindowSpec, rng: np.random.Generator) -> int:
    """Return the length in frames of a random window: a full one, or all or a random share of a short video."""
    wanted = spec.size_grid * spec.frames_per_position
    if available > wanted:
        return wanted
    if spec.crop_ratio is None:
        return available
    # At least one frame, and no empty range for a video of few.
    low, high = (round(ratio * available) for ratio in spec.crop_ratio)
    return int(rng.integers(max(low, 1), max(min(high, available), max(low, 1)) + 1))


def _visible_shares(segments: np.ndarray, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each segment in [start, end], 0 for one without length: float32 [n]; and its part inside."""
    cut = np.clip(segments, start, end)
    lengths, inside = (ends[:, 1] - ends[:, 0] for ends in (segments, cut))
    return np.divide(inside, lengths, out=np.zeros_like(lengths), where=lengths > 0), cut


def _pad(indices: np.ndarray, spec: WindowSpec) -> tuple[np.ndarray, int]:
    """Repeat the last frame up to a whole window; return the indices and the number of valid positions."""
    # A position counts as valid only if all of its frames are real.
    missing = spec.size_grid * spec.frames_per_position - len(indices)
    return np.pad(indices, (0, missing), mode="edge"), len(indices) // spec.frames_per_position
