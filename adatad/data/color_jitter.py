"""Brightness, contrast, saturation and hue of frames, changed by random amounts in a random order, on any device.

Follows the reference's arithmetic: float32 that isn't cut off between the steps, and OpenCV's for the hue, whose colors
are integers (hue 0..179 in steps of two degrees).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

GREY = (0.2989, 0.5870, 0.1140)
HUES = 180
FRACTION_BITS = 12
"""Of the integers by which OpenCV divides on the way to hue and saturation."""
VECTOR_COLUMNS = 32
"""Columns that OpenCV takes at a time, cutting colors off to integers; it rounds those of columns left over."""
SECTOR_PLACES = ((0, 2, 1, 1, 2, 0), (2, 0, 0, 2, 1, 1), (1, 1, 2, 0, 0, 2))
"""Which of (largest, smallest, middle) is red, green and blue in each sixth of the color circle."""


class ColorJitter(NamedTuple):
    """Factors (1: unchanged), hue as a share of 255 steps of two degrees, and the order of the four by number."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


def jitter_colors(frames: Tensor, jitter: ColorJitter) -> Tensor:
    """frames: uint8 [3, n, h, w] -> the same."""
    colors = frames.float()
    for step in jitter.order:
        match step:
            case 0:
                colors.mul_(jitter.brightness)
            case 1:
                # In float64 the sum is the same for any number of frames at a time, to the last digit of float32.
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
    """float32 [3, n, h, w] -> [1, n, h, w]."""
    red, green, blue = colors.unbind(0)
    return (red * GREY[0]).add_(green * GREY[1]).add_(blue * GREY[2])[None]


def turn_hue(frames: Tensor, steps: int) -> Tensor:
    """Every color turned by steps of two degrees. frames: uint8 [3, n, h, w] -> the same, through integer HSV."""
    hue, saturation, value = to_hsv(frames)
    return to_rgb((hue + steps) % HUES, saturation, value)


def to_hsv(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue 0..179, saturation and value 0..255: int32 [n, h, w] each."""
    red, green, blue = frames.to(torch.int32).unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    span = value - torch.minimum(torch.minimum(red, green), blue)
    by_value, by_span = _reciprocals(frames.device)
    saturation = _fixed_point(span * by_value[value])
    # Two spans are a third of the circle.
    turned = torch.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    hue = _fixed_point(torch.where(value == red, green - blue, turned) * by_span[span])
    return torch.where(hue < 0, hue + HUES, hue), saturation, value


def _fixed_point(product: Tensor) -> Tensor:
    return (product + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS


@cache
def _reciprocals(device: torch.device) -> tuple[Tensor, Tensor]:
    """255 / i and 30 / i as fixed-point integers, 0 for i = 0: int32 [256] each."""
    numbers = torch.arange(256, dtype=torch.float64)
    return tuple(
        torch.cat([torch.zeros(1), (top * 2**FRACTION_BITS / numbers[1:]).round()]).to(device, torch.int32)
        for top in (torch.tensor(255.0, dtype=torch.float64), torch.tensor(HUES / 6, dtype=torch.float64))
    )


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The way back: uint8 [3, n, h, w]."""
    middle_shares, places = _color_circle(value.device)
    largest = value * torch.tensor(1 / 255, dtype=torch.float32)
    smallest = largest * (1 - saturation * torch.tensor(1 / 255, dtype=torch.float32))
    middle = largest * middle_shares[hue * 256 + saturation]
    levels = torch.stack([largest, smallest, middle]).mul_(255)
    whole = value.shape[-1] // VECTOR_COLUMNS * VECTOR_COLUMNS
    levels[..., whole:].round_()
    return levels.clamp_(0, 255).to(torch.uint8).gather(0, places[:, hue])


@cache
def _color_circle(device: torch.device) -> tuple[Tensor, Tensor]:
    """For each hue: the color that is neither largest nor smallest, as a share of the largest (float32 [180 x 256], by
    saturation), and which of the three is red, green and blue (int64 [3, 180])."""
    sixths = torch.arange(HUES).float() * torch.tensor(6 / HUES, dtype=torch.float32)
    sectors = sixths.long()
    fractions = sixths - sectors.float()
    falling = torch.where(sectors % 2 == 1, fractions, 1 - fractions)
    saturations = torch.arange(256).float() * torch.tensor(1 / 255, dtype=torch.float32)
    # OpenCV multiplies and subtracts with one rounding.
    shares = 1 - falling.double()[:, None] * saturations.double()
    return shares.float().flatten().to(device), torch.tensor(SECTOR_PLACES)[:, sectors].to(device)
