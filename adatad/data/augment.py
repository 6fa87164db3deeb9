"""Random changes of training frames beyond their cut: flip, RandAugment and color jitter.

What is done to a sample is drawn where it is loaded, from (seed, epoch, sample) alone, and carried out where the model
runs, on the uint8 frames of a whole batch: all frames of a sample alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adatad.data.color_jitter import ColorJitter, jitter_colors
from adatad.data.draws import generator
from adatad.data.rand_augment import Operation, apply_operation, draw_operations
from adatad.spec.schema import AugmentSpec, ColorJitterSpec

CHUNK_VALUES = 2**22
"""Values of frames that are worked on at a time: temporaries stay below 130 MB, however long a window is."""
WORK_BYTES = 30
"""Of temporaries, for each of these values: those of color jitter, the largest."""


class Augmentation(NamedTuple):
    """What is done to all frames of a sample, in this order."""

    flip: bool
    operations: tuple[Operation, ...]
    jitter: ColorJitter | None

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        return self.flip or bool(self.operations) or self.jitter is not None


def draw_augmentation(
    spec: AugmentSpec, seed: int, epoch: int, sample: int, draw_once_per_run: bool = False
) -> Augmentation:
    """The augmentation of a sample in an epoch.

    draw_once_per_run: so are the signs of RandAugment's operations and the order of color jitter, as in the reference.
    """
    return Augmentation(
        flip=bool(generator(seed, epoch, sample, "flip").random() < spec.flip),
        operations=draw_operations(seed, epoch, sample, draw_once_per_run) if spec.rand_augment else (),
        jitter=draw_jitter(spec.color_jitter, seed, epoch, sample, draw_once_per_run) if spec.color_jitter else None,
    )


def draw_jitter(spec: ColorJitterSpec, seed: int, epoch: int, sample: int, draw_once_per_run: bool) -> ColorJitter:
    draw = generator(seed, epoch, sample, "color_jitter")
    brightness, contrast, saturation = (
        float(draw.uniform(max(1 - strength, 0.0), 1 + strength))
        for strength in (spec.brightness, spec.contrast, spec.saturation)
    )
    hue = float(draw.uniform(-spec.hue, spec.hue))
    order_draw = generator(seed, 0, 0, "color_jitter order of the run") if draw_once_per_run else draw
    return ColorJitter(brightness, contrast, saturation, hue, tuple(order_draw.permutation(4).tolist()))


def augment(frames: Tensor, augmentations: Sequence[Augmentation | None], device: torch.device) -> Tensor:
    """Change frames in place, each sample by its own augmentation (None: not at all).

    frames: uint8 [b, 3, n, h, w], returned again; device: where the work is done, wherever the frames are. From pinned
    memory they go there and come back without a wait; whoever reads them on the host has to wait for the device.
    """
    for sample, augmentation in zip(frames, augmentations, strict=True):
        if augmentation is not None and augmentation.changes:
            channels, _, height, width = sample.shape
            for chunk in sample.split(max(CHUNK_VALUES // (channels * height * width), 1), dim=1):
                if chunk.device.type == device.type:
                    chunk.copy_(augment_chunk(chunk, augmentation))
                else:
                    there = torch.empty(chunk.shape, dtype=chunk.dtype, device=device)
                    _copy_channels(there, chunk)
                    _copy_channels(chunk, augment_chunk(there, augmentation))
    return frames


def work_bytes(values: int) -> int:
    """Largest temporaries of augmenting a sample of that many values."""
    return WORK_BYTES * min(values, CHUNK_VALUES)


def _copy_channels(to: Tensor, source: Tensor) -> None:
    """Between host and device. Each channel of a chunk is one piece of memory: of more pieces torch makes one first, in
    memory that isn't pinned."""
    for channel_to, channel in zip(to, source, strict=True):
        channel_to.copy_(channel, non_blocking=True)


def augment_chunk(frames: Tensor, augmentation: Augmentation) -> Tensor:
    """Some frames of one sample: uint8 [3, n, h, w] -> the same, changed."""
    if augmentation.flip:
        frames = frames.flip(3)
    for operation in augmentation.operations:
        frames = apply_operation(frames, operation)
    return frames if augmentation.jitter is None else jitter_colors(frames, augmentation.jitter)
