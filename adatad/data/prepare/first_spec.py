"""The first spec of own videos: settings derived from them, each with its reason, for the machine that will train."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adatad.data.prepare.settings import (
    WINDOWS_GRID,
    Because,
    Facts,
    Grid,
    detector_settings,
    grid_of,
    plain,
    schedule_settings,
    text_of,
    window_settings,
    yaml_text,
)
from adatad.files import shown

TINY, SMALL = "tiny", "small"
TINY_WEIGHTS = "configs/demo/tiny_backbone.safetensors"
SMALL_WEIGHTS = "pretrained/vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth"
TINY_PIXELS, SMALL_PIXELS, LEAST_PIXELS, PATCH = 64, 160, 32, 16
TINY_ATTENTION = 9
Fit = Callable[[dict[str, Any]], str | None]
"""Returns how a spec fits a GPU, in words; None if it doesn't."""


class SpecPlace(NamedTuple):
    """Paths of a data set, as the spec names them."""

    name: str
    annotations: str
    classes: str
    videos: str
    pattern: str


def spec_text(facts: Facts, place: SpecPlace, spec_path: Path, source: str, fit: Fit | None) -> str:
    """Return the YAML of a first spec. source: what was imported; fit: None for a machine without a GPU, which gets the
    built-in tiny backbone.

    The window is the one that the data asks for, or the largest that fits.
    """
    settings, room = _fitting(facts, place, fit)
    return _head(facts, settings, spec_path, source, fit is None) + yaml_text(_with_memory(settings, room))


def _fitting(facts: Facts, place: SpecPlace, fit: Fit | None) -> tuple[dict[str, Any], str]:
    """Return settings, and how they fit the GPU."""
    if fit is None:
        return settings_of(facts, place, TINY), ""
    wanted = grid_of(facts).size
    for size in [size for size in reversed(WINDOWS_GRID) if size <= wanted]:
        settings = settings_of(facts, place, SMALL, size)
        room = fit(plain(settings))
        if room:
            less = f"; the data asks for windows of {wanted} positions, which don't fit" if size < wanted else ""
            return settings, room + less
    return settings, "nothing fits by the planner's estimate: adatad plan says what would"


def settings_of(facts: Facts, place: SpecPlace, preset: str, max_size_grid: int = WINDOWS_GRID[-1]) -> dict[str, Any]:
    """Return all settings of a first spec, as `yaml_text` takes them. preset: of the backbone, tiny or small."""
    grid = grid_of(facts, max_size_grid)
    schedule = schedule_settings(facts)
    is_tiny = preset == TINY
    most = TINY_PIXELS if is_tiny else SMALL_PIXELS
    # A multiple of the model's patch, and no video is enlarged.
    pixels = max(LEAST_PIXELS, min(most, facts.short_side_pixels // PATCH * PATCH))
    return {
        "name": place.name,
        "data": {
            "annotations": place.annotations,
            "classes": place.classes,
            "videos": place.videos,
            "pattern": place.pattern,
            **window_settings(facts, grid),
            "size_pixels": Because(
                pixels,
                f"the smallest video has {facts.short_side_pixels}, the {preset} backbone is used with {most} here",
            ),
            "augment": {"flip": Because(0.0, "0.5 where left and right mirrored is the same action: more to learn of")},
        },
        "model": _tiny_model(facts, grid) if is_tiny else _small_model(facts, grid),
        "optimizer": _optimizer(is_tiny),
        **schedule,
    }


def _tiny_model(facts: Facts, grid: Grid) -> dict[str, Any]:
    """Return the model of the demo, sized by its spec."""
    return {
        "backbone": {
            "preset": Because(TINY, "no GPU here: the built-in backbone, which has seen drawings alone"),
            "drop_path": 0.0,
            "weights": TINY_WEIGHTS,
        },
        "detector": {
            "width": Because(128, "sizes of the demo's detector, as its backbone"), "stem_blocks": 1,
            "attention_window": TINY_ATTENTION, "input_dropout": 0.1, "normalizer_start": 50,
            **detector_settings(facts, grid, TINY_ATTENTION),
        },
    }  # fmt: skip


def _small_model(facts: Facts, grid: Grid) -> dict[str, Any]:
    return {
        "backbone": {"preset": SMALL, "weights": SMALL_WEIGHTS},
        "detector": detector_settings(facts, grid, None),
    }


def _optimizer(is_tiny: bool) -> dict[str, Any]:
    """Return rates of learning, which no count of videos says: those of the demo, and of VideoMAE-S on THUMOS-14."""
    where = "the built-in data" if is_tiny else "VideoMAE-S on THUMOS-14"
    detector, adapter = (1e-3, 4e-3) if is_tiny else (1e-4, 2e-4)
    return {
        "lr": Because(detector, f"as for {where}"),
        "backbone": {"custom": [{"name": "adapter", "lr": adapter}]},
    }


def _with_memory(settings: dict[str, Any], room: str) -> dict[str, Any]:
    return {**settings, "memory": {"policy": Because("auto", room)}} if room else settings


def _head(facts: Facts, settings: dict[str, Any], spec_path: Path, source: str, is_tiny: bool) -> str:
    """Return the comment above a spec: what it is of, and how to try it in two minutes."""
    tiny = {} if is_tiny else {"preset": TINY, "weights": TINY_WEIGHTS}
    trial = [*(f"model.backbone.{key}={value}" for key, value in tiny.items())]
    if not is_tiny:
        trial += ["data.size_pixels=64", "model.detector.width=128", "memory.policy=none"]
    trial += ["schedule.epochs=2", "schedule.warmup_epochs=0"]
    seconds = facts.instance_seconds
    lines = [
        f"Written by adatad data import out of {shown(source)}: {len(facts.rates)} videos of "
        f"{text_of(float(facts.video_seconds.sum()))}, {len(seconds)} instances of {text_of(float(seconds.min()))} to "
        f"{text_of(float(seconds.max()))}.",
        "Every value below says where it comes from; change what you know better.",
        f"A trial of two epochs{'' if is_tiny else ' with the tiny backbone'}, about two minutes on a CPU:",
        f"  adatad train {shlex.quote(str(spec_path))} --set name={settings['name']}-trial \\",
        *_wrapped(trial),
    ]
    if is_tiny:
        lines += [
            "No GPU was found, so the backbone is the built-in tiny one. For a real one, on a machine with a GPU or",
            "for one: the same import with --gpu-memory 24 --force.",
        ]
    return "".join(f"# {line}\n" for line in lines)


def _wrapped(words: Sequence[str]) -> list[str]:
    """Return settings as lines of a shell command that goes on."""
    lines = [f"    {' '.join(words[start : start + 3])} \\" for start in range(0, len(words), 3)]
    lines[-1] = lines[-1].removesuffix(" \\")
    return lines
