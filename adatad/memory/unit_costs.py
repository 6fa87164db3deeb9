"""What is weighed of the small pieces of a training step (`adatad.memory.units`)."""

from __future__ import annotations

from dataclasses import dataclass

from adatad.memory.scale import Cost


@dataclass
class Held:
    """Bytes of weights: frozen and trained ones of all blocks, of the largest block, and of what lies outside of
    blocks; the largest trained tensor and group; buffers; the bytes of one adapter in fp32."""

    frozen_blocks: int
    frozen_rest: int
    trained_blocks: int
    trained_rest: int
    largest_frozen_block: int
    largest_block: int
    largest_trained: int
    largest_group: int
    buffers: int
    adapter: int
    trained_block: int

    @property
    def frozen(self) -> int:
        return self.frozen_blocks + self.frozen_rest

    @property
    def trained(self) -> int:
        return self.trained_blocks + self.trained_rest


@dataclass
class Outer:
    """A step without its backbone. Bytes: `forward` when the backbone begins, `between` at most while the detector and
    the losses go forward and back, `backward` when the backbone's turn comes."""

    forward: int = 0
    between: int = 0
    backward: int = 0
    timeline: int = 0
    flops: int = 0
    kernels: int = 0


@dataclass
class Layer:
    """A block over whole windows under one policy. kept: until backward; holds: its input
    too; casts: of it, of weights, until all of backward is done. run, back: beside what was
    there before forward and backward; output: of its output; sums: gradients that stay."""

    kept: int
    holds: bool
    casts: int
    run: Cost
    back: Cost
    output: int
    sums: int


@dataclass
class BlockTile:
    """A block on one tile. row: bytes of its tokens; run: its frozen part in place; squeeze: to the bottleneck, which
    stays; add: the adapter's rest; top, low: backward of a block whose graph must be made, or is held; graph: what
    `enter` makes of a tile; halo, casts: bytes; copies: of its other weights, while tiles go through it."""

    row: int
    halo: int
    casts: int
    copies: int
    run: Cost
    squeeze: Cost
    add: Cost
    graph: Cost
    top: Cost
    low: Cost
