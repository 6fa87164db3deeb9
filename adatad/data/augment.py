"""Random changes of training frames beyond their cut: flip, RandAugment and color jitter.

What is done to a sample is drawn where it is loaded, from (seed, epoch, sample) alone, and carried out where the model
runs, on the uint8 frames of a whole batch: all frames of a sample alike.

RandAugment is the reference's: two of fifteen operations, at level 0.9 of their strength, in the order of the list.
Color jitter follows the reference's arithmetic: float32 that isn't cut off between the steps, and OpenCV's for the hue,
whose colors are integers (hue 0..179 in steps of two degrees)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from adatad.data import image_ops
from adatad.data.rng import generator
from adatad.spec.data_sections import AugmentSpec, ColorJitterSpec

# About 50 frames of 160 pixels.
CHUNK_VALUES = 2**22
"""Values that are augmented at once: temporaries stay below 130 MB, however long a window is."""
WORK_BYTES = 30
"""Bytes of temporaries for each of these values: those of color jitter, the largest."""


class Augmentation(NamedTuple):
    """Changes of all frames of a sample, in this order."""

    flip: bool
    operations: tuple[Operation, ...]
    jitter: ColorJitter | None

    @property
    def changes(self) -> bool:
        """True if it changes anything."""
        return self.flip or bool(self.operations) or self.jitter is not None


def draw_augmentation(
    spec: AugmentSpec, seed: int, epoch: int, sample: int, draw_once_per_run: bool = False
) -> Augmentation:
    """Draw the augmentation of a sample in an epoch.

    draw_once_per_run: draw the signs of RandAugment's operations and the order of color jitter once a run, as the
    reference does.
    """
    return Augmentation(
        flip=bool(generator(seed, epoch, sample, "flip").random() < spec.flip),
        operations=draw_operations(seed, epoch, sample, draw_once_per_run) if spec.rand_augment else (),
        jitter=draw_jitter(spec.color_jitter, seed, epoch, sample, draw_once_per_run) if spec.color_jitter else None,
    )


def draw_jitter(spec: ColorJitterSpec, seed: int, epoch: int, sample: int, draw_once_per_run: bool) -> ColorJitter:
    """Draw the color jitter of a sample; draw_once_per_run: all samples of a run get the same order."""
    rng = generator(seed, epoch, sample, "color_jitter")
    # Three draws in this order, and the hue's as the fourth.
    brightness, contrast, saturation = (
        float(rng.uniform(max(1 - strength, 0.0), 1 + strength))
        for strength in (spec.brightness, spec.contrast, spec.saturation)
    )
    # The order of draws is part of a run's identity: a new draw goes to the end.
    hue = float(rng.uniform(-spec.hue, spec.hue))
    order_rng = generator(seed, 0, 0, "color_jitter order of the run") if draw_once_per_run else rng
    return ColorJitter(brightness, contrast, saturation, hue, tuple(order_rng.permutation(4).tolist()))


def augment(frames: Tensor, augmentations: Sequence[Augmentation | None], device: torch.device) -> Tensor:
    """Change frames in place, each sample by its own augmentation (None: not at all), and return them.

    frames: uint8 [b, 3, n, h, w]; device: where the work is done, wherever the frames are. From pinned memory they go
    there and come back without a wait; the host has to wait for the device before it reads them.
    """
    for sample, augmentation in zip(frames, augmentations, strict=True):
        if augmentation is not None and augmentation.changes:
            channels, _, height, width = sample.shape
            for chunk in sample.split(max(CHUNK_VALUES // (channels * height * width), 1), dim=1):
                # Frames in host memory visit the GPU a chunk at a time.
                if chunk.device.type == device.type:
                    chunk.copy_(augment_chunk(chunk, augmentation))
                else:
                    there = torch.empty(chunk.shape, dtype=chunk.dtype, device=device)
                    _copy_channels(there, chunk)
                    _copy_channels(chunk, augment_chunk(there, augmentation))
    return frames


def work_bytes(values: int) -> int:
    """Return the bytes of the largest temporaries when a sample of that many values is augmented."""
    return WORK_BYTES * min(values, CHUNK_VALUES)


def _copy_channels(to: Tensor, source: Tensor) -> None:
    """Copy between host and device, channel by channel."""
    # Each channel of a chunk is one contiguous piece. For strided copies torch first makes a contiguous one, in memory
    # that isn't pinned, and the copy is no longer asynchronous.
    for channel_to, channel in zip(to, source, strict=True):
        channel_to.copy_(channel, non_blocking=True)


def augment_chunk(frames: Tensor, augmentation: Augmentation) -> Tensor:
    """Augment some frames of one sample: uint8 [3, n, h, w] -> the same."""
    if augmentation.flip:
        frames = frames.flip(3)
    for operation in augmentation.operations:
        frames = apply_operation(frames, operation)
    return frames if augmentation.jitter is None else jitter_colors(frames, augmentation.jitter)


Kind = Literal[
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "posterize", "solarize", "color", "contrast",
    "brightness", "sharpness", "autocontrast", "equalize", "invert", "cut_out",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
# Level 0.9 of the reference's largest strengths; kinds that aren't here have no strength.
STRENGTHS: dict[Kind, float] = {
    "shear_x": 15.471, "shear_y": 15.471, "translate_x": 0.18, "translate_y": 0.18, "rotate": 27.0, "posterize": 3,
    "solarize": 230, "color": 1.72, "contrast": 1.72, "brightness": 1.72, "sharpness": 1.72, "cut_out": 0.18,
}  # fmt: skip
"""Strengths: degrees; shares of width or height; bits left; first inverted level; factors; share of the height."""
SIGNED_KINDS: tuple[Kind, ...] = KINDS[:5]
"""Operations with a random sign."""
OPERATIONS_PER_SAMPLE = 2
"""Number of operations of a sample."""


class Operation(NamedTuple):
    """An operation. strength: from STRENGTHS, with its sign; center: (x, y) of the square to cut out, as shares of the
    frame."""

    kind: Kind
    strength: float = 0.0
    center: tuple[float, float] = (0.5, 0.5)


def draw_operations(seed: int, epoch: int, sample: int, draw_once_per_run: bool) -> tuple[Operation, ...]:
    """Draw the operations of a sample. draw_once_per_run: all samples of a run get the same signs."""
    rng = generator(seed, epoch, sample, "rand_augment")
    # In the order of the list, whatever order they were drawn in.
    chosen = sorted(rng.choice(len(KINDS), OPERATIONS_PER_SAMPLE, replace=False).tolist())
    sign_rng = generator(seed, 0, 0, "rand_augment signs of the run") if draw_once_per_run else rng
    signs = dict(zip(SIGNED_KINDS, sign_rng.choice((-1.0, 1.0), len(SIGNED_KINDS)).tolist(), strict=True))
    x, y = rng.random(2).tolist()
    return tuple(
        Operation(kind, STRENGTHS.get(kind, 0.0) * signs.get(kind, 1.0), (x, y) if kind == "cut_out" else (0.5, 0.5))
        for kind in (KINDS[number] for number in chosen)
    )


def apply_operation(frames: Tensor, operation: Operation) -> Tensor:
    """Apply an operation to the frames of one sample: uint8 [3, n, h, w] -> the same."""
    strength = operation.strength
    match operation.kind:
        case "shear_x":
            return image_ops.shear_x(frames, strength)
        case "shear_y":
            return image_ops.shear_y(frames, strength)
        case "translate_x":
            return image_ops.translate_x(frames, strength)
        case "translate_y":
            return image_ops.translate_y(frames, strength)
        case "rotate":
            return image_ops.rotate(frames, strength)
        case "posterize":
            return image_ops.posterize(frames, int(strength))
        case "solarize":
            return image_ops.solarize(frames, int(strength))
        case "color":
            return image_ops.adjust_color(frames, strength)
        case "contrast":
            return image_ops.adjust_contrast(frames, strength)
        case "brightness":
            return image_ops.adjust_brightness(frames, strength)
        case "sharpness":
            return image_ops.adjust_sharpness(frames, strength)
        case "autocontrast":
            return image_ops.autocontrast(frames)
        case "equalize":
            return image_ops.equalize(frames)
        case "invert":
            return image_ops.invert(frames)
        case "cut_out":
            return image_ops.cut_out(frames, strength, operation.center)


# Rounded as the reference has them: results are compared with its own byte by byte.
GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)
"""Shares of red, green and blue, as the reference's color jitter has them; Pillow's are in `image_ops.grey`."""
HUE_STEPS = 180
"""Hues of a color circle, each two degrees wide."""
FRACTION_BITS = 12
"""Fraction bits of the integers with which OpenCV divides on the way to hue and saturation."""
VECTOR_COLUMNS = 32
"""OpenCV truncates colors to integers in vectors of this many columns, and rounds in the columns left over."""
SECTOR_PLACES = ((0, 2, 1, 1, 2, 0), (2, 0, 0, 2, 1, 1), (1, 1, 2, 0, 0, 2))
"""Index into (largest, smallest, middle) of red, green and blue in each sixth of the color circle."""


class ColorJitter(NamedTuple):
    """Color jitter. Factors (1: unchanged), hue as a share of 255 steps of two degrees, and the order of the four by
    number."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


