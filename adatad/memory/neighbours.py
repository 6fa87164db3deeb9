"""What lies beside a wave's clips: nothing, or the clips of other ranks that share the window (clip parallelism).

Planes at a border go both ways: each of the two ranks sends its own and gets the other's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from adatad.memory.tiles import Tile, cut_tiles

LEFT, RIGHT = 0, 1
"""Sides of a tile, or of a rank's clips: before and behind them in the video's time."""

Arrival = Callable[[], Tensor]
"""Waits for planes that are on their way."""


class Neighbours(Protocol):
    """The ranks beside this one."""

    backwards: bool
    """This rank's waves start at its last tile. Neighbours run in opposite directions: both sides of a border are
    reached at the same time, and no rank waits for a whole wave of another."""

    def beside(self, side: int) -> bool:
        """Whether another rank has the clips on that side."""

    def tiles(self, windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
        """Tiles of this rank's clips in the order of its waves, as many in a window as on the other ranks."""

    def trade(self, side: int, planes: Tensor) -> Arrival:
        """Send planes at a border, and get those behind it. All trades at a border happen in the same order on both
        sides."""

    def largest(self, value: Tensor) -> Tensor:
        """Of all ranks that share the window."""


class Nobody:
    """A process that has whole windows."""

    backwards = False

    def beside(self, side: int) -> bool:
        return False

    def tiles(self, windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
        return cut_tiles(windows, clips, tile_clips)

    def trade(self, side: int, planes: Tensor) -> Arrival:
        raise NotImplementedError("nobody is beside a whole window")

    def largest(self, value: Tensor) -> Tensor:
        return value
