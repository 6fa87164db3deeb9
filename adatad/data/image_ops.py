"""RandAugment's operations on frames: colors, equal bit for bit to Pillow's ImageEnhance and ImageOps, and warps.

All take and give frames uint8 [3, n, h, w], on any device; what is measured of an image (a mean, a histogram) is
measured of each frame alone. Where Pillow rounds or truncates, the same is done here in integers, or in floats of its
own width. What a warp brings in from outside the frame is black."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def invert(frames: Tensor) -> Tensor:
    """Invert colors."""
    return 255 - frames


def solarize(frames: Tensor, threshold: int) -> Tensor:
    """Invert values from `threshold` on."""
    return torch.where(frames < threshold, frames, 255 - frames)


def posterize(frames: Tensor, bits: int) -> Tensor:
    """Keep only the highest bits."""
    return frames & (256 - 2 ** (8 - bits))


def adjust_color(frames: Tensor, factor: float) -> Tensor:
    """Change saturation by a factor, as ImageEnhance.Color."""
    return _away_from(grey(frames).expand_as(frames), frames, factor)


def adjust_contrast(frames: Tensor, factor: float) -> Tensor:
    """Change contrast by a factor, as ImageEnhance.Contrast."""
    sums = grey(frames).sum((2, 3), keepdim=True, dtype=torch.int64)
    pixels = frames.shape[2] * frames.shape[3]
    # floor(mean + 1/2), as Pillow rounds, in integers.
    means = (2 * sums + pixels) // (2 * pixels)
    return _away_from(means.to(torch.uint8), frames, factor)


def adjust_brightness(frames: Tensor, factor: float) -> Tensor:
    """Change brightness by a factor, as ImageEnhance.Brightness."""
    return _away_from(torch.zeros_like(frames[:, :1, :1, :1]), frames, factor)


def adjust_sharpness(frames: Tensor, factor: float) -> Tensor:
    """Change sharpness by a factor, as ImageEnhance.Sharpness."""
    return _away_from(smooth(frames), frames, factor)


def grey(frames: Tensor) -> Tensor:
    """Return luma as Pillow rounds it: uint8 [1, n, h, w]."""
    red, green, blue = frames.to(torch.int32).unbind(0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[None]


def smooth(frames: Tensor) -> Tensor:
    """Return the mean of the 3 x 3 pixels around each, the pixel itself counted five times; border pixels stay."""
    result = frames.clone()
    if min(frames.shape[2:]) < 3:
        return result
    # Integers: sums of nine values don't fit in 8 bits, and floats would have to round as Pillow does.
    wide = frames.to(torch.int32)
    columns = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    # Thirteenths are never halves, so every way of rounding to the nearest integer agrees.
    result[:, :, 1:-1, 1:-1] = ((2 * sums + 13) // 26).to(torch.uint8)
    return result


def autocontrast(frames: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of a single value stays."""
    low, high = (value.double()[..., None] for value in (frames.amin((2, 3)), frames.amax((2, 3))))
    # Not 255.0 / tensor: torch computes that as 255.0 times the reciprocal, which rounds twice.
    scale = torch.full_like(low, 255.0) / (high - low)
    values = torch.arange(256, device=frames.device, dtype=torch.float64)
    stretched = (values * scale + -low * scale).clamp(0, 255)
    return _look_up(frames, torch.where(high > low, stretched, values).to(torch.uint8))


def equalize(frames: Tensor) -> Tensor:
    """Spread each channel's values so that all are about equally frequent; a channel of a single value stays."""
    counts = histogram(frames)
    # ImageOps.equalize: the step leaves out the highest value, and half a step is added to round.
    values = torch.arange(256, device=frames.device)
    highest = frames.amax((2, 3)).long()[..., None]
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, highest)) // 255
    before = counts.cumsum(-1) - counts
    spread = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return _look_up(frames, torch.where(step > 0, spread, values).to(torch.uint8))