def jitter_colors(frames: Tensor, jitter: ColorJitter) -> Tensor:
    """Change brightness, contrast, saturation and hue in the order of `jitter`: uint8 [3, n, h, w] -> the same."""
    # Not cut to 0..255 between the steps: a bright pixel keeps what a later step may bring back.
    colors = frames.float()
    for step in jitter.order:
        match step:
            case 0:
                colors.mul_(jitter.brightness)
            case 1:
                # In float64 the mean is the same for any number of frames at a time, to the last digit of float32.
                mean = grey(colors).mean((2, 3), keepdim=True, dtype=torch.float64)
                colors.mul_(jitter.contrast).add_((mean * (1 - jitter.contrast)).float())
            case 2:
                share_of_grey = grey(colors).mul_(1 - jitter.saturation)
                colors.mul_(jitter.saturation).add_(share_of_grey)
            case 3:
                # The reference's steps: a share of 255 is cut off to an integer, although there are 180 of them.
                colors = turn_hue(colors.clamp_(0, 255).to(torch.uint8), int(jitter.hue * 255)).float()
            case _:
                raise ValueError(f"step {step} of color jitter isn't one of 0 to 3")
    return colors.clamp_(0, 255).to(torch.uint8)


def grey(colors: Tensor) -> Tensor:
    """Return the grey of colors: float32 [3, n, h, w] -> [1, n, h, w]."""
    red, green, blue = colors.unbind(0)
    return (red * GREY_WEIGHTS[0]).add_(green * GREY_WEIGHTS[1]).add_(blue * GREY_WEIGHTS[2])[None]


