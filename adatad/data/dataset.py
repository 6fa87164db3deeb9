"""Training and validation windows as samples and batches: decoded, resized, stacked; and videos that a run skips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adatad.data.annotations import Video
from adatad.data.augment import Augmentation, draw_augmentation
from adatad.data.decode import VideoError, VideoReader, open_video
from adatad.data.features import check_features, feature_window
from adatad.data.resize import Geometry, center_geometry, fit_frames, random_geometry
from adatad.data.rng import generator, model_key
from adatad.data.staging import original_path, staged_path
from adatad.data.time_check import CHECK, TimeFacts, TimeNote, TimeNotes, effect, header_facts, time_problems
from adatad.data.timeline import Timeline
from adatad.data.windows import (
    Window,
    WindowError,
    WindowPlace,
    empty_window,
    evaluation_window,
    evaluation_windows,
    training_window,
)
from adatad.files import listed
from adatad.models.losses import Targets
from adatad.spec.data_sections import DataSpec
from adatad.spec.quirks import Quirks

SKIPPABLE_ERRORS = (VideoError, WindowError)
"""Errors after which `data.on_error: skip` goes on."""
CHUNK_FRAMES = 16
"""Frames that are held at full size at once."""
ALL_FRAMES = slice(None)
"""The part of a window's frames that a process reads, where no others share the window."""
MAX_PROBED_TRAINING, MAX_PROBED_VALIDATION, MAX_LISTED_TIMES = 32, 256, 3
"""Videos whose headers are read before a run, and those that a message names. Reading takes two milliseconds each, and
finds evaluation windows that would be empty, which otherwise end a run after hours."""
MAX_LISTED_MISSING = 10
"""Missing videos that a message names; the rest is counted."""


class Sample(NamedTuple):
    """A window with its labels.

    frames: uint8 [3, frames, height, width], or features, float32 [channels, window]; mask: bool [window];
    segments_grid: float32 [n, 2]; labels: int64 [n]; key: of the model's random numbers; window: origin of the
    frames; augmentation: change of the frames in training; skipped: videos that couldn't be read in its place;
    times: differences of a video and its annotation, when it is first read.
    """

    frames: Tensor
    mask: Tensor
    segments_grid: Tensor
    labels: Tensor
    key: int
    window: Window
    augmentation: Augmentation | None = None
    skipped: tuple[Skipped, ...] = ()
    times: tuple[TimeNote, ...] = ()


class Batch(NamedTuple):
    """A batch of windows.

    frames: uint8 [b, 3, frames, height, width]; mask: bool [b, window]; keys: int64 [b]; the lists have an item for
    each sample, skipped and times those of all; targets: of all points, if the loader made them.
    """

    frames: Tensor
    mask: Tensor
    keys: Tensor
    segments_grid: list[Tensor]
    labels: list[Tensor]
    windows: list[Window]
    augmentations: list[Augmentation | None]
    skipped: tuple[Skipped, ...] = ()
    times: tuple[TimeNote, ...] = ()
    targets: Targets | None = None


