"""Drawing for the built-in data set: textured backgrounds, and striped sprites that move, change size and fade.

Lengths are pixels of a 64 pixel frame; all randomness comes from the generator that a caller passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SIZE = 64
"""Height and width of a frame in pixels."""
# Drawn alike for all classes: a shape must tell nothing of the action.
SHAPES = ("circle", "square", "bar", "triangle", "leaf")


class Look(NamedTuple):
    """Contrast of a data set. octaves: amplitudes, in grey levels, of noise on grids of 4, 8, 16, ... cells."""

    octaves: tuple[float, ...]
    level: tuple[float, float]
    colour_spread: float
    sprite_low: tuple[float, float]
    sprite_high: tuple[float, float]


WEAK = Look((15.0, 9.0, 6.0, 3.6), (40.0, 80.0), 6.0, (170.0, 255.0), (205.0, 255.0))
"""Bright sprites on a dark, weak texture."""


@dataclass(frozen=True)
class Sprite:
    """A shape and where it is in every frame. x, y, log_size, angle, alpha: float [frames]."""

    shape: str
    radius: float
    colours: np.ndarray
    stripe: float
    x: np.ndarray
    y: np.ndarray
    log_size: np.ndarray
    angle: np.ndarray
    alpha: np.ndarray


def sprite_look(rng: np.random.Generator, look: Look) -> dict[str, object]:
    """Draw what a sprite looks like, whatever it does: shape, radius, two colours, width of its stripes."""
    channels = np.stack([rng.uniform(*look.sprite_high, 3), rng.uniform(*look.sprite_low, 3)])
    return {
        "shape": SHAPES[rng.integers(len(SHAPES))],
        "radius": rng.uniform(7.0, 11.0),
        "colours": channels.astype(np.float32),
        "stripe": rng.uniform(3.0, 6.0),
    }


def background(rng: np.random.Generator, look: Look) -> np.ndarray:
    """Draw smooth colour noise of several octaves: float32 [SIZE, SIZE, 3]."""
    image = np.full((SIZE, SIZE, 3), rng.uniform(*look.level), np.float32)
    image += rng.uniform(-look.colour_spread, look.colour_spread, 3).astype(np.float32)
    for octave, amplitude in enumerate(look.octaves):
        # One more corner than cells, at both borders.
        cells = 4 * 2**octave
        grid = rng.standard_normal((cells + 1, cells + 1, 3), np.float32) * amplitude
        image += _stretch(grid, SIZE)
    return image


def _stretch(grid: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a grid of corners to size x size, bilinearly."""
    places = np.linspace(0, len(grid) - 1, size)
    # The last place lies on the last corner, which has no right neighbour.
    low = np.minimum(places.astype(int), len(grid) - 2)
    part = (places - low).astype(np.float32)
    rows = grid[low] * (1 - part)[:, None, None] + grid[low + 1] * part[:, None, None]
    return rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]


def slow_drift(rng: np.random.Generator, frames: int, amplitude: float) -> np.ndarray:
    """Draw a slow wander around 0, the sum of two sines of 6 to 20 seconds at 8 frames a second: float [frames]."""
    time = np.arange(frames)
    waves = [np.sin(2 * np.pi * (time / rng.uniform(48, 160) + rng.uniform())) for _ in range(2)]
    return amplitude * 0.5 * (waves[0] + waves[1])


def render(image: np.ndarray, sprites: list[Sprite], rng: np.random.Generator, noise: float = 3.0) -> np.ndarray:
    """Paint sprites, in order, over a background, with pixel noise.

    image: float32 [SIZE, SIZE, 3]. Returns uint8 [frames, SIZE, SIZE, 3].
    """
    # All noise in the order of frames: the generator's draws are part of what a data set is.
    frames = len(sprites[0].x)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    video = np.empty((frames, SIZE, SIZE, 3), np.uint8)
    for number in range(frames):
        canvas = image.copy()
        for sprite in sprites:
            _paint(canvas, sprite, number, rows, columns)
        canvas += noise * rng.standard_normal(canvas.shape, np.float32)
        video[number] = np.clip(canvas + 0.5, 0, 255)
    return video


def _paint(canvas: np.ndarray, sprite: Sprite, number: int, rows: np.ndarray, columns: np.ndarray) -> None:
    """Paint a sprite as it is in frame `number`, blended into a canvas in place."""
    radius = sprite.radius * float(np.exp(sprite.log_size[number]))
    x, y = float(sprite.x[number]), float(sprite.y[number])
    # 1.6: no shape of radius 1 reaches further, at any angle; only this part of the canvas is touched.
    reach, size = 1.6 * radius, len(canvas)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, size)
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, size)
    if top >= bottom or left >= right:
        return
    dx, dy = columns[top:bottom, left:right] - x, rows[top:bottom, left:right] - y
    cos, sin = float(np.cos(sprite.angle[number])), float(np.sin(sprite.angle[number]))
    # Into the sprite's own axes, in units of its radius.
    u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius
    # The border is soft over one pixel, so that moves of less than a pixel show.
    cover = np.clip((1.0 - _distance(sprite.shape, u, v)) * radius + 0.5, 0, 1) * float(sprite.alpha[number])
    stripes = (0.5 + 0.5 * np.cos(u * radius * (2 * np.pi / sprite.stripe)))[..., None]
    colour = sprite.colours[0] * stripes + sprite.colours[1] * (1 - stripes)
    part = canvas[top:bottom, left:right]
    part += cover[..., None] * (colour - part)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance from the centre of a shape of radius 1: 1 on its border, less inside."""
    match shape:
        case "circle":
            return np.hypot(u, v)
        case "square":
            return np.maximum(abs(u), abs(v)) * 1.15
        case "bar":
            return np.maximum(abs(u) * 0.8, abs(v) * 2.0)
        case "triangle":
            return np.maximum(v, 0.87 * abs(u) - 0.5 * v) * 1.7
        case _:
            return np.hypot(u, v) * (1.35 - 0.35 * np.cos(4 * np.arctan2(v, u)))
