"""Which part of a frame is seen, and at what size: chosen once for a sample, then applied to its frames in any pieces.

Choosing needs the height and width of the frames alone; `Geometry.apply` takes as many of them at a time as are there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adatad.data.resize import Box, resize

CANDIDATES = 10
"""Sizes that are tried for a random cut."""
AREA_FRACTIONS = (0.08, 1.0)
"""Smallest and largest area of a random cut, of the frame's."""
ASPECTS = (3 / 4, 4 / 3)
"""Smallest and largest width of a random cut, of its height."""


class Geometry(NamedTuple):
    """Resize frames to `height` x `width`, cut out `box`, resize that to a square of `size_pixels`."""

    height: int
    width: int
    box: Box
    size_pixels: int

    def apply(self, images: np.ndarray) -> Tensor:
        """images: uint8 [n, h, w, 3] -> uint8 [3, n, size_pixels, size_pixels]."""
        cut = resize(images, self.height, self.width, self.box)
        return torch.from_numpy(resize(cut.transpose(1, 2, 3, 0), self.size_pixels, self.size_pixels))


def fit_frames(images: np.ndarray, size_pixels: int) -> Tensor:
    """Of evaluation: uint8 [n, height, width, 3] -> uint8 [3, n, size_pixels, size_pixels], by `center_geometry`."""
    return center_geometry(*images.shape[1:3], size_pixels).apply(images)


def center_geometry(height: int, width: int, size_pixels: int) -> Geometry:
    """The short side to `size_pixels`, the centre cut out."""
    new_height, new_width = short_side_size(height, width, size_pixels)
    return Geometry(new_height, new_width, center_box(new_height, new_width, size_pixels), size_pixels)


def random_geometry(
    height: int, width: int, short_side_pixels: int, size_pixels: int, draw: np.random.Generator
) -> Geometry:
    """The short side to `short_side_pixels`, a random part cut out and resized."""
    new_height, new_width = short_side_size(height, width, short_side_pixels)
    return Geometry(new_height, new_width, draw_area_box(new_height, new_width, draw), size_pixels)


def short_side_size(height: int, width: int, short_side_pixels: int) -> tuple[int, int]:
    """Height and width after the shorter one became `short_side_pixels`."""
    factor = short_side_pixels / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def center_box(height: int, width: int, size_pixels: int) -> Box:
    """The square in the middle; of an image that is smaller, what there is of it."""
    left, top = (max((side - size_pixels) // 2, 0) for side in (width, height))
    return Box(left, top, min(left + size_pixels, width), min(top + size_pixels, height))


def draw_area_box(height: int, width: int, draw: np.random.Generator) -> Box:
    """A random part of an image: its size the first of ten candidates that fits in, its place anywhere."""
    aspects = np.exp(draw.uniform(*np.log(ASPECTS), CANDIDATES))
    area_fractions = draw.uniform(*AREA_FRACTIONS, CANDIDATES)
    size = first_fitting(height, width, aspects, area_fractions)
    if size is None:
        return center_box(height, width, min(height, width))
    box_height, box_width = size
    left = int(draw.integers(width - box_width, endpoint=True))
    top = int(draw.integers(height - box_height, endpoint=True))
    return Box(left, top, left + box_width, top + box_height)


def first_fitting(height: int, width: int, aspects: np.ndarray, area_fractions: np.ndarray) -> tuple[int, int] | None:
    """Height and width of the first candidate that fits into an image.

    aspects: float [n], width / height; area_fractions: float [n], of the image's area. None if no candidate fits.
    """
    for aspect, fraction in zip(aspects, area_fractions, strict=True):
        area = fraction * height * width
        # At least one pixel: a cut out of a very small image may round to none.
        box_height, box_width = (max(round(math.sqrt(square)), 1) for square in (area / aspect, area * aspect))
        if box_height <= height and box_width <= width:
            return box_height, box_width
    return None
