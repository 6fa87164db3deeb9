"""Grey cells: the mean of each part of a frame, whatever its size."""

import numpy as np
import pytest

from adatad.data.prepare.cells import SIDE, grey_cells


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (64, 48), (37, 101), (3, 5)])
def test_cells_are_the_mean_grey_of_their_part(height, width):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    cells = grey_cells(images)
    assert cells.shape == (2, SIDE * SIDE)
    large = images.repeat(SIDE if height < SIDE else 1, 1).repeat(SIDE if width < SIDE else 1, 2)
    corner = large[1, : large.shape[1] // SIDE, : large.shape[2] // SIDE]
    assert cells[1, 0] == pytest.approx(corner.mean(), rel=1e-5)
    if height % SIDE == width % SIDE == 0:
        assert cells.mean() == pytest.approx(images.mean(), rel=1e-5)


def test_no_frame_has_no_cells():
    assert grey_cells(np.zeros((0, 20, 20, 3), np.uint8)).shape == (0, SIDE * SIDE)
