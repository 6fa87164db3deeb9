"""Features of one video of any length, a few clips at a time: as a stream, or from windows of their own.

As a stream every frame goes through the backbone once, and each tubelet gives a feature; a larger stride takes every
n-th of them. From windows, feature k is the backbone's mean over the `window` frames that begin at frame k x stride:
windows may overlap, and adapters see nothing outside of one. In both, features at a stride of 2n are every second one
of stride n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adatad.data.frame_stream import VideoSource, cut_clips, made_ahead, small_frames
from adatad.errors import UserError
from adatad.memory.arithmetic import autocast
from adatad.memory.inputs import place_frames
from adatad.memory.stream import feature_stream
from adatad.memory.tiles import default_tile_clips
from adatad.models.backbone import VideoBackbone
from adatad.training.resolve import ResolvedRun

GROUP_CLIPS = 16
"""Most clips that go through the backbone together where no memory policy says fewer."""


@dataclass(frozen=True)
class Steps:
    """Distances in frames, counted at the features' fps. sampling: from one frame that is decoded to the next; stride:
    from one feature to the next; window: decoded frames of a window of its own, None for the stream."""

    sampling: int
    stride: int
    window: int | None

    def span_frames(self, tubelet: int) -> int:
        """Return the frames of the video that one feature is a mean over."""
        return (self.window or tubelet) * self.sampling


def steps_for(backbone: VideoBackbone, sampling: int, stride: int | None, window: int | None) -> Steps:
    """Return the steps that options come to: by default a feature for each tubelet. Raises UserError."""
    tubelet_frames = backbone.tubelet * sampling
    if window is not None and window % backbone.clip_frames:
        raise UserError(
            f"--window: {window} frames aren't whole clips of {backbone.clip_frames}, which this backbone takes; such "
            f"as --window {-(-window // backbone.clip_frames) * backbone.clip_frames}"
        )
    if window is None and stride is not None and stride % tubelet_frames:
        raise UserError(
            f"--stride: {stride} isn't a multiple of {tubelet_frames}, the frames from one feature of the stream to "
            f"the next; --window {backbone.clip_frames} gives each feature a window of its own, at any stride"
        )
    return Steps(sampling, stride or tubelet_frames, window)


def features_of(
    backbone: VideoBackbone, run: ResolvedRun, device: torch.device, source: VideoSource, steps: Steps
) -> Iterator[Tensor]:
    """Yield features of a video, in order: float32 [n, channels] on the host.

    backbone: in evaluation mode, on its device. A video shorter than one window is padded by its last frame; a tail
    that fills no window, or no tubelet, gives none.
    """
    if steps.window is None:
        yield from _streamed(backbone, run, device, source, steps)
        return
    together = max(1, _group_clips(backbone, run) * backbone.clip_frames // steps.window)
    with made_ahead(_windows(source, steps, run.spec.data.size_pixels, together)) as batches:
        for frames in batches:
            with torch.no_grad(), autocast(device, run.arithmetic):
                timeline = backbone.timeline(place_frames(frames, run.spec.memory, device))
            yield timeline.mean(1).float().cpu()


def _streamed(
    backbone: VideoBackbone, run: ResolvedRun, device: torch.device, source: VideoSource, steps: Steps
) -> Iterator[Tensor]:
    listed = np.arange(0, source.frame_count, steps.sampling)
    # A tubelet counts only if all of its frames are real, as a position of a window does.
    count = max(1, len(listed) // backbone.tubelet)
    indices = np.pad(listed, (0, -len(listed) % backbone.clip_frames), mode="edge")
    size, clip = run.spec.data.size_pixels, backbone.clip_frames
    frames = small_frames(source, indices, size, _group_clips(backbone, run) * clip)
    stream = feature_stream(backbone, run.arithmetic)
    with made_ahead(cut_clips(group, clip).contiguous() for group in frames) as groups:
        rows = stream.rows(groups)
        if backbone.mode == "side":
            # Its adapters join clips on means over space: these rows are small, and all are needed at once.
            rows = iter([stream.features(torch.cat(list(rows))[None])[0]])
        first, every = 0, steps.stride // (backbone.tubelet * steps.sampling)
        for part in rows:
            yield part[: max(0, count - first)][-first % every :: every].float().cpu()
            first += len(part)


def _windows(source: VideoSource, steps: Steps, size_pixels: int, together: int) -> Iterator[Tensor]:
    """Yield windows, `together` at a time: uint8 [b, 3, window, size, size]. Every frame is decoded once, and held
    for as long as a window to come has it."""
    offsets = np.arange(steps.window) * steps.sampling
    starts = np.arange(0, max(1, source.frame_count - offsets[-1]), steps.stride)
    wanted = np.minimum(starts[:, None] + offsets, source.frame_count - 1)
    held: dict[int, Tensor] = {}
    needed = np.unique(wanted)
    # One frame at a time: the decoder gives chunks, and which of them a window completes depends on the stride.
    frames = ((n, f) for n, f in zip(needed, small_frames(source, needed, size_pixels, 1), strict=True))
    batch: list[Tensor] = []
    for numbers in wanted:
        for number in [n for n in list(held) if n < numbers[0]]:
            del held[number]
        while numbers[-1] not in held:
            number, frame = next(frames)
            # With a stride beyond the window, frames between two windows aren't among those needed.
            held[int(number)] = frame
        batch.append(torch.cat([held[int(number)] for number in numbers], dim=1))
        if len(batch) == together:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _group_clips(backbone: VideoBackbone, run: ResolvedRun) -> int:
    """Return how many clips go through the backbone together."""
    tiles = [wave_pass.settings.tile_clips for wave_pass in backbone.executor.passes]
    tokens = backbone.clip_tubelets * (run.spec.data.size_pixels // backbone.patch) ** 2
    return min(tiles) if tiles else default_tile_clips(tokens, backbone.width, GROUP_CLIPS)
