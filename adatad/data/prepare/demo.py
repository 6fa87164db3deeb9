"""The built-in data set: short videos of sprites, with action classes that only motion over time distinguishes.

In a single frame, place, size and brightness follow the same distribution for every class: a sprite that doesn't pulse
has a fixed size out of those that a pulse goes through, one that doesn't shake a fixed offset, and so on. Classes
differ in the order in which states follow one another.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from adatad.data.prepare import hard_set
from adatad.data.prepare.hard_set import Turning, draw_hard_video, plan_turning
from adatad.data.prepare.synthetic import SIZE, WEAK, Look, Sprite, background, render, slow_drift, sprite_look
from adatad.data.rng import generator
from adatad.errors import UserError
from adatad.files import atomic_write, check_output_folder, reason, write_json
from adatad.stop_signals import leave_interruptions_to_the_parent

# Few: enough to show which way something moves, and quick to draw and to decode.
FPS = 8
EASY_CLASSES = ("orbit_clockwise", "orbit_counterclockwise", "shake_sideways", "shake_up_down", "pulse", "blink")
FADE_FRAMES = 3
"""Frames over which an action's amplitude rises and falls at its ends."""
LOG_SIZE_SWING = 0.4
DIM, BRIGHT = 0.45, 1.0

Difficulty = Literal["easy", "hard"]


@dataclass(frozen=True)
class Action:
    """An action of one actor in frames [start, end). phase: in turns; rest, rest_size, rest_bright: phases of what the
    class keeps still."""

    label: str
    start: int
    end: int
    amplitude: float
    period_frames: float
    phase: float
    rest: float
    rest_size: float
    rest_bright: float


class State:
    """State of an actor in each frame: offsets x and y, log_size, angle, and alpha, float [frames] each."""

    def __init__(self, frames: int):
        self.x, self.y, self.log_size, self.angle = (np.zeros(frames) for _ in range(4))
        self.alpha = np.full(frames, BRIGHT)


def act(action: Action) -> State:
    """Return the states of an action, frame by frame."""
    frames = action.end - action.start
    time = np.arange(frames)
    turn = 2 * np.pi * (time / action.period_frames + action.phase)
    # Full amplitude but for a short rise and fall, so that it starts and ends where the label says.
    envelope = np.clip(np.minimum(time + 1, frames - time) / (FADE_FRAMES + 1), 0, 1)
    reach = action.amplitude * envelope
    rest_x, rest_y = (
        action.amplitude * np.cos(2 * np.pi * action.rest),
        action.amplitude * np.sin(2 * np.pi * action.rest),
    )
    state = State(frames)
    # Every state starts at a random rest value that also occurs in the classes that move it, so that a single frame
    # doesn't show the class.
    state.log_size += LOG_SIZE_SWING * np.sin(2 * np.pi * action.rest_size)
    state.alpha *= _brightness(np.sin(2 * np.pi * action.rest_bright))
    match action.label:
        case "orbit_clockwise":
            state.x, state.y = reach * np.cos(turn), reach * np.sin(turn)
        case "orbit_counterclockwise":
            state.x, state.y = reach * np.cos(turn), -reach * np.sin(turn)
        case "shake_sideways":
            state.x, state.y = reach * np.sin(turn), state.y + rest_y
        case "shake_up_down":
            state.x, state.y = state.x + rest_x, reach * np.sin(turn)
        case _:
            state.x, state.y = state.x + rest_x, state.y + rest_y
    match action.label:
        case "pulse":
            state.log_size = LOG_SIZE_SWING * np.sin(turn) * envelope
        case "blink":
            state.alpha = _brightness(np.sin(turn))
    return state


def _brightness(wave: Any) -> Any:
    """Return a softened square wave between bright and dim."""
    return (BRIGHT + DIM) / 2 + (BRIGHT - DIM) / 2 * np.tanh(4 * wave)


def draw_action(rng: np.random.Generator, label: str, start: int, end: int) -> Action:
    """Draw an action of a class in frames [start, end)."""
    # A second or so for a turn: the shortest action has one at least.
    period = rng.uniform(0.9, 1.4) * FPS / (1.2 if label == "blink" else 1.0)
    return Action(label, start, end, rng.uniform(9, 14), period, *rng.uniform(size=4))


