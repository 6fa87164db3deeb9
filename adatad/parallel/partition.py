"""What every engine keeps on a rank between steps, by the rule of its partition: for tables, and for choosing one.

Bytes of fp32 trained parameters (4 a number) and of frozen weights in whatever dtype they have. A rank's share of
anything sharded is 1 / ranks of it, up to padding.
"""

from __future__ import annotations

from typing import NamedTuple

from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS


class Held(NamedTuple):
    """Bytes on one rank after backward: the frozen weights; the trained parameters, with what an engine keeps beside
    them; AdamW's two moments; the moving average; gradients."""

    frozen: float
    trained: float
    optimizer: float
    average: float
    gradients: float


def held_bytes(engine: str, ranks: int, frozen: int, trained: int) -> Held:
    """frozen, trained: bytes of the model's weights, trained ones in fp32.

    DeepSpeed keeps its own fp32 copy of each rank's partition of the trained parameters.
    """
    share = trained / ranks
    match engine:
        case "ddp":
            return Held(frozen, trained, 2 * trained, trained, trained)
        case "zero1":
            return Held(frozen, trained + share, 2 * share, share, trained)
        case "zero2":
            return Held(frozen, trained + share, 2 * share, share, share)
        case "zero3":
            return Held(frozen / ranks, 2 * share, 2 * share, share, share)
        case "fsdp" | "fairscale":
            return Held(frozen / ranks, share, 2 * share, share, share)
        case _:
            raise ValueError(f"no partition rule for engine {engine}")


def gathered_bytes(engine: str, ranks: int, trained: int, whole: int) -> int:
    """What a rank holds of others in backward. whole: of sharded weights, those that are gathered at once; under ddp it
    is the buckets that gradients are exchanged in."""
    if ranks == 1:
        return 0
    if engine == "ddp":
        return trained
    return whole if engine in SHARDS_FROZEN_WEIGHTS else 0
