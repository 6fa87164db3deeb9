"""The hard built-in data set: what tells its classes apart is in no single frame, in no set of frames without their
order, and little of it in a mean over space."""

from __future__ import annotations

import dataclasses
from itertools import cycle

import numpy as np
import pytest

from adatad.data.prepare.demo import draw_video, plan_videos
from adatad.data.prepare.hard_set import CLASSES, OTHERS, Turning, offsets, plan_turning, sprites_of

PROBED_ACTIONS = 1200
FRAMES = 60


def action_of(label: str, start: int = 12, end: int = 40) -> Turning:
    return Turning(label, start, end, 8.0 if label.endswith("fast") else 14.0, 0.2, 7.0)


def test_actions_lie_in_the_video_with_rests_between_them():
    for seed in range(20):
        actions = plan_turning(np.random.default_rng(seed), 160, cycle(CLASSES))
        assert len(actions) >= 2
        borders = [frame for action in actions for frame in (action.start, action.end)]
        assert borders == sorted(set(borders))
        assert borders[0] > 0
        assert borders[-1] < 160


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_goes_round_the_same_circle(label):
    action = action_of(label)
    inside = offsets([action], FRAMES)[:, action.start : action.end]
    np.testing.assert_allclose(np.hypot(*inside), action.radius)
    turned = np.unwrap(np.arctan2(inside[1], inside[0]))
    # y points down: clockwise is a growing angle.
    sign = -1 if label.startswith("counter") else 1
    np.testing.assert_allclose(np.diff(turned), sign * 2 * np.pi / action.period_frames)
    assert action.end - action.start > action.period_frames


def test_a_sprite_goes_evenly_from_one_circle_to_the_next():
    offset = offsets([action_of(CLASSES[0], 4, 20), action_of(CLASSES[3], 30, 50)], FRAMES)
    assert abs(np.diff(offset[:, 20:30], n=2)).max() < 1e-9
    # Never faster than in an action.
    assert abs(np.diff(offset)).max() < 6.0
    assert (offsets([], FRAMES) == 0).all()


def test_the_others_do_the_same_at_times_of_their_own_and_look_alike_but_for_their_colour():
    first, second = (sprites_of(np.random.default_rng(3), actions, FRAMES) for actions in ([], [action_of(CLASSES[0])]))
    assert len(first) == 1 + OTHERS
    assert abs(np.ptp(second[0].x) - np.ptp(first[0].x)) > 3
    # What one does changes nothing of the others, but for the numbers drawn.
    for sprite in first[1:]:
        assert np.ptp(sprite.x) > 5
        assert sprite.colours[0, 2] > sprite.colours[0, 0]
    assert first[0].colours[0, 0] > first[0].colours[0, 2]


def test_sprites_keep_to_a_quarter_of_their_own():
    for seed in range(10):
        actions = plan_turning(np.random.default_rng(seed), FRAMES, cycle(CLASSES))
        sprites = sprites_of(np.random.default_rng(seed), actions, FRAMES)
        centres = [(sprite.x.mean() > 32, sprite.y.mean() > 32) for sprite in sprites]
        assert len(set(centres)) == len(sprites)


def test_a_video_is_drawn_from_its_plan_alone():
    plan = dataclasses.replace(plan_videos(1, 0, 0, "hard")[0], frames=20, actions=())
    video = draw_video(plan)
    assert video.shape == (20, 64, 64, 3)
    assert (draw_video(plan) == video).all()


# ---- probes on the true places of the sprites


def places(seed: int, actions: list[Turning], frames: int) -> np.ndarray:
    """Return where the sprites are, the one that counts first: [sprite, frame, x and y]."""
    sprites = sprites_of(np.random.default_rng(seed), actions, frames)
    return np.stack([np.stack([sprite.x, sprite.y], axis=1) for sprite in sprites])


def turning_of(track: np.ndarray) -> np.ndarray:
    """Return what a track [frame, x and y] says of turning: which way on the whole, how fast, and both together."""
    arm, step = (track - track.mean(0))[:-1], np.diff(track, axis=0)
    turned = (arm[:, 0] * step[:, 1] - arm[:, 1] * step[:, 0]) / (arm**2).sum(1).mean()
    return np.array([np.sign(turned.sum()), turned.mean(), abs(turned).mean(), np.hypot(*step.T).mean()])


def linear_accuracy(features: list[np.ndarray], labels: list[int]) -> float:
    """Return the share that a linear classifier, fitted by least squares to half of the actions, tells of the rest."""
    inputs = np.array(features)
    inputs = np.hstack([(inputs - inputs.mean(0)) / (inputs.std(0) + 1e-9), np.ones((len(inputs), 1))])
    targets, half = np.eye(len(CLASSES))[labels], len(inputs) // 2
    weights = np.linalg.lstsq(inputs[:half], targets[:half], rcond=None)[0]
    return float(((inputs[half:] @ weights).argmax(1) == np.array(labels[half:])).mean())


def test_only_the_order_of_frames_of_the_one_that_counts_tells_the_class():
    """Chance is a quarter. -rP prints the figures."""
    kinds: dict[str, list[np.ndarray]] = {"frame": [], "shuffled": [], "mean": [], "ordered": []}
    labels = []
    for number in range(PROBED_ACTIONS):
        draw = np.random.default_rng((7, number))
        label = number % len(CLASSES)
        action = next(iter(plan_turning(draw, FRAMES, cycle([CLASSES[label]]))))
        tracks = places(number, [action], FRAMES)[:, action.start : action.end]
        one = tracks[:, draw.integers(tracks.shape[1])].ravel()
        kinds["frame"].append(np.concatenate([one, np.outer(one, one)[np.triu_indices(6)]]))
        kinds["shuffled"].append(turning_of(draw.permutation(tracks[0])))
        kinds["mean"].append(turning_of(tracks.mean(0)))
        kinds["ordered"].append(turning_of(tracks[0]))
        labels.append(label)
    accuracy = {kind: linear_accuracy(features, labels) for kind, features in kinds.items()}
    print({kind: f"{share:.1%}" for kind, share in accuracy.items()})
    assert accuracy["frame"] < 0.32
    assert accuracy["shuffled"] < 0.32
    assert accuracy["mean"] < 0.65
    assert accuracy["ordered"] > 0.95
