"""Tiles: the few clips of one window that the backbone works on at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


class Tile(NamedTuple):
    """Clips `start` to `stop` (counted over all windows of the batch); the `index`-th of its window to be worked on."""

    window: int
    index: int
    start: int
    stop: int

    def of(self, per_clip: Tensor | None) -> Tensor | None:
        """This tile's rows of a tensor with one row a clip."""
        return None if per_clip is None else per_clip[self.start : self.stop]


def cut_tiles(windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
    """Tiles of every window of `clips` clips; the last tile of a window may be shorter than `tile_clips`."""
    spans = [(first, min(first + tile_clips, clips)) for first in range(0, clips, tile_clips)]
    return _of_windows(windows, clips, spans)


def cut_evenly(windows: int, clips: int, count: int, backwards: bool) -> list[list[Tile]]:
    """`count` tiles of every window, whose sizes differ by one clip at most. backwards: the last clips come first."""
    edges = [number * clips // count for number in range(count + 1)]
    spans = list(pairwise(edges))
    return _of_windows(windows, clips, spans[::-1] if backwards else spans)


def _of_windows(windows: int, clips: int, spans: list[tuple[int, int]]) -> list[list[Tile]]:
    return [
        [
            Tile(window, index, window * clips + first, window * clips + last)
            for index, (first, last) in enumerate(spans)
        ]
        for window in range(windows)
    ]


BUSY_TOKENS_WIDTH2 = 4e9
"""Tokens times width squared of a tile: one block's products on it, 24 times as many FLOPs, take an H100 about as long
as the host needs to launch them."""


def default_tile_clips(clip_tokens: int, width: int, clips: int) -> int:
    """Clips of a tile, of `clips` in a window: about three million numbers, small beside what a step keeps, but at
    least 100 GFLOP in each block, for which narrow models take more. All tiles of a window are nearly as large."""
    numbers, busy = 3_000_000 / (clip_tokens * width), BUSY_TOKENS_WIDTH2 / width**2 / clip_tokens
    tiles = -(-clips // max(1, round(max(numbers, busy))))
    return -(-clips // tiles)


def default_segment_blocks(span: int, clips: int, tile_clips: int, mlp_ratio: float, hold: bool) -> int:
    """The k at which kept rows (they shrink with k) and the wave's window (it grows) take least together.

    span: blocks from the first trained one to the last; clips: of all windows of a micro-batch.
    """
    held = 7 + mlp_ratio if hold else 1

    def clip_rows(k: int) -> float:
        rows = -(-span // k) * clips
        waiting = (k - 1) * (k + 2) / 2 * held + k + 1
        return rows + tile_clips * waiting

    return min(range(1, span + 1), key=clip_rows)
