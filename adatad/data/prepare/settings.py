"""Settings of a first spec, each derived from the lengths and counts of a data set, with the number that it came from.

What can't be read off the data (rates of learning, sizes of the model) is that of the shipped specs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import yaml

SHORT, LONG = 0.05, 0.95
"""Quantiles of the instances' lengths that windows and levels are made for; what lies outside is rare."""
POSITIONS_OF_SHORT = 10
"""Positions that a short instance should have; the demo and the real footage, set by hand, give it 12 to 15."""
LEAST_POSITIONS_OF_SHORT = 2
"""Positions that a short instance keeps where long ones ask for a coarser grid."""
MAX_STRIDE_FRAMES = 4
"""As THUMOS-14 has it: beyond that, quick motion is lost between positions. Only instances too long for a window ask
for more."""
WINDOW_OF_LONG = 3
"""Lengths of a long instance that a window should have: it sees what comes before and after."""
LEAST_WINDOW_OF_LONG = 1.5
"""The same where even the largest window is short of that."""
WINDOWS_GRID = (64, 128, 256, 384, 512, 768)
"""Window sizes: whole clips of 16 frames, and five halvings or more."""
LEVELS = (4, 7)
"""Fewest and most levels."""
LEAST_TOP_GRID = 4
"""Positions that a window has at the top level."""
RATES_DIFFER = 1.1
"""Ratio of the highest rate to the lowest from which videos are read at one rate."""
STEPS_PER_INSTANCE = 8
"""Training steps for each training instance. How hard data is doesn't show in its lengths: the hard built-in videos
want 8, the easy ones 3, the real footage 5; too many cost time, too few the result."""
STEPS = (1000, 10_000)
"""Fewest and most steps of a first training."""
WARMUP_SHARE, WARMUP_EPOCHS, WARMUP_STEPS = 0.1, 5, 100
"""Most of a training that warms up; and what is enough of it, whichever is longer."""
EVALUATIONS = 8
"""About how often a run is evaluated."""
LONG_RUN_STEPS = 5000
"""Steps from which averages reach back over 1,000 steps; the demo's, over 100, suit shorter runs."""
WIDE_BATCH_VIDEOS = 400
"""Training videos for which a batch of two is right; it grows with them, and an epoch stays near 200 steps."""
MAX_GLOBAL_BATCH = 16
OPEN_END = 10_000
"""Upper bound of the last level: whatever is longer."""
MAX_COLUMN = 118
"""Characters of a line up to which a reason stands behind its value."""


class Facts(NamedTuple):
    """Numbers that settings follow from. rates, video_seconds: of each video; short_side_pixels: of the smallest one;
    instance_seconds: lengths, float64 [n]; training_videos, training_instances: counts; most_instances: in a video."""

    rates: np.ndarray
    video_seconds: np.ndarray
    short_side_pixels: int
    instance_seconds: np.ndarray
    training_videos: int
    training_instances: int
    most_instances: int


@dataclass(frozen=True)
class Because:
    """A value of a spec, with the sentence that says where it comes from."""

    value: Any
    why: str


class Grid(NamedTuple):
    """The grid of a window. fps: frames a second that are read; short, long: positions of a short and a long
    instance."""

    fps: float
    has_one_rate: bool
    stride: int
    size: int
    short: float
    long: float


def grid_of(facts: Facts, max_size_grid: int = WINDOWS_GRID[-1]) -> Grid:
    """Return the grid for a data set. max_size_grid: largest window that there is room for."""
    fps = float(np.median(facts.rates))
    short, long = (float(value) * fps for value in np.quantile(facts.instance_seconds, (SHORT, LONG)))
    stride = int(np.clip(short / POSITIONS_OF_SHORT, 1, MAX_STRIDE_FRAMES))
    # Long phases: a coarser grid rather than windows in which no instance ever ends.
    coarser = math.ceil(LEAST_WINDOW_OF_LONG * long / max_size_grid)
    if coarser > stride:
        stride = max(stride, min(coarser, int(short / LEAST_POSITIONS_OF_SHORT)))
    # No larger than the longest video: the rest would be padding.
    longest = float(facts.video_seconds.max()) * fps / stride
    wanted = min(WINDOW_OF_LONG * long / stride, longest)
    sizes = [size for size in WINDOWS_GRID if size <= max_size_grid]
    size = next((size for size in sizes if size >= wanted), sizes[-1])
    has_one_rate = bool(facts.rates.max() <= RATES_DIFFER * facts.rates.min())
    return Grid(fps, has_one_rate, stride, size, short / stride, long / stride)


def levels_of(grid: Grid) -> int:
    """Return the number of levels: the last but one reaches to the end of a long instance, the last takes the rest."""
    fewest, most = LEVELS
    while most > fewest and grid.size >> (most - 1) < LEAST_TOP_GRID:
        most -= 1
    return next((levels for levels in range(fewest, most) if 6 * 2 ** (levels - 2) >= grid.long), most)


def ranges_of(levels: int) -> list[list[int]]:
    """Return the distances that each level is responsible for: [[0, 6], [4, 12], [8, 24], ...]. They overlap, so that
    a segment at a border is learnt on both sides of it."""
    ranges = [[2 ** (level + 1) if level else 0, 6 * 2**level] for level in range(levels)]
    ranges[-1][1] = OPEN_END
    return ranges


