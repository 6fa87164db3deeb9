"""Bilinear resize of uint8 images, bit for bit that of OpenCV (INTER_LINEAR: half-pixel centres, no antialiasing).

Weights are integers of 11 bits, as OpenCV's own, so a part of a resized image can be made alone and equals that part
of the whole. torch's own kernel for uint8 is about as fast, but off by one in a quarter of the values; its float32
kernel takes several times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

WEIGHT_ONE = np.float32(2048)
"""An integer weight of 1."""


class Box(NamedTuple):
    """A part of an image in pixels; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def resize(images: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """The part `box` (null: all) of images resized to height x width.

    images: uint8 [n, h, w, 3], of any strides -> uint8 [3, n, box.height, box.width], a plane for each color.
    """
    box = box or Box(0, 0, width, height)
    if images.shape[1:3] == (height, width):
        part = images[:, box.top : box.bottom, box.left : box.right]
        return np.ascontiguousarray(part.transpose(3, 0, 1, 2))
    rows = _taps(images.shape[1], height, slice(box.top, box.bottom), single_at_border=False)
    columns = _taps(images.shape[2], width, slice(box.left, box.right), single_at_border=True)
    out = np.empty((3, len(images), box.height, box.width), np.uint8)
    _resize(images, rows, columns, out)
    return out


def _taps(source: int, target: int, part: slice, single_at_border: bool) -> tuple[np.ndarray, ...]:
    """Two source places and their integer weights for each of the target's places in `part`: four int32 [n].

    Past the border both places are the border's. OpenCV then gives one of them all the weight in columns, and shares it
    among both in rows, where cutting off each share may make the value smaller by one.
    """
    scale = 1.0 / (target / source)
    places = ((np.arange(target)[part] + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int32)
    second_share = places - first.astype(np.float32)
    if single_at_border:
        second_share[(first < 0) | (first >= source - 1)] = 0
    two_places = (np.clip(place, 0, source - 1) for place in (first, first + 1))
    two_weights = (np.rint(share * WEIGHT_ONE).astype(np.int32) for share in (1 - second_share, second_share))
    return (*two_places, *two_weights)


@njit(nogil=True, cache=True)
def _resize(images, rows, columns, out):
    """Rows of a frame's result need two source rows, resized across; those of the row before are still held."""
    upper, lower, upper_weight, lower_weight = rows
    held = np.full(2, -1)
    wide = np.empty((2, 3, len(columns[0])), np.int16)
    for frame in range(len(images)):
        held[:] = -1
        for y in range(len(upper)):
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
    """row: uint8 [w, 3] -> wide: int16 [3, columns], values of 0 to 255 x 128."""
    lefts, rights, left_weights, right_weights = columns
    for x in range(len(lefts)):
        # Read once, not for each channel: numba can't see that `wide` is another array.
        left, right, left_weight, right_weight = lefts[x], rights[x], left_weights[x], right_weights[x]
        for channel in range(3):
            wide[channel, x] = (row[left, channel] * left_weight + row[right, channel] * right_weight) >> 4


@njit(nogil=True, cache=True)
def _mix_rows(upper, lower, upper_weight, lower_weight, out):
    for x in range(len(out)):
        value = ((upper_weight * np.int32(upper[x])) >> 16) + ((lower_weight * np.int32(lower[x])) >> 16)
        out[x] = (value + 2) >> 2
