"""Pretraining of the demo's tiny backbone: it regresses position and motion of a sprite from generated clips.

This stands for the pretraining on Kinetics of real backbones, which are frozen afterwards. No video, seed or label of
the built-in data set is used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from adatad.data.prepare.demo import BRIGHT, DIM, distractor
from adatad.data.prepare.synthetic import SIZE, WEAK, Sprite, background, render, slow_drift, sprite_look
from adatad.data.rng import generator
from adatad.files import atomic_write
from adatad.models.families import build_backbone
from adatad.spec.model_sections import BackboneSpec
from adatad.stop_signals import leave_interruptions_to_the_parent

FRAMES = 16
TARGETS = ("x", "y", "velocity_x", "velocity_y", "growth", "brightness")
BATCH = 64
"""Clips of a step, drawn without replacement: there must be at least as many."""
PURPOSE = "pretraining"
"""Purpose of the random draws, which keeps them apart from the detection videos'."""


def draw_clip(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a clip uint8 [FRAMES, SIZE, SIZE, 3] and its sprite's targets float32 [tubelets, len(TARGETS)]."""
    draw = generator(seed, 0, number, PURPOSE)
    x, y = (draw.uniform(16, 48) + draw.uniform(-0.8, 0.8) * np.arange(FRAMES) + _swing(draw, 0.7) for _ in range(2))
    log_size = draw.uniform(-0.4, 0.4) + slow_drift(draw, FRAMES, 0.1)
    if draw.uniform() < 0.5:
        log_size = log_size + np.log1p(draw.uniform(0.2, 0.55)) * _wave(draw, 6, 16)
    # Brightness pulses or is constant; tanh makes a pulse nearly a switch.
    wave = _wave(draw, 6, 12) if draw.uniform() < 0.35 else np.full(FRAMES, draw.uniform(-1, 1))
    bright = np.tanh(4 * wave)
    alpha = (BRIGHT + DIM) / 2 + (BRIGHT - DIM) / 2 * bright
    angle = draw.uniform(0, 2 * np.pi) + slow_drift(draw, FRAMES, 1.5)
    sprites = [Sprite(**sprite_look(draw, WEAK), x=x, y=y, log_size=log_size, angle=angle, alpha=alpha)]
    sprites += [distractor(draw, WEAK, FRAMES) for _ in range(draw.integers(0, 3))]
    # The sprite may be in front of distractors or behind them.
    order = draw.permutation(len(sprites))
    clip = render(background(draw, WEAK), [sprites[index] for index in order], draw)
    half = SIZE / 2
    # Scaled so that every target's spread is about one.
    by_frame = [
        (x - half) / half, (y - half) / half, 8 * np.gradient(x) / half, 8 * np.gradient(y) / half,
        5 * np.gradient(log_size), bright,
    ]  # fmt: skip
    return clip, np.stack(by_frame, 1).reshape(-1, 2, len(TARGETS)).mean(1).astype(np.float32)


def _swing(draw: np.random.Generator, chance: float) -> np.ndarray:
    """Draw, by chance, a sine of 4 to 14 pixels and a period of 6 to 16 frames, or rest."""
    return draw.uniform(4, 14) * _wave(draw, 6, 16) if draw.uniform() < chance else np.zeros(FRAMES)


def _wave(draw: np.random.Generator, shortest: float, longest: float) -> np.ndarray:
    return np.sin(2 * np.pi * (np.arange(FRAMES) / draw.uniform(shortest, longest) + draw.uniform()))


def draw_clips(seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw clips uint8 [count, 3, FRAMES, SIZE, SIZE] and targets [count, tubelets, len(TARGETS)] on all cores."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=leave_interruptions_to_the_parent) as pool:
        drawn = list(pool.map(partial(draw_clip, seed), range(first, first + count), chunksize=64))
    clips = torch.stack([torch.from_numpy(clip) for clip, _ in drawn]).permute(0, 4, 1, 2, 3).contiguous()
    return clips, torch.stack([torch.from_numpy(targets) for _, targets in drawn])


def augment(clips: Tensor, targets: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flip, transpose and reverse a batch in time by chance, and its targets with it."""
    targets = targets.clone()
    x, y, velocity_x, velocity_y, growth = range(5)
    flip_x, flip_y, transpose, reverse = draw.uniform(size=4) < 0.5
    if flip_x:
        clips, targets[..., [x, velocity_x]] = clips.flip(4), -targets[..., [x, velocity_x]]
    if flip_y:
        clips, targets[..., [y, velocity_y]] = clips.flip(3), -targets[..., [y, velocity_y]]
    if transpose:
        # x and y change places, brightness (5) stays.
        clips = clips.transpose(3, 4)
        targets = targets[..., [y, x, velocity_y, velocity_x, growth, 5]]
    if reverse:
        # Backwards in time, motion and growth change their sign.
        clips, targets = clips.flip(2), targets.flip(1)
        targets[..., [velocity_x, velocity_y, growth]] *= -1
    return clips, targets


class MotionRegressor(nn.Module):
    """The backbone without adapters, with one linear layer on its spatial mean at each tubelet."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_backbone(BackboneSpec(preset="tiny", mode="full", drop_path=0.0))
        self.head = nn.Linear(self.backbone.width, len(TARGETS))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the targets [batch, tubelets, len(TARGETS)] of clips [batch, 3, FRAMES, SIZE, SIZE]."""
        features = self.backbone(clips, self.backbone.clip_tubelets)
        return self.head(features.transpose(1, 2))


def pretrain(
    path: Path,
    clips: int = 20_000,
    steps: int = 2_400,
    seed: int = 1_000,
    batch: int = BATCH,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Train, write the backbone in 16 bits, and return the explained variance of each target on 512 unseen clips.

    progress: called with (step, steps, loss).
    """
    torch.manual_seed(seed)
    model = MotionRegressor()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    images, targets = draw_clips(seed, 0, clips)
    draw = generator(seed, 0, 0, "pretraining batches")
    for step in range(steps):
        # 50 steps of warm-up, then the full rate, from 30 % of the steps on a cosine to 0.
        done = max(0.0, (step / steps - 0.3) / 0.7)
        optimizer.param_groups[0]["lr"] = 1e-3 * (min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done)))
        # Clips are drawn once and augmented: drawing takes longer than a step.
        chosen = torch.from_numpy(draw.choice(clips, batch, replace=False))
        seen, wanted = augment(images[chosen], targets[chosen], draw)
        loss = F.smooth_l1_loss(model(seen), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress:
            progress(step + 1, steps, float(loss.detach()))
    # Numbers behind those of training: unseen clips.
    explained = explained_variance(model, *draw_clips(seed, clips, 512))
    facts = {"clips": clips, "steps": steps, "seed": seed, "batch": batch, **explained}
    weights = {name: parameter.detach().half() for name, parameter in model.backbone.named_parameters()}
    with atomic_write(path) as unfinished:
        save_file(weights, unfinished, metadata={name: f"{value:g}" for name, value in facts.items()})
    return explained


@torch.no_grad()
def explained_variance(model: nn.Module, clips: Tensor, targets: Tensor) -> dict[str, float]:
    """Return 1 - residual variance / variance, by target."""
    predicted = torch.cat([model(part) for part in clips.split(64)])
    residual = ((predicted - targets) ** 2).mean((0, 1)) / targets.var((0, 1))
    return {name: 1 - float(value) for name, value in zip(TARGETS, residual, strict=True)}
