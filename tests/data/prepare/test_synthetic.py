"""Drawing: deterministic, inside the frame, and as a sprite's numbers say."""

import numpy as np
import pytest

from adatad.data.prepare.synthetic import (
    SHAPES,
    SIZE,
    WEAK,
    Look,
    Sprite,
    background,
    render,
    slow_drift,
    sprite_look,
)

GREY = np.full((SIZE, SIZE, 3), 60.0, np.float32)
STRONG = Look((45.0, 30.0, 20.0, 12.0), (70.0, 180.0), 40.0, (0.0, 255.0), (0.0, 255.0))
"""Sprites of any colour on a strong texture."""


def still(frames: int = 1, **changes: object) -> Sprite:
    """A white square of radius 8 in the middle."""
    zeros = np.zeros(frames)
    values = {
        "shape": "square", "radius": 8.0, "colours": np.full((2, 3), 250.0, np.float32), "stripe": 4.0,
        "x": zeros + 32, "y": zeros + 32, "log_size": zeros, "angle": zeros, "alpha": zeros + 1,
    }  # fmt: skip
    return Sprite(**{**values, **changes})


def drawn(*sprites: Sprite, noise: float = 0.0) -> np.ndarray:
    """Return the sprites' part of a picture on a grey background: float [frames, height, width]."""
    return render(GREY, list(sprites), np.random.default_rng(0), noise).astype(float).mean(-1) - 60


def centre(image: np.ndarray) -> tuple[float, float]:
    rows, columns = np.mgrid[: len(image), : len(image)]
    return (columns * image).sum() / image.sum(), (rows * image).sum() / image.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_drawn_where_the_sprite_is(shape):
    image = drawn(still(shape=shape, x=np.array([20.0]), y=np.array([41.0])))[0]
    assert centre(image) == pytest.approx((20, 41), abs=2.5)
    assert 40 < (image > 100).sum() < 400


def test_every_frame_has_its_own_place_size_and_brightness():
    x, y = np.array([16.0, 32.0, 48.0]), np.array([40.0, 30.0, 20.0])
    log_size, alpha = np.log([0.5, 1.0, 1.5]), np.array([1.0, 0.5, 0.25])
    images = drawn(still(3, x=x, y=y, log_size=log_size, alpha=alpha))
    for number, image in enumerate(images):
        assert centre(image) == pytest.approx((x[number], y[number]), abs=0.5)
        assert image.max() == pytest.approx(190 * alpha[number], abs=1)
    areas = images.sum((1, 2)) / alpha
    np.testing.assert_allclose(areas / areas[1], [0.25, 1, 2.25], rtol=0.1)


def test_later_sprites_hide_earlier_ones():
    dark = still(colours=np.full((2, 3), 70.0, np.float32))
    assert drawn(still(), dark)[0, 28:36, 28:36].max() < 15
    assert drawn(dark, still())[0, 28:36, 28:36].min() > 180


@pytest.mark.parametrize("place", [-100.0, -3.0, 67.0, 1000.0])
def test_sprites_may_leave_the_frame(place):
    image = drawn(still(x=np.array([place])))
    assert image.shape == (1, SIZE, SIZE)
    assert (image.max() > 100) == (abs(place - 32) < 40)


@pytest.mark.parametrize("look", [WEAK, STRONG], ids=["weak", "strong"])
def test_the_same_generator_draws_the_same(look):
    pictures = []
    for seed in (0, 0, 1):
        draw = np.random.default_rng(seed)
        scene = background(draw, look)
        assert scene.shape == (SIZE, SIZE, 3)
        sprite = still(4, **sprite_look(draw, look), x=32 + slow_drift(draw, 4, 9.0))
        pictures.append(render(scene, [sprite], draw))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()


def test_weak_backgrounds_are_darker_than_their_sprites():
    draw = np.random.default_rng(0)
    scenes = np.stack([background(draw, WEAK) for _ in range(20)])
    colours = np.stack([sprite_look(draw, WEAK)["colours"] for _ in range(20)])
    assert np.percentile(scenes, 99) < colours.min()
    assert scenes.std() < np.stack([background(draw, STRONG) for _ in range(20)]).std() / 2


def test_drift_is_slow_and_bounded():
    for seed in range(20):
        path = slow_drift(np.random.default_rng(seed), 240, 3.0)
        assert abs(path).max() <= 3.0
        assert abs(np.diff(path)).max() < 3.0 * 2 * np.pi / 48
