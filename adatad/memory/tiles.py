"""Tiles, the few clips of one window that the backbone works on at a time; and the exchange of their halos.

Halos are the planes at a tile's ends that the adapters of its neighbours see. Where ranks share a window (clip
parallelism), planes at a border go both ways: each of the two ranks sends its own and gets the other's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

from torch import Tensor

from adatad.models.backbone import WholeWindows, WindowPart


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
    """Cut every window of `clips` clips into tiles; the last tile of a window may be shorter than `tile_clips`."""
    spans = [(first, min(first + tile_clips, clips)) for first in range(0, clips, tile_clips)]
    return _repeat_spans(windows, clips, spans)


def cut_evenly(windows: int, clips: int, count: int, backwards: bool) -> list[list[Tile]]:
    """Cut every window into `count` tiles, whose sizes differ by one clip at most. backwards: last clips come first."""
    # All ranks of a group must have as many tiles, so that their exchanges pair up; sizes may differ.
    edges = [number * clips // count for number in range(count + 1)]
    spans = list(pairwise(edges))
    return _repeat_spans(windows, clips, spans[::-1] if backwards else spans)


# Clips are counted on over all windows: a tile's rows are then a slice of any tensor with one row a clip.
def _repeat_spans(windows: int, clips: int, spans: list[tuple[int, int]]) -> list[list[Tile]]:
    """Return the same spans of clips as tiles of every window."""
    return [
        [
            Tile(window, index, window * clips + first, window * clips + last)
            for index, (first, last) in enumerate(spans)
        ]
        for window in range(windows)
    ]


LEFT, RIGHT = 0, 1
"""Sides of a tile, or of a rank's clips: before and behind them in the video's time."""

PendingPlanes = Callable[[], Tensor]
"""Planes that are on their way: a call waits for them and returns them."""


class HaloExchange(WindowPart, Protocol):
    """The ranks that have the clips beside this rank's."""

    backwards: bool
    """This rank's waves start at its last tile. Neighbours run in opposite directions: both sides of a border are
    reached at the same time, and no rank waits for a whole wave of another."""

    def has_neighbour(self, side: int) -> bool:
        """Return whether another rank has the clips on that side."""

    def tiles(self, windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
        """Cut this rank's clips into tiles, in the order of its waves; as many in a window as on the other ranks."""

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        """Send planes at a border, and ask for those behind it.

        All exchanges at a border happen in the same order on both sides.
        """

    def largest(self, value: Tensor) -> Tensor:
        """Return the largest value of all ranks that share the window."""


class NoExchange(WholeWindows):
    """A process that has whole windows."""

    backwards = False

    def has_neighbour(self, side: int) -> bool:
        """Return False: nothing lies beside a whole window."""
        return False

    def tiles(self, windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
        """Return the tiles of `cut_tiles`."""
        return cut_tiles(windows, clips, tile_clips)

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        """Refuse: no rank is there."""
        raise NotImplementedError("nobody is beside a whole window")

    def largest(self, value: Tensor) -> Tensor:
        """Return the value itself: no other rank has a part of the window."""
        return value


# Sizes that the spec leaves open

BUSY_TOKENS_WIDTH2 = 4e9
"""Tokens times width squared of a tile. One block's products on it, 24 times as many FLOPs, take an H100 about as long
as the host needs to launch them."""


def default_tile_clips(clip_tokens: int, width: int, clips: int) -> int:
    """Return the clips of a tile, of `clips` in a window; all tiles of a window are nearly as large.

    About three million numbers, which is small beside what a step keeps, but at least 100 GFLOP in each block, for
    which narrow models take more.
    """
    # Whichever is larger: wide models are bound by memory, narrow ones by the host that launches their kernels.
    numbers, busy = 3_000_000 / (clip_tokens * width), BUSY_TOKENS_WIDTH2 / width**2 / clip_tokens
    tiles = -(-clips // max(1, round(max(numbers, busy))))
    # As many clips in each as this number of tiles needs: without a short last tile, if that can be.
    return -(-clips // tiles)


def default_segment_blocks(span: int, clips: int, tile_clips: int, mlp_ratio: float, hold: bool) -> int:
    """Return the k at which saved inputs (they shrink with k) and the wave's window (it grows) take least together.

    span: blocks from the first trained one to the last; clips: of all windows of a micro-batch.
    """
    # A held graph keeps about seven tensors as large as the tokens, and the MLP's value before its activation; without
    # held graphs only the input waits.
    held = 7 + mlp_ratio if hold else 1

    def clips_held(k: int) -> float:
        """Return the peak memory with segments of k blocks, in clips of tokens."""
        saved = -(-span // k) * clips
        # The wave holds a triangle: k - 1 graphs of the tile that entered last, one fewer of the one before, and so on.
        window = (k - 1) * (k + 2) / 2 * held + k + 1
        return saved + tile_clips * window

    return min(range(1, span + 1), key=clips_held)
