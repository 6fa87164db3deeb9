"""Draws memory of a training step against frames, by the planner's formulas: python docs/images/draw_memory.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib.figure import Figure

from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Planner
from adatad.spec import load

FRAMES = (384, 768, 1536, 3072, 6144, 12288)
TILE = ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=5"]
HOST = ["memory.saved_inputs=host", "memory.halos=host", "memory.frames=host"]
ALL = [
    "memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=2", "memory.recompute=twice", *HOST,
    "memory.optimizer_state=host", "memory.moving_average=host", "memory.frozen_weights=stream",
]  # fmt: skip
LINES = {
    "tile, all on the device": ("g_1536x224_adapter", TILE, "#1f4e79"),
    "beside the backbone, all on the device": ("g_1536x224_side", ["memory.policy=tile"], "#2ca02c"),
    "tile; rows, halos, frames on the host": ("g_1536x224_adapter", [*TILE, *HOST], "#7fb3d9"),
    "tile; all on the host, weights streamed": ("g_1536x224_adapter", ALL, "#f28e2b"),
}
ALL_WEIGHTS, TRAINED, WIDTH, ADAPTERS, CLIP_TOKENS = 1.063e9, 50.6e6, 1408, 20, 2048


def reference_gib(frames: int) -> float:
    """Memory of the reference's recipe, by the formula that its count gave: weights and averages in fp32, AdamW's
    state, an input of each block with an adapter but the first, and one block's working set at full length."""
    values = frames / 16 * CLIP_TOKENS * WIDTH
    return (8 * ALL_WEIGHTS + 8 * TRAINED + (4 * (ADAPTERS - 1) + 51 + 6) * values) / GIB


def step_gib(config: str, overrides: list[str], frames: int) -> float:
    """Planned memory of one window in bf16."""
    length = [f"data.window.size_grid={frames // 2}", f"model.detector.max_length={frames // 2}"]
    spec = load(f"configs/thumos/{config}.yaml", [*overrides, *length, "train.global_batch=1"], check_files=False)
    return Planner(spec, Machine(80 * GIB), torch.bfloat16).own().bytes / GIB


def main() -> None:
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    few = FRAMES[:4]
    axes.plot(few, [reference_gib(f) for f in few], "o--", color="#c0392b", label="the reference's recipe")
    for name, (config, overrides, color) in LINES.items():
        values = [step_gib(config, overrides, frames) for frames in FRAMES]
        print(name, [round(value, 2) for value in values])
        axes.plot(FRAMES, values, "o-", color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(FRAMES, [f"{frames:,}" for frames in FRAMES])
    ticks = (1, 2, 4, 8, 16, 24, 48, 80)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("frames of 224 x 224 pixels")
    axes.set_title("VideoMAEv2-g: GiB on the device for a training step of one window", loc="left", fontsize=11)
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    figure.savefig(Path(__file__).with_name("memory.png"), dpi=110)


if __name__ == "__main__":
    main()