def turn_hue(frames: Tensor, steps: int) -> Tensor:
    """Turn every hue by steps of two degrees: uint8 [3, n, h, w] -> the same, through integer HSV."""
    hue, saturation, value = to_hsv(frames)
    return to_rgb((hue + steps) % HUE_STEPS, saturation, value)


def to_hsv(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue 0..179, saturation and value 0..255: int32 [n, h, w] each."""
    red, green, blue = frames.to(torch.int32).unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    span = value - torch.minimum(torch.minimum(red, green), blue)
    by_value, by_span = _reciprocals(frames.device)
    # By tables of reciprocals, as OpenCV divides: a real division differs in some last bits.
    saturation = _fixed_point(span * by_value[value])
    # Hue is counted in spans, six to the circle: green lies two spans from red, blue four.
    turned = torch.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    hue = _fixed_point(torch.where(value == red, green - blue, turned) * by_span[span])
    return torch.where(hue < 0, hue + HUE_STEPS, hue), saturation, value


def _fixed_point(product: Tensor) -> Tensor:
    """Round a fixed-point product to an integer, as OpenCV does."""
    return (product + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS


@cache
def _reciprocals(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 255 / i and 30 / i as fixed-point integers, 0 for i = 0: int32 [256] each."""
    numbers = torch.arange(256, dtype=torch.float64)
    return tuple(
        torch.cat([torch.zeros(1), (top * 2**FRACTION_BITS / numbers[1:]).round()]).to(device, torch.int32)
        for top in (torch.tensor(255.0, dtype=torch.float64), torch.tensor(HUE_STEPS / 6, dtype=torch.float64))
    )


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert HSV to RGB: uint8 [3, n, h, w]."""
    middle_shares, places = _color_circle(value.device)
    largest = value * torch.tensor(1 / 255, dtype=torch.float32)
    smallest = largest * (1 - saturation * torch.tensor(1 / 255, dtype=torch.float32))
    middle = largest * middle_shares[hue * 256 + saturation]
    levels = torch.stack([largest, smallest, middle]).mul_(255)
    whole = value.shape[-1] // VECTOR_COLUMNS * VECTOR_COLUMNS
    # The conversion to uint8 below truncates, as OpenCV's vector code; its scalar code for the rest rounds.
    levels[..., whole:].round_()
    return levels.clamp_(0, 255).to(torch.uint8).gather(0, places[:, hue])


@cache
def _color_circle(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tables for each hue: the middle color as a share of the largest (float32 [180 x 256], by saturation), and
    the index of red, green and blue (int64 [3, 180])."""
    sixths = torch.arange(HUE_STEPS).float() * torch.tensor(6 / HUE_STEPS, dtype=torch.float32)
    sectors = sixths.long()
    fractions = sixths - sectors.float()
    falling = torch.where(sectors % 2 == 1, fractions, 1 - fractions)
    saturations = torch.arange(256).float() * torch.tensor(1 / 255, dtype=torch.float32)
    # OpenCV's fused multiply-add rounds once: float64 holds the product exactly.
    shares = 1 - falling.double()[:, None] * saturations.double()
    return shares.float().flatten().to(device), torch.tensor(SECTOR_PLACES)[:, sectors].to(device)
