"""Detection in one video, window by window, as a stream or not; in memory that doesn't grow with the video's frames.

As a stream, every frame goes through the backbone once and windows share its features. Otherwise every window is run by
itself, as in training. Either way a thread decodes beside the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from adatad.data.annotations import Video
from adatad.data.frame_stream import VideoSource, cut_clips, made_ahead, small_frames
from adatad.data.windows import (
    Window,
    WindowPlace,
    evaluation_window,
    evaluation_windows,
    frame_list,
    sliding_window,
    streamed_windows,
)
from adatad.evaluation.classifiers import Classifier, read_classifier
from adatad.evaluation.packed import PackedDetections
from adatad.evaluation.postprocess import Detection, window_candidates
from adatad.memory.arithmetic import autocast
from adatad.memory.inputs import place_frames
from adatad.memory.results import ResultCopies, Results
from adatad.memory.stream import feature_stream
from adatad.memory.tiles import default_tile_clips
from adatad.models.actionformer import Predictions, decode_all, only_valid
from adatad.models.backbone import resize_timeline
from adatad.models.detector import TemporalActionDetector
from adatad.spec.sizes import clips_of_window
from adatad.training.resolve import ResolvedRun
from adatad.training.validation import window_meta

WINDOWS_A_GROUP = 2
"""Most windows' worth of clips that go through the backbone together."""


@dataclass(frozen=True)
class VideoPart:
    """A stretch of a video, [start_seconds, end_seconds), that no window to come reaches; of the last part `whole` is
    the list of the whole video."""

    video: str
    start_seconds: float
    end_seconds: float
    _packed: PackedDetections
    _windows: range
    whole: list[Detection] | None = None

    @cached_property
    def detections(self) -> list[Detection]:
        """Detections in it: those whose middle lies in it, after NMS over the windows that overlap it.

        NMS over the whole video, with its limit on the number of detections, may keep fewer, and scores of `whole` may
        be lower where it suppresses more.
        """
        found = self._packed.detections(self._windows)
        if self.whole is not None:
            # A segment may end after the video.
            return [item for item in found if sum(item["segment"]) / 2 >= self.start_seconds]
        return [item for item in found if self.start_seconds <= sum(item["segment"]) / 2 < self.end_seconds]


