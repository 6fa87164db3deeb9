"""The built-in data set: the same bytes from a seed, exact labels, and classes that no single frame tells apart."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adatad.data.annotations import read_annotations
from adatad.data.decode import open_video
from adatad.data.prepare.demo import (
    EASY_CLASSES,
    FPS,
    Action,
    act,
    actor,
    actor_state,
    distractor,
    draw_action,
    draw_video,
    make_demo,
    plan_videos,
    write_video,
)
from adatad.data.prepare.hard_set import CLASSES as HARD_CLASSES
from adatad.data.prepare.synthetic import WEAK, Sprite, background, render
from adatad.data.rng import generator
from adatad.errors import UserError
from adatad.spec.data_sections import DataSpec

STATES = ("x", "y", "log_size", "angle", "alpha")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plans_of_tiny_data() -> list:
    return plan_videos(6, 2, seed=5, difficulty="easy")


# ---- the files


def test_a_video_s_bytes_depend_on_nothing_but_its_plan(tmp_path):
    """Also not on what the same process encoded before."""
    videos = [draw_video(plan)[:120] for plan in plans_of_tiny_data()[:6]]
    for number, order in enumerate(([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0], [2, 5, 0, 3, 1, 4])):
        for index in order:
            write_video(tmp_path / f"{index}_{number}.mp4", videos[index])
    for index in range(len(videos)):
        assert len({(tmp_path / f"{index}_{number}.mp4").read_bytes() for number in range(3)}) == 1


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (3, 3, 4), strict=True):
        assert make_demo(folder, 1, 1, seed=seed) == folder / "annotations.json"
    one, same, other = (content(folder) for folder in folders)
    assert set(one) == {
        "annotations.json", "settings.json", "videos/demo_training_000.mp4", "videos/demo_validation_000.mp4"
    }  # fmt: skip
    assert one == same
    assert all(one[name] != other[name] for name in one)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_hold_the_drawn_frames(tiny_data):
    plan = plans_of_tiny_data()[0]
    with open_video(tiny_data / "videos" / f"{plan.name}.mp4") as reader:
        assert reader.frame_count == plan.frames
        decoded = reader.frames(np.arange(plan.frames)).astype(float)
    assert abs(decoded - draw_video(plan)).mean() < 8


@pytest.mark.parametrize(("difficulty", "classes"), [("easy", EASY_CLASSES), ("hard", HARD_CLASSES)])
def test_plans(difficulty, classes):
    plans = plan_videos(30, 12, 0, difficulty)
    assert plans == plan_videos(30, 12, 0, difficulty)
    for subset, count in (("training", 30), ("validation", 12)):
        mine = [plan for plan in plans if plan.subset == subset]
        assert len(mine) == count
        labels = Counter(action.label for plan in mine for action in plan.actions)
        assert set(labels) == set(classes)
        assert max(labels.values()) - min(labels.values()) <= 1
    for plan in plans:
        assert 14 * FPS <= plan.frames <= 30 * FPS
        ends = [0] + [frame for action in plan.actions for frame in (action.start, action.end)] + [plan.frames]
        assert ends == sorted(ends)
        assert all(1.8 * FPS - 1 < action.end - action.start <= 5 * FPS for action in plan.actions)


# ---- the labels


def test_labels_are_whole_frames_and_those_of_the_plan(tiny_data):
    spec = DataSpec(annotations=str(tiny_data / "annotations.json"), videos=str(tiny_data / "videos"))
    annotations = read_annotations(spec)
    assert annotations.classes == tuple(sorted(EASY_CLASSES))
    videos = {video.name: video for video in annotations.train + annotations.validation}
    for plan in plans_of_tiny_data():
        video, actions = videos[plan.name], plan.actions
        assert (video.fps, video.frames, video.duration_seconds) == (FPS, plan.frames, plan.frames / FPS)
        assert video.segments_frames.tolist() == [[action.start, action.end] for action in actions]
        assert (video.segments_seconds * FPS == video.segments_frames).all()
        assert [annotations.classes[label] for label in video.labels] == [action.label for action in actions]


@pytest.mark.parametrize("label", EASY_CLASSES)
def test_an_action_starts_and_ends_on_its_frames(label):
    """The actor stands still before and after; inside, it is never still for two frames."""
    action = draw_action(np.random.default_rng(1), label, 20, 50)
    state = actor_state([action], 80)
    steps = sum(abs(np.diff(getattr(state, name))) for name in STATES)
    assert steps[:20].max() == 0
    assert steps[49:].max() == 0
    inside = steps[20:49]
    assert (np.maximum(inside[1:], inside[:-1]) > 1e-3).all()


def test_pictures_move_where_the_labels_say(tiny_data):
    """Change from frame to frame, in the files: more of it inside actions, and at no other shift of the labels."""
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    shifts = np.arange(-8, 9)
    agreement = np.zeros(len(shifts))
    for name, entry in database.items():
        with open_video(tiny_data / "videos" / f"{name}.mp4") as reader:
            frames = reader.frames(np.arange(entry["frame"])).astype(np.float32)
        change = abs(np.diff(frames, axis=0)).mean((1, 2, 3))
        acting = np.zeros(len(change))
        for item in entry["annotations"]:
            start, end = (round(seconds * FPS) for seconds in item["segment"])
            acting[start : end - 1] = 1
        assert change[acting == 1].mean() > 1.15 * change[acting == 0].mean(), name
        change = (change - change.mean()) / change.std()
        agreement += [(np.roll(change, shift) * acting)[8:-8].mean() for shift in shifts]
    assert abs(shifts[agreement.argmax()]) <= 1


# ---- the classes


def turning(label: str) -> float:
    """Angle swept about the middle between two frames, in its mean: its sign is the sense of turning."""
    state = act(draw_action(np.random.default_rng(2), label, 0, 40))
    angle = np.unwrap(np.arctan2(state.y, state.x))
    return float(np.diff(angle)[5:-5].mean())


def test_orbits_differ_in_their_sense():
    assert turning("orbit_clockwise") == pytest.approx(-turning("orbit_counterclockwise"))
    assert abs(turning("orbit_clockwise")) > 0.4


@pytest.mark.parametrize(
    ("label", "moving"),
    [
        ("orbit_clockwise", "x y"), ("shake_sideways", "x"), ("shake_up_down", "y"),
        ("pulse", "log_size"), ("blink", "alpha"),
    ],
)  # fmt: skip
def test_a_class_moves_its_own_state_alone(label, moving):
    state = act(draw_action(np.random.default_rng(0), label, 0, 40))
    assert {name for name in STATES if np.ptp(getattr(state, name)) > 0} == set(moving.split())


PROBED_ACTIONS = 3000
PROBED_FRAMES = 10


def draw_probe(number: int) -> tuple[Action, list[Sprite], np.random.Generator]:
    """One action as long as its video, with its distractors; classes in turn. The actor is the first sprite."""
    draw = generator(0, 0, number, "probe")
    frames = int(draw.uniform(1.8, 5.0) * FPS)
    action = draw_action(draw, EASY_CLASSES[number % len(EASY_CLASSES)], 0, frames)
    sprites = [actor(draw, WEAK, [action], frames)]
    return action, sprites + [distractor(draw, WEAK, frames) for _ in range(draw.integers(1, 3))], draw


def picture(sprites: list[Sprite], frame: int, draw: np.random.Generator) -> np.ndarray:
    """One frame at 8 x 8 pixels."""
    shown = [
        dataclasses.replace(sprite, **{name: getattr(sprite, name)[frame : frame + 1] for name in STATES})
        for sprite in sprites
    ]
    order = draw.permutation(len(shown))
    image = render(background(draw, WEAK), [shown[index] for index in order], draw)[0]
    return image.reshape(8, 8, 8, 8, 3).mean((1, 3)).ravel()


def probe_accuracy(features: list[np.ndarray], labels: list[int]) -> float:
    """Share of a third of the actions whose class a small network, trained on the others, tells right."""
    inputs, targets = torch.from_numpy(np.array(features, np.float32)), torch.tensor(labels)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    torch.manual_seed(0)
    order = torch.randperm(len(inputs))
    train, test = order[len(order) // 3 :], order[: len(order) // 3]
    sizes = (inputs.shape[1], 128, 128, len(EASY_CLASSES))
    layers: list[nn.Module] = []
    for width, after in pairwise(sizes):
        layers += [nn.Linear(width, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(300):
        batch: Tensor = train[torch.randint(len(train), (256,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((network(inputs[test]).argmax(1) == targets[test]).float().mean())


@pytest.mark.slow
def test_single_frames_tell_nothing_and_several_everything():
    """docs/decisions/no-single-frame-shortcut.md has the figures; -rP prints them."""
    pictures, states, sequences, labels = [], [], [], []
    for number in range(PROBED_ACTIONS):
        action, sprites, draw = draw_probe(number)
        frame, first = int(draw.integers(action.end)), int(draw.integers(action.end - PROBED_FRAMES + 1))
        shown = np.stack([sprites[0].x, sprites[0].y, sprites[0].log_size, sprites[0].alpha], axis=1)
        pictures.append(picture(sprites, frame, draw))
        states.append(shown[frame])
        sequences.append(shown[first : first + PROBED_FRAMES].ravel())
        labels.append(EASY_CLASSES.index(action.label))
    chance = 1 / len(EASY_CLASSES)
    by_picture, by_state, by_sequence = (probe_accuracy(kind, labels) for kind in (pictures, states, sequences))
    print(f"picture {by_picture:.1%}, true state {by_state:.1%}, {PROBED_FRAMES} frames {by_sequence:.1%}")
    assert abs(by_picture - chance) < 0.05
    assert abs(by_state - chance) < 0.05
    assert by_sequence > 0.95


# ---- what is replaced


def test_a_finished_data_set_stays_and_one_of_other_settings_is_replaced(tmp_path):
    folder = tmp_path / "demo"
    make_demo(folder, 1, 1)
    (folder / "videos" / "demo_training_000.mp4").write_text("left as it is")
    make_demo(folder, 1, 1)
    assert (folder / "videos" / "demo_training_000.mp4").read_text() == "left as it is"
    make_demo(folder, 1, 1, seed=1)
    assert json.loads((folder / "settings.json").read_text())["seed"] == 1
    assert b"left as it is" not in content(folder).values()


def test_an_empty_folder_is_filled_through_a_link_too(tmp_path):
    target, link = tmp_path / "large disk", tmp_path / "demo"
    target.mkdir()
    link.symlink_to(target)
    assert make_demo(link, 1, 1) == link / "annotations.json"
    assert link.is_symlink()
    assert "settings.json" in content(target)


@pytest.mark.parametrize(
    "files",
    [
        {"annotations.json": "{}"},
        {"videos/mine.mp4": "mine"},
        {"settings.json": '{"theme": "dark"}', "notes.txt": "mine"},
        {"settings.json": "not JSON"},
        {"settings.json": '["seed"]'},
    ],
    ids=["annotations", "videos", "other settings", "no JSON", "a list"],
)
def test_folders_that_hold_anything_else_are_left_alone(tmp_path, files):
    folder = tmp_path / "mine"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(UserError, match="name another folder") as caught:
        make_demo(folder, 1, 1)
    assert str(folder) in str(caught.value)
    assert content(tmp_path) == before


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine: holds something else"):
        make_demo(tmp_path / "mine", 1, 1)
    assert (tmp_path / "mine").read_text() == "mine"