class TrainingWindows(Dataset):
    """One window of each training video an epoch, random or of the whole video; addressed by (epoch, video number). A
    video that stands several times among `videos` gives as many windows, each with draws of its own.

    If the spec allows it, the next video replaces one that can't be read, the same one on every rank and worker. `here`
    is the part of a window's frames that is read, where other processes have the rest.
    """

    def __init__(
        self, videos: tuple[Video, ...], spec: DataSpec, seed: int, quirks: Quirks = Quirks(), here: slice = ALL_FRAMES
    ):
        self.videos, self.spec, self.seed, self.quirks, self.here = videos, spec, seed, quirks, here
        # By name: a video may stand several times among the videos.
        self._broken: dict[str, Skipped] = {}
        self._time_notes = TimeNotes(spec)

    def leave_out(self, skipped: Iterable[Skipped]) -> None:
        """Replace these videos, which another process couldn't read."""
        self._broken.update((item.video, item) for item in skipped)

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        epoch, first = address
        passed: list[Skipped] = []
        # The next video in the annotation's order stands in, so that the choice depends on nothing but which videos are
        # broken.
        for number in (*range(first, len(self.videos)), *range(first)):
            name = self.videos[number].name
            # Don't try a broken file again: finding out may take until a timeout.
            if name not in self._broken:
                try:
                    return self.sample(epoch, number)._replace(skipped=tuple(passed))
                except SKIPPABLE_ERRORS as error:
                    if self.spec.on_error == "raise":
                        raise
                    self._broken[name] = Skipped(name, str(error))
            passed.append(self._broken[name])
        raise VideoError(
            f"{self.spec.videos}: none of {len(self.videos)} training videos can be read: {passed[0].reason}"
        )

    def video_of(self, address: tuple[int, int]) -> str:
        """Return the name of the video at an address."""
        return self.videos[address[1]].name

    def sample(self, epoch: int, number: int) -> Sample:
        """Load the window of one video. Raises VideoError or WindowError."""
        video = self.videos[number]
        if self.spec.features is not None:
            rng = generator(self.seed, epoch, number, "window")
            made = feature_window(
                self.spec, video, lambda frames: training_window(video, frames, self.spec.window, rng)
            )
            return _make_sample(*made, self.spec, model_key(self.seed, epoch, number))
        # Every draw is of (seed, epoch, number): the sample is the same in any process and at any time.
        with open_annotated(self.spec, video) as reader:
            rng = generator(self.seed, epoch, number, "window")
            window = training_window(video, reader.frame_count, self.spec.window, rng, timeline_for(self.spec, reader))

            def cut(images: np.ndarray) -> Tensor:
                """Crop and resize; the generator begins anew for each chunk, so that all get the same part."""
                return training_geometry(*images.shape[1:3], self.spec, self.seed, epoch, number).apply(images)

            frames = read_frames(reader, window.indices[self.here], cut)
            said = self._time_notes.notes(video, reader.timeline, reader.stamp)
        augment, key = self.spec.augment, model_key(self.seed, epoch, number)
        augmentation = augment and draw_augmentation(augment, self.seed, epoch, number, self.quirks.draw_once_per_run)
        return _make_sample(frames, window, self.spec, key)._replace(augmentation=augmentation, times=said)


class ValidationWindows(Dataset):
    """Windows over whole videos, in order.

    `shuffle_clips` randomly permutes the frames inside each clip of that many frames: what is still detected then needs
    no order in time. `here`: as in `TrainingWindows`; whole clips.
    """

    def __init__(self, places: list[WindowPlace], spec: DataSpec, shuffle_clips: int = 0, here: slice = ALL_FRAMES):
        self.places, self.spec, self.shuffle_clips, self.here = places, spec, shuffle_clips, here
        self._time_notes = TimeNotes(spec)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Sample:
        try:
            return self.sample(number)
        except SKIPPABLE_ERRORS as error:
            if self.spec.on_error == "raise":
                raise
            return self._empty_sample(self.places[number], str(error))

    def video_of(self, number: int) -> str:
        """Return the name of the video of a window."""
        return self.places[number].video.name

    def sample(self, number: int) -> Sample:
        """Load one window. Raises VideoError or WindowError."""
        place = self.places[number]
        if self.spec.features is not None:
            made = feature_window(
                self.spec, place.video, lambda frames: evaluation_window(place, frames, self.spec.window)
            )
            return _make_sample(*made, self.spec, key=0)
        with open_annotated(self.spec, place.video) as reader:
            timeline = timeline_for(self.spec, reader)
            window = evaluation_window(place, reader.frame_count, self.spec.window, timeline)
            indices = window.indices
            if self.shuffle_clips:
                # Epoch 0 always: the same order at every evaluation.
                rng, clips = generator(0, 0, number, "shuffle clips"), indices.reshape(-1, self.shuffle_clips)
                indices = np.concatenate([clip[rng.permutation(self.shuffle_clips)] for clip in clips])
            frames = read_frames(reader, indices[self.here], lambda images: fit_frames(images, self.spec.size_pixels))
            said = self._time_notes.notes(place.video, reader.timeline, reader.stamp)
        return _make_sample(frames, window, self.spec, key=0)._replace(times=said)

    def _empty_sample(self, place: WindowPlace, reason: str) -> Sample:
        """Return a window without a valid position, in place of one that can't be read."""
        spec = self.spec.window
        frames = np.zeros(spec.size_grid * spec.frames_per_position, np.int64)[self.here]
        nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
        window = Window(place.video, place.start_grid * spec.stride_frames, frames, 0, *nothing)
        # Of the usual shape: batches and collectives need the same on every rank.
        black = torch.zeros((3, len(frames), self.spec.size_pixels, self.spec.size_pixels), dtype=torch.uint8)
        return _make_sample(black, window, self.spec, key=0)._replace(skipped=(Skipped(place.video.name, reason),))