def window_settings(facts: Facts, grid: Grid) -> dict[str, Any]:
    """Return what the section `data` says of time."""
    low, high = facts.rates.min(), facts.rates.max()
    seconds = grid.stride / grid.fps
    settings: dict[str, Any] = {}
    if not grid.has_one_rate:
        settings["fps"] = Because(
            round(grid.fps, 3), f"the files have {low:.4g} to {high:.4g} frames a second; all are read at the median"
        )
    rate = f"{grid.fps:.4g} frames a second"
    short, long = (text_of(value * seconds) for value in (grid.short, grid.long))
    settings["window"] = {
        "size_grid": Because(
            grid.size,
            f"{text_of(grid.size * seconds)}; 95 % of instances are shorter than {long} ({grid.long:.0f} positions), "
            f"the longest video lasts {text_of(float(facts.video_seconds.max()))}",
        ),
        "stride_frames": Because(
            grid.stride,
            f"{1 / seconds:.3g} positions a second at {rate}; 95 % of instances are longer than {short}: "
            f"{grid.short:.0f} positions",
        ),
        "overlap": Because(0.5, "an instance at the end of one window lies in the middle of the next"),
    }
    return settings


def detector_settings(facts: Facts, grid: Grid, attention_window: int | None) -> dict[str, Any]:
    """Return pyramid and length of the detector. attention_window: None for global attention."""
    levels = levels_of(grid)
    step = 2 ** (levels - 1) * (2 * (attention_window // 2) if attention_window else 1)
    finest = f"{grid.stride / grid.fps:.3g} s a position"
    return {
        "max_length": Because(math.ceil(grid.size / step) * step, "the window, as a multiple of what all levels need"),
        "branch_blocks": Because(
            levels - 1,
            f"{levels} levels: 95 % of instances last less than {grid.long:.0f} positions, "
            f"the last but one reaches {6 * 2 ** (levels - 2)}",
        ),
        "regression_ranges": Because(ranges_of(levels), f"positions to either end of an instance, {finest}"),
    }


def schedule_settings(facts: Facts) -> dict[str, dict[str, Any]]:
    """Return the sections `schedule`, `ema`, `train` and `postprocess`, as far as counts decide them."""
    videos, instances = facts.training_videos, facts.training_instances
    batch = min(MAX_GLOBAL_BATCH, max(2, 2 * round(videos / WIDE_BATCH_VIDEOS)))
    steps_per_epoch = max(1, math.ceil(videos / batch))
    steps = int(np.clip(STEPS_PER_INSTANCE * instances, *STEPS))
    epochs = max(1, math.ceil(steps / steps_per_epoch))
    steps = epochs * steps_per_epoch
    enough = max(WARMUP_EPOCHS, math.ceil(WARMUP_STEPS / steps_per_epoch))
    warmup = int(max(min(1, epochs - 1), min(enough, WARMUP_SHARE * epochs)))
    segments = int(np.clip(20 * facts.most_instances, 200, 2000))
    averaged = 0.99 if steps < LONG_RUN_STEPS else 0.999
    return {
        "schedule": {
            "warmup_epochs": Because(warmup, f"{warmup * steps_per_epoch} steps"),
            "epochs": Because(
                epochs, f"{steps} steps, {steps_per_epoch} an epoch, {steps / instances:.0f} for each of {instances} "
                "training instances: easy data is done in half of them, which the validation mAP shows",
            ),
        },
        "ema": {"decay": Because(averaged, f"averages over about {1 / (1 - averaged):.0f} of {steps} steps")},
        "train": {
            "global_batch": Because(batch, f"{videos} training videos, a window of each in an epoch"),
            "evaluate_every_epochs": Because(max(1, epochs // EVALUATIONS), f"about {EVALUATIONS} times in {epochs}"),
        },
        "postprocess": {
            "nms": {
                "sigma": Because(0.5, "as the built-in data's"),
                "max_segments": Because(segments, f"a video has at most {facts.most_instances} instances"),
            }
        },
    }  # fmt: skip


def text_of(seconds: float) -> str:
    """Return a length of time: "12.4 s", "3.5 min", "1.2 h"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without their reasons, as a spec holds them."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, Because):
            value = value.value
        found[key] = plain(value) if isinstance(value, Mapping) else value
    return found


def yaml_text(settings: Mapping[str, Any], indent: str = "") -> str:
    """Return settings as YAML, the reason of each value behind it as a comment, or above it where lines get long."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}:\n{yaml_text(value, indent + '  ')}")
            continue
        why = value.why if isinstance(value, Because) else ""
        value = value.value if isinstance(value, Because) else value
        # One line a key: lists in brackets, texts quoted where YAML asks for it.
        text = yaml.safe_dump(
            {key: value}, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False
        ).strip()
        line = f"{indent}{text[1:-1]}"
        # A comment ends with its line, whatever a name in it holds.
        why = " ".join(why.split())
        if len(line) + len(why) + 4 <= MAX_COLUMN:
            lines.append(f"{line}  # {why}" if why else line)
        else:
            lines += [f"{indent}# {why}", line]
    return "\n".join(lines) + ("\n" if not indent else "")
