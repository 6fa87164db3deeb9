"""Halo exchange: planes at the ends of a rank's clips, for the adapters of ranks that share a window.

Planes at a border go both ways: each of the two ranks sends its own and gets the other's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from adatad.memory.tiles import Tile, cut_tiles
from adatad.models.backbone import Surroundings, WholeWindows

LEFT, RIGHT = 0, 1
"""Sides of a tile, or of a rank's clips: before and behind them in the video's time."""

PendingPlanes = Callable[[], Tensor]
"""Planes that are on their way: a call waits for them and returns them."""


class HaloExchange(Surroundings, Protocol):
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
        return False

    def tiles(self, windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
        return cut_tiles(windows, clips, tile_clips)

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        raise NotImplementedError("nobody is beside a whole window")

    def largest(self, value: Tensor) -> Tensor:
        return value