def plan_actions(rng: np.random.Generator, frames: int, labels: Iterator[str]) -> list[Action]:
    """Draw actions of 1.8 to 5 seconds with gaps of 0.6 to 1.8 seconds between them, to the end of the video."""
    actions, start = [], int(rng.uniform(0.6, 1.8) * FPS)
    while True:
        end = start + int(rng.uniform(1.8, 5.0) * FPS)
        # Half a second at least behind the last action, so that its end is seen.
        if end + FPS // 2 > frames:
            return actions
        actions.append(draw_action(rng, next(labels), start, end))
        start = end + int(rng.uniform(0.6, 1.8) * FPS)


def actor_state(actions: list[Action], frames: int) -> State:
    """Return an actor's states over the whole video: its actions, and smooth moves from one to the next."""
    whole = State(frames)
    for name in ("x", "y", "log_size", "angle", "alpha"):
        values = np.full(frames, np.nan)
        for action in actions:
            values[action.start : action.end] = getattr(act(action), name)
        # Between actions the state moves evenly: a jump would show where an action begins.
        known = np.flatnonzero(~np.isnan(values))
        if len(known):
            setattr(whole, name, np.interp(np.arange(frames), known, values[known]))
    return whole


def actor(rng: np.random.Generator, look: Look, actions: list[Action], frames: int) -> Sprite:
    """Return a sprite that performs actions around a place in the middle of the frame, and drifts slowly."""
    state = actor_state(actions, frames)
    x, y = (SIZE / 2 + rng.uniform(-8, 8) + slow_drift(rng, frames, 3.0) for _ in range(2))
    size, turning = slow_drift(rng, frames, 0.12), slow_drift(rng, frames, 1.5) + rng.uniform(0, 2 * np.pi)
    return Sprite(
        **sprite_look(rng, look),
        x=x + state.x,
        y=y + state.y,
        log_size=state.log_size + size,
        angle=turning + state.angle,
        alpha=state.alpha,
    )


def distractor(rng: np.random.Generator, look: Look, frames: int) -> Sprite:
    """Return a smaller sprite that moves straight, with a new heading every 0.75 s, or drifts; it bounces off the
    borders."""
    speed = rng.uniform(0.5, 3.0) if rng.uniform() < 0.6 else 0.0
    # 6 frames at 8 a second are the 0.75 s.
    heading = np.repeat(rng.uniform(0, 2 * np.pi, frames // 6 + 1), 6)[:frames]
    places = []
    for step in (np.cos(heading), np.sin(heading)):
        path = rng.uniform(0, SIZE) + np.cumsum(speed * step) + slow_drift(rng, frames, 6.0)
        # A path without borders, folded back into the frame: it bounces.
        places.append(SIZE - abs(path % (2 * SIZE) - SIZE))
    size = np.log(rng.uniform(0.5, 0.9)) + slow_drift(rng, frames, 0.15)
    angle = slow_drift(rng, frames, 2.0) + rng.uniform(0, 2 * np.pi)
    alpha = np.full(frames, rng.uniform(DIM, BRIGHT))
    return Sprite(**sprite_look(rng, look), x=places[0], y=places[1], log_size=size, angle=angle, alpha=alpha)


@dataclass(frozen=True)
class VideoPlan:
    """Plan of a video, from which it is drawn; its number selects its random numbers."""

    name: str
    subset: str
    seed: int
    number: int
    frames: int
    actions: tuple[Action, ...] | tuple[Turning, ...]
    difficulty: Difficulty


def plan_videos(train_videos: int, validation_videos: int, seed: int, difficulty: Difficulty) -> list[VideoPlan]:
    """Draw lengths of 14 to 30 s and the actions of every video, classes in turn within each subset."""
    plans: list[VideoPlan] = []
    for subset, count in (("training", train_videos), ("validation", validation_videos)):
        labels = _in_turn(generator(seed, 0, 0, f"{subset} classes"), classes_of(difficulty))
        for index in range(count):
            number = len(plans)
            rng = generator(seed, 0, number, "plan")
            frames = int(rng.uniform(14, 30) * FPS)
            actions = (plan_turning if difficulty == "hard" else plan_actions)(rng, frames, labels)
            name = f"demo_{subset}_{index:03d}"
            plans.append(VideoPlan(name, subset, seed, number, frames, tuple(actions), difficulty))
    return plans


def classes_of(difficulty: Difficulty) -> tuple[str, ...]:
    """Return the class names of a difficulty."""
    return hard_set.CLASSES if difficulty == "hard" else EASY_CLASSES


def _in_turn(rng: np.random.Generator, classes: tuple[str, ...]) -> Iterator[str]:
    """Yield classes without end, all of them once before any comes again."""
    while True:
        yield from rng.permutation(classes).tolist()


def draw_video(plan: VideoPlan) -> np.ndarray:
    """Draw a video: uint8 [frames, SIZE, SIZE, 3]."""
    rng = generator(plan.seed, 0, plan.number, "drawing")
    if plan.difficulty == "hard":
        return draw_hard_video(rng, list(plan.actions), plan.frames)
    # The order of draws is part of the data set: a new draw goes to the end.
    scene = background(rng, WEAK)
    sprites = [actor(rng, WEAK, list(plan.actions), plan.frames)]
    sprites += [distractor(rng, WEAK, plan.frames) for _ in range(rng.integers(1, 3))]
    order = rng.permutation(len(sprites))
    return render(scene, [sprites[index] for index in order], rng)


def write_video(path: Path, video: np.ndarray) -> None:
    """Write a video as H.264 in MP4. video: uint8 [frames, height, width, 3]."""
    with av.open(str(path), "w") as container:
        # With more threads, or with x264's macroblock tree, the bytes differ from run to run.
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "g": "16", "x264-params": "mbtree=0"})
        stream.codec_context.thread_count = 1
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
        for image in video:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def annotation(plan: VideoPlan) -> dict[str, Any]:
    """Return a video's entry in the annotation file."""
    instances = [{"segment": [a.start / FPS, a.end / FPS], "label": a.label} for a in plan.actions]
    return {"subset": plan.subset, "duration": plan.frames / FPS, "frame": plan.frames, "annotations": instances}