class VideoDetector:
    """A model with what it takes to run it on whole videos.

    model: in evaluation mode, on its device, and no engine's wrapper around it.
    """

    def __init__(self, model: TemporalActionDetector, run: ResolvedRun, device: torch.device):
        self.model, self.run, self.device = model, run, device

    @cached_property
    def _classifier(self) -> Classifier | None:
        # Read when it is needed: a model can be looked at without the file.
        spec = self.run.spec.postprocess.classifier
        return read_classifier(spec) if spec else None

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that detections may have: the model's outputs, or what an external classifier knows."""
        if self._classifier is None:
            return self.run.outputs
        return self._classifier.names or (self._classifier.spec.pseudo_label,)

    def streams(self, stream: bool) -> bool:
        """Return whether videos are streamed if that is wanted: windows of whole videos share nothing."""
        return stream and self.run.spec.data.window.kind == "sliding"

    def places(self, video: Video, stream: bool) -> list[WindowPlace]:
        """Return the windows of a video."""
        if not self.streams(stream):
            return evaluation_windows(video, self.run.spec.data.window, self.run.quirks.repeat_windows)
        shared, alone = self._streamed_places(video)
        return shared + alone

    def _streamed_places(self, video: Video) -> tuple[list[WindowPlace], list[WindowPlace]]:
        backbone = self.model.backbone
        return streamed_windows(video, self.run.spec.data.window, backbone.clip_frames, backbone.tubelet)

    def parts(self, source: VideoSource, video: Video, stream: bool) -> Iterator[VideoPart]:
        """Yield a part of the video after each of its windows, the last one with the detections of the whole video.

        Raises VideoError or WindowError, which name the file or the video.
        """
        data, post = self.run.spec.data, self.run.spec.postprocess
        sliding, places = data.window.kind == "sliding", self.places(video, stream)
        # A file that ends before its last window begins is found now and not after hours.
        evaluation_window(places[-1], source.frame_count, data.window)
        packed = PackedDetections(self.labels, post, sliding)
        first, done_seconds = 0, 0.0
        for number, (window, segments_grid, scores) in enumerate(self.predictions(source, video, stream)):
            meta = window_meta(window, data)
            packed.add(*self._labelled(video.name, *window_candidates(segments_grid, scores, meta, post, sliding)))
            last = number == len(places) - 1
            end = video.duration_seconds if last else self._start_seconds(places[number + 1])
            # Windows that end before this part begins say nothing about it.
            while self._start_seconds(places[first], data.window.size_grid) <= done_seconds and first < number:
                first += 1
            whole = packed.detections(range(len(packed))) if last else None
            yield VideoPart(video.name, done_seconds, end, packed, range(first, number + 1), whole)
            done_seconds = max(done_seconds, end)

    def detections(self, source: VideoSource, video: Video, stream: bool) -> list[Detection]:
        """Return the detections of a whole video, best first. Raises as `parts`."""
        # Of one item: parts hold what their list was made of.
        return deque(self.parts(source, video, stream), maxlen=1).pop().whole

    def predictions(
        self, source: VideoSource, video: Video, stream: bool
    ) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
        """Yield each window of a video with what its valid points predict, before any threshold: segments float32
        [n, 2] in grid units, scores float32 [n, classes]. Raises as `parts`."""
        if self.streams(stream):
            shared, alone = self._streamed_places(video)
            predicted = chain(self._streamed(source, shared), self._windowed(source, alone))
        else:
            predicted = self._windowed(source, self.places(video, stream))
        copies = ResultCopies(self.device)
        before: tuple[list[Window], Results] | None = None
        for windows, predictions in predicted:
            queued = windows, copies.start(decode_all(predictions))
            # The device computes these windows while the host works on what it found in those before.
            if before:
                yield from _valid_points(*before)
            before = queued
        if before:
            yield from _valid_points(*before)

    def _labelled(
        self, video: str, seconds: np.ndarray, scores: np.ndarray, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return detections of a window with the numbers of their labels: the classifier's, where there is one."""
        if self._classifier is None:
            return seconds, scores, numbers
        seconds, scores, names = self._classifier.label(video, seconds, scores)
        by_name = {name: number for number, name in enumerate(self.labels)}
        return seconds, scores, np.array([by_name[name] for name in names], np.int64)

    def _start_seconds(self, place: WindowPlace, positions: int = 0) -> float:
        """Return the time of a window's start, or of that many positions after it."""
        spec = self.run.spec.data.window
        if spec.kind == "resize":
            return 0.0 if not positions else place.video.duration_seconds
        return ((place.start_grid + positions) * spec.stride_frames + spec.offset_frames) / place.video.fps

    def _windowed(self, source: VideoSource, places: list[WindowPlace]) -> Iterator[tuple[list[Window], Predictions]]:
        """Yield every window with its predictions, each run by itself."""
        data = self.run.spec.data
        timeline = source.timeline if data.time != "count" else None

        def read() -> Iterator[tuple[Window, Tensor]]:
            """Yield every window with its frames: uint8 [3, frames, size, size]."""
            for place in places:
                window = evaluation_window(place, source.frame_count, data.window, timeline)
                (frames,) = small_frames(source, window.indices, data.size_pixels, len(window.indices))
                yield window, frames

        with made_ahead(read()) as windows:
            for window, frames in windows:
                with torch.no_grad(), autocast(self.device, self.run.arithmetic):
                    batch = place_frames(frames[None], self.run.spec.memory, self.device)
                    predictions = self.model(batch, self._mask([window]))
                yield [window], predictions

    def _streamed(self, source: VideoSource, places: list[WindowPlace]) -> Iterator[tuple[list[Window], Predictions]]:
        """Yield windows with their predictions, made of features that they share: those that a group of clips completes
        together."""
        data, backbone = self.run.spec.data, self.model.backbone
        spec, clip = data.window, backbone.clip_frames
        listed = frame_list(source.frame_count, spec)
        count = -(-(places[-1].start_grid + spec.size_grid) * spec.frames_per_position // clip)
        # What lies behind the last window is seen one clip further by each adapter: attention spreads it over a clip.
        seen = sum(block.adapter is not None and block.adapter.reach > 0 for block in backbone.blocks)
        count = max(count, min(count + seen, -(-len(listed) // clip)))
        # Padded as a window is, by its last frame.
        indices = np.pad(listed[: count * clip], (0, max(count * clip - len(listed), 0)), mode="edge")
        frames = small_frames(source, indices, data.size_pixels, self._group_clips(count) * clip)
        stream = feature_stream(backbone, self.run.arithmetic)
        following, spans = iter(places), [self._tubelets(place) for place in places]
        with made_ahead(self._clips(group) for group in frames) as groups:
            for rows_btw in shared_windows(stream.rows(groups), spans):
                complete = islice(following, len(rows_btw))
                windows = [sliding_window(place, source.frame_count, spec) for place in complete]
                with torch.no_grad(), autocast(self.device, self.run.arithmetic):
                    features_bct = resize_timeline(stream.features(rows_btw).transpose(1, 2), spec.size_grid)
                    predictions = self.model.detector(features_bct, self._mask(windows))
                yield windows, predictions

    def _clips(self, frames: Tensor) -> Tensor:
        """Return a group of clips, in memory that copies to a GPU can run beside."""
        clips = cut_clips(frames, self.model.backbone.clip_frames)
        return clips.contiguous().pin_memory() if self.device.type == "cuda" else clips

    def _group_clips(self, clips: int) -> int:
        """Return how many of a video's clips go through the backbone together."""
        backbone, data = self.model.backbone, self.run.spec.data
        tiles = [wave_pass.settings.tile_clips for wave_pass in backbone.executor.passes]
        tokens = backbone.clip_tubelets * (data.size_pixels // backbone.patch) ** 2
        # Of a small model several windows' worth: their windows go through the detector together.
        most = min(clips, WINDOWS_A_GROUP * clips_of_window(data, backbone.clip_frames))
        return min(tiles) if tiles else default_tile_clips(tokens, backbone.width, most)

    def _tubelets(self, place: WindowPlace) -> range:
        """Return the tubelets of a window, counted from the start of the video."""
        spec, tubelet = self.run.spec.data.window, self.model.backbone.tubelet
        start = place.start_grid * spec.frames_per_position // tubelet
        return range(start, start + spec.size_grid * spec.frames_per_position // tubelet)

    def _mask(self, windows: list[Window]) -> Tensor:
        """Return the mask of valid positions: bool [b, positions]."""
        valid = torch.tensor([window.valid_grid for window in windows])
        mask = torch.arange(self.run.spec.data.window.size_grid) < valid[:, None]
        return mask.to(self.device, non_blocking=True)


def shared_windows(groups: Iterator[Tensor], spans: Sequence[range]) -> Iterator[Tensor]:
    """Yield the rows of spans as soon as groups complete them, those of one group together: [b, t, w]. No more rows are
    held than open spans need.

    groups: consecutive rows [n, w]; spans: of rows, as long as one another and in ascending order, none beyond the last
    group.
    """
    held, first, done = None, 0, 0
    for rows in groups:
        if held is not None:
            passed = min(max(spans[done].start - first, 0), len(held))
            rows, first = torch.cat([held[passed:], rows]), first + passed
        held, complete = rows, done
        del rows
        while complete < len(spans) and spans[complete].stop <= first + len(held):
            complete += 1
        if complete > done:
            yield torch.stack([held[span.start - first : span.stop - first] for span in spans[done:complete]])
        done = complete
        if done == len(spans):
            return


def _valid_points(windows: list[Window], results: Results) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    for window, (segments_grid, scores) in zip(windows, only_valid(*results.wait()), strict=True):
        yield window, segments_grid.numpy(), scores.numpy()
