"""Layout: the ranks in the mesh data x clip, and the bytes of each engine's tensors on a rank.

Bytes are of what an engine keeps on a rank between steps, for the planner and for tables: fp32 trained parameters (4 a
number), and frozen weights in whatever dtype they have. A rank's share of anything sharded is 1 / ranks of it, up to
padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS


@dataclass(frozen=True)
class Mesh:
    """One rank's place: in group `data_rank` of `data`, which have windows of their own; there rank `clip_rank` of the
    `clip` that share them.

    Ranks that share a window (a clip group) follow each other in rank order, so that they are on one node where they
    can.
    """

    data: int
    clip: int
    data_rank: int
    clip_rank: int

    @property
    def group(self) -> range:
        """Ranks of this rank's clip group."""
        return range(self.data_rank * self.clip, (self.data_rank + 1) * self.clip)


def mesh_of(rank: int, world: int, clip: int) -> Mesh:
    """Return a rank's place. clip: number of ranks that share a window; it divides the world."""
    # Consecutive ranks form a group: launchers number those of one node consecutively.
    return Mesh(world // clip, clip, rank // clip, rank % clip)


class RankBytes(NamedTuple):
    """Bytes on one rank after backward: the frozen weights; the trained parameters, with what an engine keeps beside
    them; AdamW's two moments; the moving average; gradients."""

    frozen: float
    trained: float
    optimizer: float
    average: float
    gradients: float


def held_bytes(engine: str, ranks: int, frozen: int, trained: int) -> RankBytes:
    """Return what an engine keeps on a rank. frozen, trained: bytes of the model's weights, trained ones in fp32.

    DeepSpeed keeps its own fp32 copy of each rank's partition of the trained parameters.
    """
    # Fractions of a byte don't matter to estimates.
    share = trained / ranks
    match engine:
        # 2 x: AdamW's two moments, in fp32 as the parameters.
        case "ddp":
            return RankBytes(frozen, trained, 2 * trained, trained, trained)
        case "zero1":
            return RankBytes(frozen, trained + share, 2 * share, share, trained)
        case "zero2":
            return RankBytes(frozen, trained + share, 2 * share, share, share)
        # DeepSpeed keeps the trained parameters twice, in the model and in its own fp32 partition, here both sharded.
        case "zero3":
            return RankBytes(frozen / ranks, 2 * share, 2 * share, share, share)
        case "fsdp" | "fairscale":
            return RankBytes(frozen / ranks, share, 2 * share, share, share)
        case _:
            raise ValueError(f"no partition rule for engine {engine}")


def gathered_bytes(engine: str, ranks: int, trained: int, whole: int) -> int:
    """Return the bytes of other ranks' weights that a rank has in backward; under ddp, the buckets of gradients.

    whole: bytes of sharded weights that are gathered at once.
    """
    if ranks == 1:
        return 0
    if engine == "ddp":
        return trained
    return whole if engine in SHARDS_FROZEN_WEIGHTS else 0
