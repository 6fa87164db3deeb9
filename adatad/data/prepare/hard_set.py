"""The hard built-in data set: three sprites do the same four things at times of their own, and only one of them counts.

Each goes round in a small circle in a quarter of the frame of its own: clockwise or counter-clockwise, fast or slowly.
Labelled is what the reddish one does, not what the two bluish ones do. They look alike, whitish, but for 8 of every 24
frames, in which they show their colour. The mean over space of all that moves tells that somebody goes round, and which
way, but not who: colour and motion have to meet at each place, before that mean, and the colour has to be kept there
for longer than a clip lasts. All classes trace the same circles, so that neither a frame nor frames in another order
tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from adatad.data.prepare.synthetic import SIZE, WEAK, Sprite, background, render, slow_drift, sprite_look

CLASSES = ("clockwise_fast", "clockwise_slowly", "counterclockwise_fast", "counterclockwise_slowly")
# Chosen on the set of seed 100, which no reported run uses (docs/decisions/hard-set.md).
ACTION_FRAMES = (14, 40)
REST_FRAMES = (5, 14)
FAST_PERIOD_FRAMES = (7.0, 8.5)
SLOW_PERIOD_FRAMES = (12.5, 15.0)
"""Least and most frames of a turn."""
CIRCLE_RADIUS = (5.5, 8.0)
"""Least and largest radius of the circle in which a sprite goes round, in pixels."""
SPRITE_RADIUS = (5.5, 7.5)
OTHERS = 2
"""Sprites beside the one that counts."""
COLOURED_FRAMES, COLOUR_PERIOD_FRAMES = 8, 24
"""Frames in which a sprite shows its colour, of how many; when is drawn for each sprite."""
WHITISH = np.array([[235] * 3, [215] * 3], np.float32)


@dataclass(frozen=True)
class Turning:
    """An action of one sprite in frames [start, end). angle: at its start, in turns; radius: of its circle, pixels."""

    label: str
    start: int
    end: int
    period_frames: float
    angle: float
    radius: float


def plan_turning(rng: np.random.Generator, frames: int, labels: Iterator[str]) -> list[Turning]:
    """Draw actions with rests between them, to the end of the video."""
    actions: list[Turning] = []
    start = int(rng.integers(*REST_FRAMES, endpoint=True))
    while True:
        end = start + int(rng.integers(*ACTION_FRAMES, endpoint=True))
        # Half a second at least behind the last action, so that its end is seen.
        if end + 4 > frames:
            return actions
        label = next(labels)
        period = rng.uniform(*(FAST_PERIOD_FRAMES if label.endswith("fast") else SLOW_PERIOD_FRAMES))
        actions.append(Turning(label, start, end, period, rng.uniform(), rng.uniform(*CIRCLE_RADIUS)))
        start = end + int(rng.integers(*REST_FRAMES, endpoint=True))


def offsets(actions: list[Turning], frames: int) -> np.ndarray:
    """Return where a sprite is beside its own place, x and y in pixels: float [2, frames]."""
    offset = np.full((2, frames), np.nan)
    for action in actions:
        turns = np.arange(action.end - action.start) / action.period_frames
        # y points down: growing angles go clockwise.
        angle = 2 * np.pi * (action.angle + (-turns if action.label.startswith("counter") else turns))
        offset[:, action.start : action.end] = action.radius * np.stack([np.cos(angle), np.sin(angle)])
    known = np.flatnonzero(~np.isnan(offset[0]))
    if not len(known):
        return np.zeros((2, frames))
    # From one circle to the next evenly: a jump would show where an action begins.
    return np.stack([np.interp(np.arange(frames), known, row[known]) for row in offset])


def sprites_of(rng: np.random.Generator, actions: list[Turning], frames: int) -> list[Sprite]:
    """Return the sprite that counts, which does `actions`, and then the others, which do what the generator draws, each
    in the colour that it shows now and then."""
    quarters = rng.permutation(4)[: 1 + OTHERS].tolist()
    counts = _sprite(rng, quarters[0], actions, _reddish(rng), frames)
    labels = iter(lambda: str(rng.choice(CLASSES)), None)
    # Channels in reverse: bluish, and as bright.
    others = [
        _sprite(rng, quarter, plan_turning(rng, frames, labels), _reddish(rng)[:, ::-1], frames)
        for quarter in quarters[1:]
    ]
    return [counts, *others]


def _sprite(rng: np.random.Generator, quarter: int, actions: list[Turning], colours: np.ndarray, frames: int) -> Sprite:
    """Return a sprite in a quarter of the frame, 0 to 3, which drifts slowly and shows its colour now and then."""
    offset = offsets(actions, frames)
    place = [SIZE * (0.27 + 0.46 * part) for part in (quarter % 2, quarter // 2)]
    x, y = (centre + rng.uniform(-2, 2) + slow_drift(rng, frames, 1.5) for centre in place)
    clock = np.arange(frames) + rng.integers(COLOUR_PERIOD_FRAMES)
    return Sprite(
        **(sprite_look(rng, WEAK) | {"radius": rng.uniform(*SPRITE_RADIUS), "colours": colours}),
        x=x + offset[0],
        y=y + offset[1],
        log_size=slow_drift(rng, frames, 0.1),
        angle=rng.uniform(0, 2 * np.pi) + slow_drift(rng, frames, 1.5),
        alpha=(clock % COLOUR_PERIOD_FRAMES < COLOURED_FRAMES).astype(float),
    )


def _reddish(rng: np.random.Generator) -> np.ndarray:
    """Draw two shades of a reddish colour: float32 [2, 3]."""
    bright = np.array([rng.uniform(225, 255), rng.uniform(60, 110), rng.uniform(60, 110)], np.float32)
    return np.stack([bright, bright * np.float32(rng.uniform(0.85, 0.97))])


def draw_hard_video(rng: np.random.Generator, actions: list[Turning], frames: int) -> np.ndarray:
    """Draw a video: uint8 [frames, SIZE, SIZE, 3]."""
    scene, painted = background(rng, WEAK), []
    for sprite in sprites_of(rng, actions, frames):
        # The coloured sprite over a whitish one of the same shape.
        painted += [replace(sprite, colours=WHITISH, alpha=np.ones(frames)), sprite]
    return render(scene, painted, rng)
