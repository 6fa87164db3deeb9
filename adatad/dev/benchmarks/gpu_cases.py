"""Cases of the GPU suite: models and windows, ways to train them, and smaller cards that a large one stands in for."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import NamedTuple

from adatad.memory.offload import GIB
from adatad.memory.planner import Planner
from adatad.spec import Spec, load

# THUMOS-14's.
CLASSES = 20


class Variant(NamedTuple):
    """One way to run a case. averages_all: with a moving average of all weights, frozen ones too; cap_gib: memory of
    the card that the device stands in for, None: all that it has."""

    name: str
    overrides: str
    averages_all: bool = False
    cap_gib: float | None = None


class Published(NamedTuple):
    """A step that others measured on their card."""

    name: str
    seconds: float
    peak: str
    source: str


class GpuCase(NamedTuple):
    """A model, a window, and the ways to run it, the most important first."""

    name: str
    config: str
    overrides: str
    variants: tuple[Variant, ...]
    published: tuple[Published, ...] = ()


REFERENCE = "reference's recipe"
# Names of rows in published pages, which is why they still say "hold" and "rebuild".
TILE = "tile, hold"
ON_HOST = "tile, hold, on the host"
"""Variant with saved inputs, halos and frames on the host."""


def variants(tile: str) -> tuple[Variant, ...]:
    """Return variants of every policy. tile: settings of policy tile."""
    return (
        # The reference checkpoints blocks, with fp32 weights and residuals under autocast, and averages all weights.
        Variant(REFERENCE, "memory.policy=block memory.weight_dtype=fp32", averages_all=True),
        Variant(TILE, f"memory.policy=tile {tile}"),
        Variant("block", "memory.policy=block"),
        Variant("tile, rebuild", f"memory.policy=tile {tile} memory.recompute=twice"),
        Variant(ON_HOST, f"memory.policy=tile {tile} memory.saved_inputs=host memory.halos=host memory.frames=host"),
        Variant("selective", "memory.policy=selective"),
        Variant("none", "memory.policy=none"),
    )


def tile_sizes(blocks: int, sizes: tuple[int, ...]) -> tuple[Variant, ...]:
    """Return variants with tiles of several numbers of clips, in segments of `blocks` blocks."""
    settings = f"memory.policy=tile memory.segment_blocks={blocks}"
    return tuple(Variant(f"tile, hold, {clips} clips", f"{settings} memory.tile_clips={clips}") for clips in sizes)


OTHERS = (
    Published("AdaTAD", 5.35, "13.30 GB", "published by others, on an RTX 3090"),
    Published("SV-TAD", 3.01, "9.23 GB", "published by others, on an RTX 3090"),
)
"""Published steps of VideoMAE-L on one window of 768 frames of 224 pixels."""
# A laptop's, a workstation's and a data centre's card.
CARDS_GIB = (8, 24, 80)
CASES = (
    GpuCase("g 1536 x 224", "g_1536x224_adapter", "",
         (*variants("memory.tile_clips=1 memory.segment_blocks=5"), *tile_sizes(5, (2, 3, 4)))),
    GpuCase("L 768 x 224", "l_768x160_adapter", "data.size_pixels=224",
         variants("memory.tile_clips=2 memory.segment_blocks=4")[:4], OTHERS),
    GpuCase("g 768 x 160", "g_768x160_adapter", "", variants("memory.tile_clips=2 memory.segment_blocks=5")),
    GpuCase("L 1536 x 224", "l_768x160_adapter", "data.window.frames_per_position=2 data.size_pixels=224",
         variants("memory.tile_clips=2 memory.segment_blocks=4")),
    GpuCase("L 768 x 160", "l_768x160_adapter", "", variants("memory.tile_clips=3 memory.segment_blocks=4")),
)  # fmt: skip
"""Cases by importance: a slow card reaches only the first ones."""


def spec_of(case: GpuCase, variant: Variant) -> Spec:
    """Return the spec of a case and variant, with one window a step."""
    overrides = shlex.split(f"{case.overrides} {variant.overrides} train.global_batch=1")
    return load(f"configs/thumos/{case.config}.yaml", overrides, check_files=False)


def on_cards(case: GpuCase, planner: Planner) -> GpuCase:
    """Return a case under the plans that `memory.policy: auto` takes on smaller cards than the planner's; cards that
    are not smaller, or hold no plan, are left out. planner: of the case under `auto`."""
    chosen, plans = [], planner.plans()
    for size in CARDS_GIB:
        card = replace(planner.machine, memory_bytes=size * GIB)
        # Plans come sorted, the fastest first.
        plan = next((plan for plan in plans if plan.fits(card)), None)
        if plan is not None and card.memory_bytes < planner.machine.memory_bytes:
            settings = shlex.join(plan.settings(planner.spec))
            chosen.append(Variant(f"{size} GB: {plan.describe()}", settings, cap_gib=size))
    return GpuCase(f"{case.name}, on smaller cards", case.config, case.overrides, tuple(chosen))
