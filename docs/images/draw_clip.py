"""Draws docs/images/clip.png: when four ranks work on which clips of a window, from the order in which real waves run.

python docs/images/draw_clip.py
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib.figure import Figure

from adatad.memory.policy import apply_policy
from adatad.memory.segment_wave import SegmentWave
from adatad.memory.transform import Transform
from adatad.models.backbone import VideoBackbone
from adatad.parallel.clip import FakeClipGroup, share_clips
from adatad.parallel.layout import Mesh
from adatad.spec.schema import BackboneSpec, DataSpec, MemorySpec, WindowSpec

BLOCKS, RANKS, CLIPS = 6, 4, 24
META = torch.device("meta")
Point = tuple[int, float, int]
"""When (counted in blocks on tiles), where (a clip), and in which block a rank works."""


def recorded(rank: int) -> tuple[list[Point], list[Point]]:
    """Return the events of forward and of backward, in order."""
    sizes = {"width": 16, "depth": BLOCKS, "heads": 2, "patch": 8, "mlp_ratio": 2.0, "position_grid": 2}
    with META:
        backbone = VideoBackbone(BackboneSpec(**sizes, mode="adapter"))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("adapter" in name)
    data = DataSpec(annotations="", videos="", window=WindowSpec(size_grid=16 * CLIPS), size_pixels=16)
    memory = MemorySpec(policy="tile", tile_clips=1, segment_blocks=3)
    apply_policy(backbone, memory, data, torch.float32, clip_ranks=RANKS)
    group = FakeClipGroup(Mesh(1, RANKS, 0, rank), CLIPS)
    share_clips(backbone, group)
    forward, backward = [], []
    in_place, backward_block = Transform.in_place, SegmentWave.backward_block

    def note_forward(self, index, tile, x):
        forward.append((len(forward), group.own.start + tile.start + 0.5, index))
        in_place(self, index, tile, x)

    def note_backward(self, index, t):
        backward.append((len(backward), group.own.start + self.tiles[t].start + 0.5, index))
        backward_block(self, index, t)

    with patch.object(Transform, "in_place", note_forward), patch.object(SegmentWave, "backward_block", note_backward):
        frames = torch.zeros(1, 3, 16 * len(group.own), 16, 16, dtype=torch.uint8, device=META)
        timeline = backbone.timeline(frames)
        calls = len(forward)
        timeline.sum().backward()
    return forward[:calls], backward


def draw() -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    both = figure.subplots(1, 2)
    points = None
    for rank in range(RANKS):
        for axes, part in zip(both, recorded(rank), strict=True):
            when, where, block = zip(*part, strict=True)
            points = axes.scatter(where, when, c=block, cmap="viridis", vmin=0, vmax=BLOCKS - 1, s=34, marker="s")
    for axes, title in zip(both, ("forward", "backward, two segments of three blocks"), strict=True):
        for border in range(0, CLIPS + 1, CLIPS // RANKS):
            axes.axvline(border, color="#c0392b", linewidth=1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlim(0, CLIPS)
        axes.invert_yaxis()
        axes.set_xticks(
            [CLIPS / RANKS * (rank + 0.5) for rank in range(RANKS)], [f"rank {rank}" for rank in range(RANKS)]
        )
        axes.set_xlabel("clips of one window, in time")
    both[0].set_ylabel("work done by each rank (blocks on tiles), downwards")
    figure.colorbar(points, ax=both, label="block", ticks=range(BLOCKS))
    return figure


if __name__ == "__main__":
    path = Path(__file__).with_name("clip.png")
    draw().savefig(path, dpi=110)
    print(path)
