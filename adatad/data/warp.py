"""Frames sheared, shifted and turned about their centre, and a square of them hidden, on any device.

Frames are uint8 [3, n, h, w]; what comes in from outside is black.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN_LEVEL = 128


def shear_x(frames: Tensor, degrees: float) -> Tensor:
    """Positive: what is below the centre goes to the left."""
    return _warp(frames, ((1.0, math.tan(math.radians(degrees)), 0.0), (0.0, 1.0, 0.0)))


def shear_y(frames: Tensor, degrees: float) -> Tensor:
    """Positive: what is right of the centre goes down."""
    return _warp(frames, ((1.0, 0.0, 0.0), (-math.tan(math.radians(degrees)), 1.0, 0.0)))


def translate_x(frames: Tensor, share: float) -> Tensor:
    """To the right by a share of the width."""
    return _warp(frames, ((1.0, 0.0, -share * frames.shape[3]), (0.0, 1.0, 0.0)))


def translate_y(frames: Tensor, share: float) -> Tensor:
    """Down by a share of the height."""
    return _warp(frames, ((1.0, 0.0, 0.0), (0.0, 1.0, -share * frames.shape[2])))


def rotate(frames: Tensor, degrees: float) -> Tensor:
    """Positive: the right side goes down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _warp(frames, ((cosine, sine, 0.0), (-sine, cosine, 0.0)))


def _warp(frames: Tensor, source: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Tensor:
    """source: which point (x, y), in pixels from the centre, each point of the result comes from: A (x, y, 1)."""
    channels, count, height, width = frames.shape
    # grid_sample's own unit, half a width or height, is the same for places here and there along one side only.
    (xx, xy, x), (yx, yy, y) = source
    matrix = ((xx, xy * height / width, 2 * x / width), (yx * width / height, yy, 2 * y / height))
    theta = torch.zeros(1, 2, 3, device=frames.device)
    for place, value in zip(theta.flatten(), (value for row in matrix for value in row), strict=True):
        if value:
            # A number on its way to a kernel; a tensor of numbers would be a copy that the host waits for.
            place.fill_(value)
    grid = F.affine_grid(theta, (1, 1, height, width), align_corners=False)
    planes = frames.float().reshape(1, channels * count, height, width)
    moved = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8).reshape(frames.shape)


def cut_out(frames: Tensor, side: float, center: tuple[float, float]) -> Tensor:
    """A grey square of `side` x height about `center`, (x, y) as shares of width and height."""
    height, width = frames.shape[2:]
    half = side * height / 2
    spans = [
        slice(max(round(share * length - half), 0), max(round(share * length + half), 0))
        for share, length in zip(center, (width, height), strict=True)
    ]
    result = frames.clone()
    result[:, :, spans[1], spans[0]].fill_(HIDDEN_LEVEL)
    return result