def make_demo(
    folder: Path,
    train_videos: int = 48,
    validation_videos: int = 20,
    seed: int = 0,
    difficulty: Difficulty = "easy",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `folder`; return its annotation file. A finished one with the same settings stays.

    It is made in a folder beside it and renamed when complete. progress: called with (videos done, videos in all).
    Raises UserError rather than replace anything but an empty folder or another built-in data set.
    """
    # All that the videos depend on: equal settings, equal bytes.
    settings = {
        "train_videos": train_videos, "validation_videos": validation_videos, "seed": seed,
        # The version counts up when the same seed draws other videos.
        "difficulty": difficulty, "version": 4 if difficulty == "hard" else 2,
    }  # fmt: skip
    annotations = folder / "annotations.json"
    try:
        # A link to a folder elsewhere stays one.
        folder = folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: can't be written to: {reason(error)}; name another folder") from error
    check_output_folder(folder.parent)
    # Only an empty folder or another built-in data set may be replaced.
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        present = _read_settings(folder)
        if present == settings:
            return annotations
        if present is None or present.keys() != settings.keys():
            raise UserError(
                f"{folder}: holds something else than the built-in data set, which would replace it; "
                "name another folder, or train on data of your own with adatad train"
            )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        (unfinished / "videos").mkdir(parents=True)
        plans = plan_videos(train_videos, validation_videos, seed, difficulty)
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1), initializer=leave_interruptions_to_the_parent) as pool:
            # In order; each video has its own generator, so that processes change nothing.
            for done, _ in enumerate(pool.map(partial(_make_video, unfinished / "videos"), plans), 1):
                if progress:
                    progress(done, len(plans))
        database = {plan.name: annotation(plan) for plan in plans}
        write_json(unfinished / "annotations.json", {"database": database})
        write_json(unfinished / "settings.json", settings)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{folder}: can't be written: {reason(error)}; make room, or name another folder") from error
    except BrokenProcessPool as error:
        raise UserError("a process that drew videos was killed, as the system does when memory runs out") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return annotations


def write_unlabelled_video(path: Path, seed: int, difficulty: Difficulty = "easy") -> None:
    """Write a video of the built-in kind that no annotation file tells of, atomically. Another seed than the data set's
    gives a video that isn't in it. Raises FileError."""
    (plan,) = plan_videos(0, 1, seed, difficulty)
    with atomic_write(path) as unfinished:
        write_video(unfinished, draw_video(plan))


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a data set; None if the folder holds none."""
    try:
        settings = json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _make_video(folder: Path, plan: VideoPlan) -> None:
    # At module level, since processes of a pool get functions by name.
    write_video(folder / f"{plan.name}.mp4", draw_video(plan))


def make_demo_with_progress(folder: Path, train_videos: int, validation_videos: int, **settings: Any) -> Path:
    """Run `make_demo` with a progress bar on the terminal."""
    from adatad.progress_bar import progress

    with progress("videos drawn", train_videos + validation_videos) as bar:
        return make_demo(folder, train_videos, validation_videos, progress=bar.update, **settings)
