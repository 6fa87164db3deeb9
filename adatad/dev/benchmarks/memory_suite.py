"""Peak memory of a training step, counted on the meta device, for the models and windows that people train."""

from __future__ import annotations

import time
from typing import NamedTuple

from adatad.dev.benchmarks.tables import Result
from adatad.spec import load
from adatad.training.metered import step_memory

GIB = 2**30
# Longer windows than any spec's, to see how memory grows.
STRETCHED = "data.window.size_grid={grid} model.detector.max_length={grid}"


class MemoryCase(NamedTuple):
    """A model, window and policy. reference_gib: the reference's count, with its checkpointing of blocks and its
    average of all weights (docs/memory.md)."""

    name: str
    config: str
    overrides: str
    bar_gib: float | None = None
    reference_gib: float | None = None


def tile(clips: int, blocks: int, recompute: str = "once") -> str:
    """Return overrides for policy tile."""
    return f"memory.policy=tile memory.tile_clips={clips} memory.segment_blocks={blocks} memory.recompute={recompute}"


WAITING = "memory.saved_inputs=host memory.halos=host"
FRAMES = "memory.frames=host"
EIGHT_BITS = "memory.frozen_dtype=int8 memory.saved_input_dtype=fp8"
STATE = "memory.optimizer_state=host memory.moving_average=host"

MEMORY_CASES = (
    MemoryCase("g 1536 x 224, hold", "g_1536x224_adapter", tile(1, 5), 7.0, 42.55),
    MemoryCase("g 1536 x 224, rebuild", "g_1536x224_adapter", tile(1, 10, "twice"), 5.0, 42.55),
    MemoryCase(
        "g 1536 x 224, weights and rows in 8 bits, hold", "g_1536x224_adapter", f"{tile(1, 5)} {EIGHT_BITS}", 5.0, 42.55
    ),
    MemoryCase(
        "g 1536 x 224, hold, rows and halos on the host", "g_1536x224_adapter", f"{tile(1, 5)} {WAITING}", 4.2, 42.55
    ),
    MemoryCase(
        "the same, frames, optimizer and average too",
        "g_1536x224_adapter",
        f"{tile(1, 5)} {WAITING} {FRAMES} {STATE}",
        3.4,
        42.55,
    ),
    MemoryCase(
        "all of it, rebuild, frozen weights streamed",
        "g_1536x224_adapter",
        f"{tile(1, 2, 'twice')} {WAITING} {FRAMES} {STATE} memory.frozen_weights=stream",
        1.8,
        42.55,
    ),
    MemoryCase("g 768 x 160, hold", "g_768x160_adapter", tile(2, 5), 5.6, 21.72),
    MemoryCase("H 768 x 160, hold", "h_768x160_adapter", tile(2, 4), 3.8, 13.86),
    MemoryCase("L 768 x 160, hold", "l_768x160_adapter", tile(2, 4), 2.4, 8.37),
    MemoryCase("B 768 x 160, hold", "b_768x160_adapter", tile(2, 3), 1.3, 3.92),
    MemoryCase("S 768 x 160, hold", "s_768x160_adapter", tile(2, 3), 0.9, 2.03),
    MemoryCase("g side 1536 x 224", "g_1536x224_side", "memory.policy=tile memory.tile_clips=2", 3.1, 35.37),
    MemoryCase(
        "g 12288 x 224, rebuild", "g_1536x224_adapter", f"{tile(2, 20, 'twice')} {STRETCHED.format(grid=6144)}", 14.5
    ),
    MemoryCase(
        "g 12288 x 224, hold, rows, halos, frames on the host",
        "g_1536x224_adapter",
        f"{tile(1, 5)} {WAITING} {FRAMES} {STRETCHED.format(grid=6144)}",
        5.8,
    ),
)
GROWTH = {
    "k 10, hold": (tile(1, 10), 2.0, 33.0),
    "k 5, hold, rows, halos, frames on the host": (f"{tile(1, 5)} {WAITING} {FRAMES}", 0.1, 33.0),
}
"""Overrides, bar and reference of the GiB that another 1,536 frames take, by name."""


def run() -> list[Result]:
    """Count every case, then the growth with another 1,536 frames. A quarter of an hour."""
    results = []
    for case in MEMORY_CASES:
        started = time.monotonic()
        peak, where = count(case)
        note = f"{where}; counted in {time.monotonic() - started:.0f} s"
        results.append(Result(case.name, peak, case.bar_gib, case.reference_gib, note))
    for note, (overrides, bar_gib, reference_gib) in GROWTH.items():
        # The same plan for both lengths: only what grows with the window differs.
        short, long = (
            count(MemoryCase("", "g_1536x224_adapter", f"{overrides} {stretched}"))[0]
            for stretched in ("", STRETCHED.format(grid=1536))
        )
        results.append(Result("g, growth from 1536 to 3072 frames", long - short, bar_gib, reference_gib, note))
    return results


def count(case: MemoryCase) -> tuple[float, str]:
    """Return the GiB of a training step of one window, and where its peak was."""
    spec = load(f"configs/thumos/{case.config}.yaml", case.overrides.split(), check_files=False)
    peak = step_memory(spec, windows=1)
    # The last part of the place is the same for all.
    return peak.bytes / GIB, peak.place.removesuffix(" > tile")
