"""Cropping and resizing: from a decoded frame to the square that a model sees.

The part to show is chosen once for a sample, from the height and width of its frames alone, and then cut out of any
number of frames at a time (`Geometry.apply`).

Resizing is bilinear and equals OpenCV's INTER_LINEAR on uint8 bit for bit (half-pixel centres, no antialiasing).
Weights are integers of 11 bits, as OpenCV's own, so a part of a resized image can be made alone and equals that part of
the whole. torch's own kernel for uint8 is about as fast, but off by one in a quarter of the values; its float32 kernel
takes several times as long.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

WEIGHT_ONE = np.float32(2048)
"""Integer that stands for a weight of 1."""


class Box(NamedTuple):
    """Part of an image in pixels; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bottom - self.top


def resize(images: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Return the part `box` (None: all) of images resized to height x width.

    images: uint8 [n, h, w, 3], of any strides -> uint8 [3, n, box.height, box.width], a plane for each color.
    """
    box = box or Box(0, 0, width, height)
    # Nothing to weigh: the part alone is copied, to the same values.
    if images.shape[1:3] == (height, width):
        part = images[:, box.top : box.bottom, box.left : box.right]
        return np.ascontiguousarray(part.transpose(3, 0, 1, 2))
    rows = _taps(images.shape[1], height, slice(box.top, box.bottom), single_at_border=False)
    columns = _taps(images.shape[2], width, slice(box.left, box.right), single_at_border=True)
    out = np.empty((3, len(images), box.height, box.width), np.uint8)
    _resize(images, rows, columns, out)
    return out


def _taps(source: int, target: int, part: slice, single_at_border: bool) -> tuple[np.ndarray, ...]:
    """Return two source positions and their integer weights for each target position in `part`: four int32 [n].

    Past the border both positions are the border's. For columns OpenCV then gives one of them the whole weight; for
    rows it shares it among both, where truncating each product may make the value smaller by one.
    """
    # As OpenCV computes it: the inverse of the inverse, in float64, then positions in float32.
    scale = 1.0 / (target / source)
    places = ((np.arange(target)[part] + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int32)
    second_share = places - first.astype(np.float32)
    if single_at_border:
        # Only OpenCV's horizontal pass treats the border so.
        second_share[(first < 0) | (first >= source - 1)] = 0
    two_places = (np.clip(place, 0, source - 1) for place in (first, first + 1))
    two_weights = (np.rint(share * WEIGHT_ONE).astype(np.int32) for share in (1 - second_share, second_share))
    return (*two_places, *two_weights)


@njit(nogil=True, cache=True)
def _resize(images, rows, columns, out):
    """Resize all frames. A row of the result needs two source rows, resized across; those of the row before are
    kept."""
    # Plain loops: numba compiles them to machine code, and needs no memory for intermediate images.
    upper, lower, upper_weight, lower_weight = rows
    held = np.full(2, -1)
    wide = np.empty((2, 3, len(columns[0])), np.int16)
    for frame in range(len(images)):
        held[:] = -1
        for y in range(len(upper)):
            # Two slots hold resized source rows; a row that is needed again stays in its slot.
            at_upper = 1 if held[1] == upper[y] or (held[0] != upper[y] and held[0] == lower[y]) else 0
            at_lower = at_upper if lower[y] == upper[y] else 1 - at_upper
            for slot, row in ((at_upper, upper[y]), (at_lower, lower[y])):
                if held[slot] != row:
                    _resize_across(images[frame, row], columns, wide[slot])
                    held[slot] = row
            for channel in range(3):
                _mix_rows(
                    wide[at_upper, channel], wide[at_lower, channel], upper_weight[y], lower_weight[y],
                    out[channel, frame, y],
                )  # fmt: skip


@njit(nogil=True, cache=True)
def _resize_across(row, columns, wide):
    """Resize one row across. row: uint8 [w, 3] -> wide: int16 [3, columns], values of 0 to 255 x 128."""
    lefts, rights, left_weights, right_weights = columns
    for x in range(len(lefts)):
        # Read once, not for each channel: numba can't see that `wide` is another array.
        left, right, left_weight, right_weight = lefts[x], rights[x], left_weights[x], right_weights[x]
        for channel in range(3):
            # OpenCV keeps the intermediate in 16 bits: 8 bits of value x 11 of weight, less 4.
            wide[channel, x] = (row[left, channel] * left_weight + row[right, channel] * right_weight) >> 4


@njit(nogil=True, cache=True)
def _mix_rows(upper, lower, upper_weight, lower_weight, out):
    """Write the weighted mean of two rows of `_resize_across` to `out`, uint8 [columns]."""
    for x in range(len(out)):
        # Each product is truncated by itself, and the sum is rounded: this order decides the last bit.
        value = ((upper_weight * np.int32(upper[x])) >> 16) + ((lower_weight * np.int32(lower[x])) >> 16)
        out[x] = (value + 2) >> 2


CANDIDATES = 10
"""Sizes that are tried for a random crop."""
AREA_FRACTIONS = (0.08, 1.0)
"""Smallest and largest area of a random crop, as a share of the frame's."""
ASPECTS = (3 / 4, 4 / 3)
"""Smallest and largest width of a random crop, as a multiple of its height."""


class Geometry(NamedTuple):
    """Resize frames to `height` x `width`, crop `box`, resize that to a square of `size_pixels`."""

    height: int
    width: int
    box: Box
    size_pixels: int

    def apply(self, images: np.ndarray) -> Tensor:
        """Apply to images: uint8 [n, h, w, 3] -> uint8 [3, n, size_pixels, size_pixels]."""
        # Twice, as the reference does: once through would round once, and give other values.
        cut = resize(images, self.height, self.width, self.box)
        return torch.from_numpy(resize(cut.transpose(1, 2, 3, 0), self.size_pixels, self.size_pixels))


def fit_frames(images: np.ndarray, size_pixels: int) -> Tensor:
    """Crop and resize for evaluation by `center_geometry`: uint8 [n, height, width, 3] -> uint8 [3, n, size, size]."""
    return center_geometry(*images.shape[1:3], size_pixels).apply(images)


def center_geometry(height: int, width: int, size_pixels: int) -> Geometry:
    """Return the geometry that resizes the short side to `size_pixels` and crops the centre."""
    new_height, new_width = short_side_size(height, width, size_pixels)
    return Geometry(new_height, new_width, center_box(new_height, new_width, size_pixels), size_pixels)


def random_geometry(
    height: int, width: int, short_side_pixels: int, size_pixels: int, rng: np.random.Generator
) -> Geometry:
    """Return the geometry that resizes the short side to `short_side_pixels`, crops a random part and resizes it."""
    new_height, new_width = short_side_size(height, width, short_side_pixels)
    return Geometry(new_height, new_width, draw_area_box(new_height, new_width, rng), size_pixels)


def short_side_size(height: int, width: int, short_side_pixels: int) -> tuple[int, int]:
    """Return height and width after the shorter one became `short_side_pixels`."""
    factor = short_side_pixels / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def center_box(height: int, width: int, size_pixels: int) -> Box:
    """Return the square in the middle; of a smaller image, what there is of it."""
    left, top = (max((side - size_pixels) // 2, 0) for side in (width, height))
    return Box(left, top, min(left + size_pixels, width), min(top + size_pixels, height))


def draw_area_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draw a random part of an image: its size the first of ten candidates that fits in, its place anywhere."""
    # All candidates are drawn at once, whichever fits: its place is then drawn from the same state.
    aspects = np.exp(rng.uniform(*np.log(ASPECTS), CANDIDATES))
    area_fractions = rng.uniform(*AREA_FRACTIONS, CANDIDATES)
    size = first_fitting(height, width, aspects, area_fractions)
    if size is None:
        return center_box(height, width, min(height, width))
    box_height, box_width = size
    left = int(rng.integers(width - box_width, endpoint=True))
    top = int(rng.integers(height - box_height, endpoint=True))
    return Box(left, top, left + box_width, top + box_height)


def first_fitting(height: int, width: int, aspects: np.ndarray, area_fractions: np.ndarray) -> tuple[int, int] | None:
    """Return height and width of the first candidate that fits into an image.

    aspects: float [n], width / height; area_fractions: float [n], of the image's area. None if no candidate fits.
    """
    for aspect, fraction in zip(aspects, area_fractions, strict=True):
        area = fraction * height * width
        # At least one pixel: a cut out of a very small image may round to none.
        box_height, box_width = (max(round(math.sqrt(square)), 1) for square in (area / aspect, area * aspect))
        if box_height <= height and box_width <= width:
            return box_height, box_width
    return None