def histogram(frames: Tensor) -> Tensor:
    """Count the values of each channel and frame: int64 [3, n, 256]."""
    channels, count = frames.shape[:2]
    planes = torch.arange(channels * count, device=frames.device)[:, None]
    bins = (planes * 256 + frames.reshape(channels * count, -1)).flatten()
    # Integer sums are the same in any order; torch.bincount is nondeterministic on GPUs.
    counts = torch.zeros(channels * count * 256, dtype=torch.int64, device=frames.device)
    return counts.scatter_add_(0, bins, torch.ones_like(bins)).reshape(channels, count, 256)


def _look_up(frames: Tensor, table: Tensor) -> Tensor:
    """Map each value through a table: uint8 [3, n, 256]."""
    return table.gather(-1, frames.flatten(2).long()).reshape(frames.shape)


def _away_from(base: Tensor, frames: Tensor, factor: float) -> Tensor:
    """Return base + factor x (frames - base), computed in float32, clipped to uint8."""
    # int16: a difference of two bytes has a sign.
    mixed = (frames.to(torch.int16) - base).float().mul_(factor).add_(base)
    return mixed.clamp_(0, 255).to(torch.uint8)


HIDDEN_LEVEL = 128
"""Grey of a square that is cut out."""


def shear_x(frames: Tensor, degrees: float) -> Tensor:
    """Shear along x. Positive: what is below the centre goes to the left."""
    return _warp(frames, ((1.0, math.tan(math.radians(degrees)), 0.0), (0.0, 1.0, 0.0)))


def shear_y(frames: Tensor, degrees: float) -> Tensor:
    """Shear along y. Positive: what is right of the centre goes down."""
    return _warp(frames, ((1.0, 0.0, 0.0), (-math.tan(math.radians(degrees)), 1.0, 0.0)))


def translate_x(frames: Tensor, share: float) -> Tensor:
    """Shift to the right by a share of the width."""
    return _warp(frames, ((1.0, 0.0, -share * frames.shape[3]), (0.0, 1.0, 0.0)))


def translate_y(frames: Tensor, share: float) -> Tensor:
    """Shift down by a share of the height."""
    return _warp(frames, ((1.0, 0.0, 0.0), (0.0, 1.0, -share * frames.shape[2])))


def rotate(frames: Tensor, degrees: float) -> Tensor:
    """Rotate about the centre. Positive: the right side goes down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _warp(frames, ((cosine, sine, 0.0), (-sine, cosine, 0.0)))


def _warp(frames: Tensor, source: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Tensor:
    """Resample frames. source: matrix A; the point (x, y) of the result, in pixels from the centre, comes from A (x, y,
    1)."""
    channels, count, height, width = frames.shape
    # grid_sample measures x in half widths and y in half heights, so mixed terms need the ratio of the two.
    (xx, xy, x), (yx, yy, y) = source
    matrix = ((xx, xy * height / width, 2 * x / width), (yx * width / height, yy, 2 * y / height))
    theta = torch.zeros(1, 2, 3, device=frames.device)
    for place, value in zip(theta.flatten(), (value for row in matrix for value in row), strict=True):
        if value:
            # fill_ passes a kernel argument; a tensor of the matrix would be a copy that the host waits for.
            place.fill_(value)
    # One grid for all frames and channels, which are planes of one image here.
    grid = F.affine_grid(theta, (1, 1, height, width), align_corners=False)
    planes = frames.float().reshape(1, channels * count, height, width)
    moved = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8).reshape(frames.shape)


def cut_out(frames: Tensor, side: float, center: tuple[float, float]) -> Tensor:
    """Hide a square of `side` x height about `center`, (x, y) as shares of width and height."""
    height, width = frames.shape[2:]
    half = side * height / 2
    spans = [
        slice(max(round(share * length - half), 0), max(round(share * length + half), 0))
        for share, length in zip(center, (width, height), strict=True)
    ]
    result = frames.clone()
    result[:, :, spans[1], spans[0]].fill_(HIDDEN_LEVEL)
    return result
