"""Where a rank stands in the mesh data x clip.

Ranks that share a window (a clip group) follow each other in rank order, so that they are on one node where they can.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """One rank's place: in group `data_rank` of `data`, which have windows of their own; there rank `clip_rank` of the
    `clip` that share them."""

    data: int
    clip: int
    data_rank: int
    clip_rank: int

    @property
    def group(self) -> range:
        """The ranks of this rank's clip group."""
        return range(self.data_rank * self.clip, (self.data_rank + 1) * self.clip)


def mesh_of(rank: int, world: int, clip: int) -> Mesh:
    """clip: ranks that share a window; it divides the world."""
    return Mesh(world // clip, clip, rank // clip, rank % clip)
