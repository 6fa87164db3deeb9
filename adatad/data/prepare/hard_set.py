"""The hard built-in data set: two sprites on opposite sides of a common centre that moves in no class.

They whirl around it, clockwise or counter-clockwise, or their distance goes slowly one way and fast back, again and
again. What one sprite does, the other does mirrored: the mean over space of where they are and how they move is the
same in all classes. Only where something moves *and* which way, together, tells them apart, so each place has to be
looked at before the mean over space. At rest the sprites stay where they stopped, at any angle and distance: neither a
single frame nor a clip's frames in another order tell anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adatad.data.prepare.synthetic import SIZE, WEAK, Sprite, background, render, slow_drift, sprite_look

CLASSES = ("whirl_clockwise", "whirl_counterclockwise", "gather_slowly", "spread_slowly")
# As in the one trial of this design, on actions drawn apart from any set (docs/decisions/hard-set.md).
ACTION_FRAMES = (20, 36)
REST_FRAMES = (6, 14)
PERIOD_FRAMES = (9.0, 13.0)
RADIUS = (9.0, 18.0)
"""Least and largest distance of a sprite from the centre, in pixels."""
SLOW_PART = 0.75
"""Share of a turn of the saw-tooth in which the distance goes the slow way."""


@dataclass(frozen=True)
class PairAction:
    """An action of both sprites in frames [start, end)."""

    label: str
    start: int
    end: int
    period_frames: float


def plan_pair_actions(rng: np.random.Generator, frames: int, labels: Iterator[str]) -> list[PairAction]:
    """Draw actions with rests between them, to the end of the video."""
    actions: list[PairAction] = []
    start = int(rng.integers(*REST_FRAMES, endpoint=True))
    # Half a second at least behind the longest action, so that its end is seen.
    while start + ACTION_FRAMES[1] + 4 <= frames:
        end = start + int(rng.integers(*ACTION_FRAMES, endpoint=True))
        actions.append(PairAction(next(labels), start, end, rng.uniform(*PERIOD_FRAMES)))
        start = end + int(rng.integers(*REST_FRAMES, endpoint=True))
    return actions


def pair_states(rng: np.random.Generator, actions: list[PairAction], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair's angle, and the place of its distance between least and largest, 0 to 1: float [frames] each."""
    angle, share = np.full(frames, rng.uniform(0, 2 * np.pi)), np.full(frames, rng.uniform())
    for action in actions:
        turns = np.arange(1, action.end - action.start + 1) / action.period_frames
        now, kept = slice(action.start, action.end), slice(action.end, None)
        match action.label:
            case "whirl_clockwise":
                angle[now] += 2 * np.pi * turns
            case "whirl_counterclockwise":
                angle[now] -= 2 * np.pi * turns
            case "spread_slowly":
                share[now] = _saw_tooth(SLOW_PART * share[action.start] + turns)
            case _:
                share[now] = _saw_tooth(SLOW_PART * share[action.start] - turns)
        # It goes on from where the last action left it.
        angle[kept], share[kept] = angle[action.end - 1], share[action.end - 1]
    return angle, share


def _saw_tooth(turns: np.ndarray) -> np.ndarray:
    """Return 0 to 1 in the slow part of each turn, and back in the rest."""
    return np.interp(turns % 1.0, [0, SLOW_PART, 1], [0, 1, 0])


def pair(rng: np.random.Generator, actions: list[PairAction], frames: int) -> list[Sprite]:
    """Return the two sprites."""
    angle, share = pair_states(rng, actions, frames)
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * share
    centre_x, centre_y = (SIZE / 2 + rng.uniform(-6, 6) + slow_drift(rng, frames, 2.0) for _ in range(2))
    return [
        Sprite(
            **sprite_look(rng, WEAK),
            x=centre_x + side * radius * np.cos(angle),
            y=centre_y + side * radius * np.sin(angle),
            log_size=np.log(0.75) + slow_drift(rng, frames, 0.1),
            angle=rng.uniform(0, 2 * np.pi) + slow_drift(rng, frames, 1.0),
            alpha=np.ones(frames),
        )
        for side in (1, -1)
    ]


def draw_hard_video(rng: np.random.Generator, actions: list[PairAction], frames: int) -> np.ndarray:
    """Draw a video: uint8 [frames, SIZE, SIZE, 3]."""
    return render(background(rng, WEAK), pair(rng, actions, frames), rng)
