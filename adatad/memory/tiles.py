"""Tiles: the few clips of one window that the backbone works on at a time."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tile(NamedTuple):
    """Clips `start` to `stop` (counted over all windows of the batch); the `index`-th tile of its window."""

    window: int
    index: int
    start: int
    stop: int

    def of(self, per_clip: Tensor | None) -> Tensor | None:
        """This tile's rows of a tensor with one row a clip."""
        return None if per_clip is None else per_clip[self.start : self.stop]


def cut_tiles(windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
    """Tiles of every window of `clips` clips; the last tile of a window may be shorter than `tile_clips`."""
    return [
        [
            Tile(window, index, window * clips + first, window * clips + min(first + tile_clips, clips))
            for index, first in enumerate(range(0, clips, tile_clips))
        ]
        for window in range(windows)
    ]


def default_tile_clips(clip_tokens: int, width: int) -> int:
    """Clips of about three million numbers: large enough to keep a GPU busy, small beside what a step keeps."""
    return max(1, round(3_000_000 / (clip_tokens * width)))


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