def video_path(spec: DataSpec, name: str) -> Path:
    """Return the file of the video that annotations call `name`: its local copy if there is one."""
    copy = staged_path(spec, name)
    return copy if copy and copy.is_file() else original_path(spec, name)


def check_videos(spec: DataSpec, videos: Sequence[Video]) -> None:
    """Raise VideoError, which lists all files of `videos` that are missing, unless the spec goes on without them; and
    UserError."""
    # Raises for a name that leads out of the folder, also where missing files are skipped.
    originals = [original_path(spec, video.name) for video in videos]
    if spec.features is not None:
        check_features(spec, videos)
        return
    if spec.on_error == "skip":
        return
    # A look at the file and no more, of which there may be 20,000: opening one takes a hundred times as long.
    missing = [
        path
        for video, path in zip(videos, originals, strict=True)
        if not path.is_file() and not ((copy := staged_path(spec, video.name)) and copy.is_file())
    ]
    if missing:
        named = listed([path.name for path in missing], MAX_LISTED_MISSING)
        raise VideoError(
            f"{spec.videos}: {len(missing)} of {len(videos)} videos of {spec.annotations} aren't there: {named}; "
            "add them, take them out of the annotation file, or correct data.videos or data.pattern"
        )


def check_times(spec: DataSpec, train: Sequence[Video], validation: Sequence[Video]) -> list[str]:
    """Return log lines on differences between file headers and annotations, for some videos spread over both subsets.

    Raises WindowError for a validation video that ends before one of its windows begins, unless the spec goes on
    without it.
    """
    # Features have times of their own, which are checked with them.
    if spec.features is not None:
        return []
    said, looked, empty = [], 0, ""
    # Every n-th video, so that all parts of a data set are sampled.
    for videos, most in ((train, MAX_PROBED_TRAINING), (validation, MAX_PROBED_VALIDATION)):
        # Rounded up, for at most `most` videos; `or 1` for an empty subset, whose step would be 0.
        for video in videos[:: -(-len(videos) // most) or 1]:
            try:
                facts = header_facts(video_path(spec, video.name))
            except VideoError:
                # Reported when it is read.
                continue
            looked += facts is not None
            found = facts and time_problems(facts, video.duration_seconds, video.fps, spec.window)
            if found:
                said.append(f"{video.name}: {'; '.join(f'{p.kind}: {p.detail}' for p in found)}")
            if facts and videos is validation and not empty:
                empty = _empty_window(spec, video, facts)
    differ = f"{len(said)} of {looked} videos that were looked at differ in time from their annotations"
    if empty and spec.on_error == "raise":
        by_time = "; data.time: presentation may find its frames all the same" if spec.time == "count" else ""
        raise WindowError(f"{empty}{by_time}. {differ}; {CHECK}")
    if not said:
        return []
    return [f"{differ}: {listed(said, MAX_LISTED_TIMES, '; ')}; {effect(spec)}; {CHECK}"]


def _empty_window(spec: DataSpec, video: Video, facts: TimeFacts) -> str:
    """Return what is wrong with a video of which a window would be empty, by its file's header; empty if nothing."""
    # Windows of whole videos begin at 0, so that none is empty.
    if spec.window.kind != "sliding":
        return ""
    if spec.time == "count":
        frames, slack = facts.frames, 0.0
    else:
        frames, slack = round(facts.seconds * video.fps), facts.slack_seconds * video.fps
    # If the last window isn't empty none is.
    last = evaluation_windows(video, spec.window)[-1]
    is_empty = frames and last.start_grid * spec.window.stride_frames >= frames + slack
    return empty_window(last, frames, spec.window) if is_empty else ""


def training_geometry(height: int, width: int, spec: DataSpec, seed: int, epoch: int, number: int) -> Geometry:
    """Return the part of frames of this size that a training sample shows."""
    short_side_pixels = spec.augment.crop_short_side_pixels if spec.augment else None
    if short_side_pixels is None:
        return center_geometry(height, width, spec.size_pixels)
    rng = generator(seed, epoch, number, "crop")
    return random_geometry(height, width, short_side_pixels, spec.size_pixels, rng)


def open_named(spec: DataSpec, name: str, fps: float | None = None) -> AbstractContextManager[VideoReader]:
    """Open the video that annotations call `name` for as long as the context lasts. fps: as in `open_video`; None for
    its frames as they are stored."""
    return open_video(video_path(spec, name), spec.decoder, spec.decode_timeout_seconds, fps)


def open_annotated(spec: DataSpec, video: Video) -> AbstractContextManager[VideoReader]:
    """Open a video with its frames numbered as its windows count them: by their times at the annotation's rate, or as
    they are stored where windows are whole videos (`timeline_for` then finds the frames) and under `data.time:
    count`."""
    by_time = spec.time != "count" and spec.window.kind == "sliding"
    return open_named(spec, video.name, video.fps if by_time else None)


def timeline_for(spec: DataSpec, reader: VideoReader) -> Timeline | None:
    """Return the timeline by which windows find their frames; None where they count them."""
    return reader.timeline if spec.time != "count" else None


def read_frames(reader: VideoReader, indices: np.ndarray, transform: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Read frames of a video and shrink them a chunk at a time, so that few are held at full size.

    transform: uint8 [n, height, width, 3] -> uint8 [3, n, ...], the same for every chunk. Returns uint8 [3,
    len(indices), ...].
    """
    frames: Tensor | None = None
    done = 0
    for images in reader.chunks(indices, CHUNK_FRAMES):
        # Shrunk at once: a chunk at full size is the most that is held.
        part = transform(images)
        # Allocated once the first chunk shows the size after the transform.
        if frames is None:
            frames = part.new_empty((len(part), len(indices), *part.shape[2:]))
        frames[:, done : done + part.shape[1]] = part
        done += part.shape[1]
    return frames


def _make_sample(frames: Tensor, window: Window, spec: DataSpec, key: int) -> Sample:
    # Positions are valid from the first on: padding is always at a window's end.
    mask = torch.arange(spec.window.size_grid) < window.valid_grid
    segments, labels = torch.from_numpy(window.segments_grid), torch.from_numpy(window.labels)
    return Sample(frames, mask, segments, labels, key, window)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples to a batch."""
    frames, masks, segments, labels, keys, windows, augmentations, skipped, times = zip(*samples, strict=True)
    return Batch(
        torch.stack(frames), torch.stack(masks), torch.tensor(keys), list(segments), list(labels), list(windows),
        list(augmentations), tuple(item for items in skipped for item in items),
        tuple(item for items in times for item in items),
    )  # fmt: skip


class Skipped(NamedTuple):
    """A video that was skipped, and what is wrong with it."""

    video: str
    reason: str


class SkippedVideos:
    """Counter of the videos that a run skips. say: called once for each with a line to log."""

    def __init__(self, limit: int, say: Callable[[str], None]):
        self.limit, self._say = limit, say
        self.reasons: dict[str, str] = {}

    def add(self, found: Iterable[Skipped]) -> None:
        """Add skipped videos. Raises VideoError when there are more than the limit."""
        for video, reason in found:
            # Every epoch meets it again; it counts once.
            if video not in self.reasons:
                self.reasons[video] = reason
                self._say(f"left out, video {len(self.reasons)} of at most {self.limit}: {reason}")
        # Behind the loop: the log has all reasons before the run ends.
        if len(self.reasons) > self.limit:
            names = ", ".join(self.reasons)
            raise VideoError(
                f"{len(self.reasons)} videos can't be read, more than data.skip_limit {self.limit}: {names}; "
                "repair them, take them out of the annotation file, or raise the limit"
            )
