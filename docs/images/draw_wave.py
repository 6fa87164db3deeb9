"""Draws the three panels of docs/memory.md from the order in which a real wave runs: python docs/images/draw_wave.py"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adatad.memory.policy import apply_policy
from adatad.memory.segment_wave import SegmentWave
from adatad.memory.transform import Transform
from adatad.models.families import build_backbone
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.schema import MemorySpec

BLOCKS, TILES, SEGMENT = 8, 7, 4
KEPT, HELD, MOVING, DONE, EMPTY = "#1f4e79", "#7fb3d9", "#f28e2b", "#e3e3e3", "white"
HALO = "#c0392b"
Cell = tuple[int, int]
"""(block, tile)."""


def recorded() -> tuple[list[Cell], list[tuple[str, int, int]]]:
    """Order of the forward's blocks on tiles, and of the backward's: ("recompute" or "backward", block, tile)."""
    sizes = {"width": 16, "depth": BLOCKS, "heads": 2, "patch": 8, "mlp_ratio": 2.0, "position_grid": 2}
    backbone = build_backbone(BackboneSpec(**sizes, mode="adapter"))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("adapter" in name)
    data = DataSpec(annotations="", videos="", window=WindowSpec(size_grid=16 * TILES), size_pixels=16)
    apply_policy(backbone, MemorySpec(policy="tile", tile_clips=1, segment_blocks=SEGMENT), data, torch.float32)
    forward, backward = [], []
    in_place, recompute = Transform.in_place, SegmentWave.recompute_block
    backward_block = SegmentWave.backward_block

    def note_forward(self, index, tile, x):
        forward.append((index, tile.index))
        in_place(self, index, tile, x)

    def note_recompute(self, index, t, x, go_on):
        backward.append(("recompute", index, t))
        return recompute(self, index, t, x, go_on)

    def note_backward(self, index, t):
        backward.append(("backward", index, t))
        backward_block(self, index, t)

    with (
        patch.object(Transform, "in_place", note_forward),
        patch.object(SegmentWave, "recompute_block", note_recompute),
        patch.object(SegmentWave, "backward_block", note_backward),
    ):
        timeline = backbone.timeline(torch.zeros(1, 3, 16 * TILES, 16, 16, dtype=torch.uint8))
        calls = len(forward)
        timeline.sum().backward()
    return forward[:calls], backward


def draw_cells(axes: Axes, title: str, colours: dict[Cell, str], numbers: dict[Cell, int]) -> None:
    for block in range(BLOCKS):
        for tile in range(TILES):
            colour = colours.get((block, tile), EMPTY)
            axes.add_patch(matplotlib.patches.Rectangle((tile, block), 1, 1, facecolor=colour, edgecolor="#999999"))
            if (block, tile) in numbers:
                dark = colour in (KEPT,)
                axes.text(tile + 0.5, block + 0.5, str(numbers[block, tile]), ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")  # fmt: skip
    axes.set_xlim(0, TILES)
    axes.set_ylim(0, BLOCKS)
    axes.set_xticks([t + 0.5 for t in range(TILES)], range(1, TILES + 1))
    axes.set_yticks([b + 0.5 for b in range(BLOCKS)], range(BLOCKS))
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("tiles: the video, in time")
    axes.set_aspect("equal")


def draw_forward(axes: Axes, order: list[Cell]) -> None:
    """The moment at which two thirds of the work are done."""
    moment = order[: 2 * len(order) // 3]
    latest = {tile: max(block for block, other in moment if other == tile) for _, tile in moment}
    colours: dict[Cell, str] = {}
    for block, tile in moment:
        colours[block, tile] = MOVING if latest[tile] == block and block < BLOCKS - 1 else DONE
        if block % SEGMENT == 0:
            colours[block, tile] = KEPT
    draw_cells(axes, "2  Forward: one stream of tiles, every\nadapter one tile behind the one below", colours,
               {cell: number + 1 for number, cell in enumerate(moment)})  # fmt: skip
    draw_halos(axes, moment)


def draw_halos(axes: Axes, cells: list[Cell]) -> None:
    for block, tile in cells:
        for x in (tile + 0.08, tile + 0.92):
            axes.plot([x, x], [block + 0.15, block + 0.85], color=HALO, linewidth=1.2)


def draw_backward(axes: Axes, events: list[tuple[str, int, int]]) -> None:
    """The last segment, at the moment at which half of its tiles have left it."""
    descents = [(block, tile) for kind, block, tile in events if kind == "backward"]
    cut = events.index(("backward", BLOCKS - SEGMENT, TILES // 2 - 1)) + 1
    moment = events[:cut]
    down = {(block, tile) for kind, block, tile in moment if kind == "backward"}
    rebuilt = {(block, tile) for kind, block, tile in moment if kind == "recompute"}
    colours: dict[Cell, str] = {(block, tile): KEPT for block in range(0, BLOCKS, SEGMENT) for tile in range(TILES)}
    colours |= dict.fromkeys(rebuilt, HELD) | dict.fromkeys(down, DONE)
    for tile in {tile for _, tile in down}:
        colours[min(block for block, other in down if other == tile), tile] = MOVING
    numbers = {cell: number + 1 for number, cell in enumerate(descents) if cell in down}
    draw_cells(axes, "3  Backward: a skewed wave through\nthe last segment", colours, numbers)
    draw_halos(axes, [(block, tile) for block in range(BLOCKS) for tile in range(TILES)])


def main() -> None:
    forward, backward = recorded()
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 3)
    everything = {(block, tile): HELD for block in range(BLOCKS) for tile in range(TILES)}
    draw_cells(axes[0], "1  Plain training: all that every block\ncomputed stays until its backward", everything, {})
    draw_forward(axes[1], forward)
    draw_backward(axes[2], backward)
    axes[0].set_ylabel("blocks of the backbone")
    legend = [
        Patch(facecolor=HELD, edgecolor="#999999", label="all values inside a block (about 11 rows)"),
        Patch(facecolor=KEPT, edgecolor="#999999", label="one row of tokens, kept"),
        Patch(facecolor=MOVING, edgecolor="#999999", label="the tile, or its gradient, is here"),
        Patch(facecolor=DONE, edgecolor="#999999", label="done, nothing kept"),
        Patch(facecolor=HALO, label="halos: bottleneck planes at tile borders"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(Path(__file__).with_name("wave.png"), dpi=110)


if __name__ == "__main__":
    main()
