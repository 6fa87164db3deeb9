"""Frames reduced to a few grey cells: little enough to be kept of every frame, and much enough to tell videos apart and
to see that something moves."""

from __future__ import annotations

import numpy as np

SIDE = 8
"""Cells along each side."""


def grey_cells(images: np.ndarray) -> np.ndarray:
    """Return the mean grey of SIDE x SIDE cells: uint8 [n, height, width, 3] -> float32 [n, SIDE x SIDE], 0 to 255."""
    # Frames that are smaller than the cells are enlarged, so that none is empty.
    for axis in (1, 2):
        if images.shape[axis] < SIDE:
            images = images.repeat(SIDE, axis)
    rows, columns = (np.linspace(0, length, SIDE + 1).astype(int) for length in images.shape[1:3])
    pixels = 3 * np.outer(np.diff(rows), np.diff(columns))
    cells = np.empty((len(images), SIDE, SIDE), np.float32)
    # One frame at a time: large frames as integers of 32 bits would take four times the memory of all.
    for number, image in enumerate(images):
        bands = np.add.reduceat(image, rows[:-1], axis=0, dtype=np.uint32)
        cells[number] = np.add.reduceat(bands, columns[:-1], axis=1).sum(2) / pixels
    return cells.reshape(len(images), SIDE * SIDE)
