"""Resizing as OpenCV does it, and which part of a frame is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.resize import (
    Box,
    center_box,
    center_geometry,
    draw_area_box,
    first_fitting,
    fit_frames,
    random_geometry,
    resize,
    short_side_size,
)
from adatad.data.rng import generator

sides = st.integers(1, 70)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(256, size=shape, dtype=np.uint8)


# ---- resizing


def test_values_are_those_of_opencv():
    """Written down from OpenCV 5.0.0; plain float arithmetic differs in a tenth of them."""
    image = (np.arange(12).reshape(3, 4) * 23 % 251).astype(np.uint8)
    images = np.repeat(image[None, :, :, None], 3, axis=3)
    larger = [
        [0, 11, 27, 42, 57, 69], [37, 48, 64, 79, 94, 106], [92, 104, 119, 134, 150, 161],
        [147, 159, 174, 189, 129, 65], [184, 195, 211, 226, 116, 2],
    ]  # fmt: skip
    for channel in range(3):
        assert resize(images, 5, 6)[channel, 0].tolist() == larger
        assert resize(images, 2, 3)[channel, 0].tolist() == [[27, 57, 88], [165, 195, 69]]


@given(sides, sides, sides, sides)
def test_resized_images_are_bilinear_between_centres_of_pixels(height, width, new_height, new_width):
    images = noise(2, height, width, 3)
    ours = resize(images, new_height, new_width)
    planes = torch.from_numpy(images).permute(3, 0, 1, 2).double()
    exact = F.interpolate(planes, size=(new_height, new_width), mode="bilinear", align_corners=False)
    assert np.abs(ours - exact.numpy()).max() < 1.2


@given(sides, sides, sides, sides, st.data())
def test_a_part_is_that_part_of_the_whole(height, width, new_height, new_width, data):
    images = noise(2, height, width, 3)
    left, top = data.draw(st.integers(0, new_width - 1)), data.draw(st.integers(0, new_height - 1))
    right, bottom = data.draw(st.integers(left + 1, new_width)), data.draw(st.integers(top + 1, new_height))
    whole = resize(images, new_height, new_width)
    part = resize(images, new_height, new_width, Box(left, top, right, bottom))
    assert (part == whole[:, :, top:bottom, left:right]).all()


@given(sides, sides)
def test_images_of_the_right_size_are_not_touched(height, width):
    images = noise(2, height, width, 3)
    assert (resize(images, height, width) == images.transpose(3, 0, 1, 2)).all()


def test_strides_of_the_input_do_not_matter():
    images = noise(3, 20, 30, 3)
    turned = np.ascontiguousarray(images.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    assert (resize(turned, 13, 17) == resize(images, 13, 17)).all()


# ---- the part that is seen


@given(sides, sides, st.integers(1, 60))
def test_the_centre_of_a_frame(height, width, size):
    new_height, new_width = short_side_size(height, width, size)
    assert min(new_height, new_width) == size
    geometry = center_geometry(height, width, size)
    box = geometry.box
    assert (box.width, box.height) == (size, size)
    assert 0 <= new_width - box.right - box.left <= 1
    assert 0 <= new_height - box.bottom - box.top <= 1
    images = noise(2, height, width, 3)
    cut = resize(images, new_height, new_width)[:, :, box.top : box.bottom, box.left : box.right]
    assert (fit_frames(images, size).numpy() == cut).all()


def test_a_centre_larger_than_the_image_is_what_there_is_of_it():
    assert center_box(30, 50, 40) == Box(5, 0, 45, 30)
    assert center_box(50, 30, 40) == Box(0, 5, 30, 45)
    assert center_box(30, 20, 40) == Box(0, 0, 20, 30)


@given(sides, sides, st.integers(0, 1000))
def test_a_random_part_lies_inside(height, width, seed):
    box = draw_area_box(height, width, np.random.default_rng(seed))
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height


def test_random_parts_are_of_all_sizes_shapes_and_places():
    boxes = [draw_area_box(182, 324, np.random.default_rng(seed)) for seed in range(2000)]
    areas = np.array([box.width * box.height for box in boxes]) / (182 * 324)
    aspects = np.array([box.width / box.height for box in boxes])
    assert 0.07 < areas.min() < 0.1
    # The largest area of a cut as wide as 4/3 of its height, in a frame that is wider.
    assert 0.7 < areas.max() < 182 * 182 * 4 / 3 / (182 * 324) + 0.01
    assert 0.73 < aspects.min() < 0.77
    assert 1.31 < aspects.max() < 1.36
    for name, most in (("left", 324), ("top", 182)):
        assert {getattr(box, name) * 4 // most for box in boxes} >= {0, 1, 2}
    assert any(box.right == 324 for box in boxes)
    assert any(box.bottom == 182 for box in boxes)


def test_the_first_candidate_that_fits_is_taken():
    assert first_fitting(100, 100, np.array([1.3, 1.0, 1.0]), np.array([1.0, 0.25, 0.64])) == (50, 50)
    assert first_fitting(30, 400, np.array([1.0]), np.array([0.9])) is None
    # Halves are rounded to even numbers.
    assert first_fitting(10, 10, np.array([1.0]), np.array([0.0625])) == (2, 2)


def test_where_no_candidate_fits_the_part_is_the_square_in_the_middle():
    assert draw_area_box(1, 400, np.random.default_rng(0)) == Box(199, 0, 200, 1)


def test_a_random_part_is_resized_in_two_steps_as_in_the_reference():
    images = noise(2, 36, 64, 3)
    geometry = random_geometry(36, 64, 41, 32, generator(1, 2, 3, "crop"))
    box = geometry.box
    whole = resize(images, 41, 73)
    part = whole[:, :, box.top : box.bottom, box.left : box.right]
    assert (geometry.apply(images).numpy() == resize(part.transpose(1, 2, 3, 0), 32, 32)).all()
    assert geometry == random_geometry(36, 64, 41, 32, generator(1, 2, 3, "crop"))
    assert geometry != random_geometry(36, 64, 41, 32, generator(1, 3, 3, "crop"))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_frames_may_come_in_pieces(chunk):
    images = noise(5, 36, 64, 3)
    geometry = random_geometry(36, 64, 41, 32, generator(0, 0, 0, "crop"))
    pieces = [geometry.apply(images[first : first + chunk]) for first in range(0, 5, chunk)]
    assert torch.equal(torch.cat(pieces, 1), geometry.apply(images))
