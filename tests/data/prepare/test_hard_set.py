"""The hard built-in data set: what tells its classes apart is in no single frame, in no set of frames without their
order, and in no mean over space."""

from __future__ import annotations

import dataclasses
from itertools import cycle

import numpy as np
import pytest

from adatad.data.prepare.demo import draw_video, plan_videos
from adatad.data.prepare.hard_set import CLASSES, PairAction, pair, pair_states, plan_pair_actions

PROBED_ACTIONS = 1200
FRAMES = 60


def action_of(label: str, start: int = 12, end: int = 40) -> PairAction:
    return PairAction(label, start, end, 11.0)


def places(seed: int, actions: list[PairAction], frames: int = FRAMES) -> np.ndarray:
    """Return where the two sprites are: [sprite, frame, x and y]."""
    sprites = pair(np.random.default_rng(seed), actions, frames)
    return np.stack([np.stack([sprite.x, sprite.y], axis=1) for sprite in sprites])


def test_actions_lie_in_the_video_with_rests_between_them():
    for seed in range(20):
        actions = plan_pair_actions(np.random.default_rng(seed), 160, cycle(CLASSES))
        assert len(actions) >= 2
        borders = [frame for action in actions for frame in (action.start, action.end)]
        assert borders == sorted(set(borders))
        assert borders[0] > 0
        assert borders[-1] < 160
        # Longer than a clip of 16 frames.
        assert all(action.end - action.start > 16 for action in actions)


@pytest.mark.parametrize("label", CLASSES)
def test_the_mean_over_both_sprites_is_that_of_a_pair_at_rest(label):
    moving, resting = (places(3, actions) for actions in ([action_of(label)], []))
    np.testing.assert_allclose(moving.mean(0), resting.mean(0), atol=1e-9)
    assert abs(moving - resting).max() > 3


@pytest.mark.parametrize("label", CLASSES)
def test_the_pair_moves_in_every_frame_of_an_action_and_rests_outside(label):
    angle, share = pair_states(np.random.default_rng(5), [action_of(label)], FRAMES)
    moves = (abs(np.diff(angle)) + abs(np.diff(share))) > 1e-9
    assert moves[11:39].all()
    assert not moves[:11].any()
    assert not moves[39:].any()
    assert 0 <= share.min() <= share.max() <= 1


def test_classes_are_each_other_played_backwards():
    turned = [np.diff(pair_states(np.random.default_rng(1), [action_of(label)], FRAMES)[0]) for label in CLASSES[:2]]
    np.testing.assert_allclose(turned[0], -turned[1], atol=1e-12)
    for label, sign in (("spread_slowly", 1), ("gather_slowly", -1)):
        steps = np.diff(pair_states(np.random.default_rng(1), [action_of(label)], FRAMES)[1])[12:39]
        # Three quarters of the time goes the slow way.
        assert (np.sign(steps) == sign).mean() > 0.6


def test_a_video_is_drawn_from_its_plan_alone():
    plan = dataclasses.replace(plan_videos(1, 0, 0, "hard")[0], frames=20, actions=())
    video = draw_video(plan)
    assert video.shape == (20, 64, 64, 3)
    assert (draw_video(plan) == video).all()


# ---- probes on the true places of the sprites


def moves_of(track: np.ndarray) -> np.ndarray:
    """Return what a sprite's steps say of whirling and spreading: signs of both, over all frames."""
    middle = track.mean((0, 1))
    arm, step = track[:, :-1] - middle, np.diff(track, axis=1)
    whirl = arm[..., 0] * step[..., 1] - arm[..., 1] * step[..., 0]
    spread = (arm * step).sum(-1)
    return np.array([np.sign(whirl).sum(), np.sign(spread).sum(), abs(whirl).sum(), abs(spread).sum()])


def linear_accuracy(features: list[np.ndarray], labels: list[int]) -> float:
    """Return the share that a linear classifier, fitted by least squares to half of the actions, tells of the rest."""
    inputs = np.array(features)
    inputs = np.hstack([(inputs - inputs.mean(0)) / (inputs.std(0) + 1e-9), np.ones((len(inputs), 1))])
    targets, half = np.eye(len(CLASSES))[labels], len(inputs) // 2
    weights = np.linalg.lstsq(inputs[:half], targets[:half], rcond=None)[0]
    return float(((inputs[half:] @ weights).argmax(1) == np.array(labels[half:])).mean())


def test_only_the_order_of_frames_at_each_place_tells_which_way():
    """Chance is a quarter; what moves without which way, whirl or distance, is a half. -rP prints the figures."""
    kinds: dict[str, list[np.ndarray]] = {"frame": [], "shuffled": [], "means": [], "ordered": []}
    labels = []
    for number in range(PROBED_ACTIONS):
        draw = np.random.default_rng((7, number))
        label = number % len(CLASSES)
        track = places(number, [action_of(CLASSES[label], 0, 28)], 28)
        one = track[:, draw.integers(28)].ravel()
        kinds["frame"].append(np.concatenate([one, np.outer(one, one)[np.triu_indices(4)]]))
        kinds["shuffled"].append(moves_of(track[:, draw.permutation(28)]))
        kinds["means"].append(moves_of(track.mean(0, keepdims=True)))
        kinds["ordered"].append(moves_of(track))
        labels.append(label)
    accuracy = {kind: linear_accuracy(features, labels) for kind, features in kinds.items()}
    print({kind: f"{share:.1%}" for kind, share in accuracy.items()})
    assert accuracy["frame"] < 0.32
    assert accuracy["means"] < 0.32
    assert accuracy["shuffled"] < 0.57
    assert accuracy["ordered"] > 0.95
