"""The state of a wave between its forward and its backward: tiles, cast weights, saved inputs and halos.

Shapes (here and in the other files of the wave): n clips of a tile, l tokens of a clip, c width; planes (one tubelet,
all positions) of z are [planes, positions, hidden].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adatad.memory.adapter_tile import AdapterWeights, cast_adapter
from adatad.memory.coded import EightBitStore, coded_bytes
from adatad.memory.compiled import CompiledBranch
from adatad.memory.offload import ActivationStore, HostMemory, activation_store
from adatad.memory.scopes import memory_scope
from adatad.memory.tiles import LEFT, RIGHT, HaloExchange, Tile
from adatad.memory.transform import CastBranch, Transform
from adatad.memory.weights import WeightProvider, part_of_sum, read_from_block
from adatad.models.backbone import VideoBackbone
from adatad.models.keyed_dropout import Drops
from adatad.models.vit import Block, ClipTables

TileStream = Iterator[tuple[Tile, Tensor]]
"""Tiles with their tokens [n, l, c], one by one."""
GradientOf = Callable[[Tile], Tensor]
"""Makes a tile's gradient of the wave's output [n, l, c], in the residual dtype."""


@dataclass(frozen=True)
class WaveSettings:
    """How a range of blocks is executed; `adatad.memory.policy` makes it from the spec."""

    first: int
    last: int
    """Blocks of the range, last included."""
    tile_clips: int
    segment_blocks: int
    """k: blocks between two saved inputs."""
    hold: bool
    """Hold the graphs of blocks that were run again until they are differentiated; else run them once more."""
    block_by_block: bool
    """Run every block over all tiles before the next (for weights that come one block at a time)."""
    dtype: torch.dtype
    """Dtype of arithmetic."""
    residual: torch.dtype
    """Dtype of the tokens between blocks, and so of saved inputs."""
    saved_on_host: bool = False
    """Saved inputs, and gradients between segments, wait in host memory."""
    saved_in_8_bits: bool = False
    """Both of these are saved in fp8."""
    halos_on_host: bool = False
    compiled: bool = False
    """Branches are compiled (`adatad.memory.compiled`)."""

    @property
    def branch_type(self) -> type[CastBranch]:
        """Class that executes branches."""
        return CompiledBranch if self.compiled else CastBranch


@dataclass(frozen=True)
class WaveContext:
    """The part of a wave that stays from step to step: model, settings, and where weights, planes and saved inputs come
    from."""

    backbone: VideoBackbone
    settings: WaveSettings
    provider: WeightProvider
    halo_exchange: HaloExchange
    host: HostMemory


@dataclass(frozen=True)
class WaveBatch:
    """One micro-batch, as a wave sees it."""

    windows: int
    clips: int
    """Clips of each window that this rank has."""
    positions: int
    """Spatial positions of a tubelet."""
    drops: Drops | None
    """Stochastic depth of all clips."""
    tables: ClipTables
    """The backbone's `clip_tables`."""
    keep: bool
    """A backward will follow."""
    input_gradient: bool
    """The backward has to return the gradient of the tokens (or frames) that came in."""


def trained_outside_adapter(block: Block) -> dict[str, Tensor]:
    """Return the trained parameters of a block but for its adapter's, by their names in the block."""
    named = block.named_parameters()
    return {name: p for name, p in named if p.requires_grad and not name.startswith("adapter.")}


class WaveWeights:
    """The trained weights of a range of blocks, and the sums of their gradients (fp32, or fp64 of fp64 weights).

    `tensors`, in the order of `names`, come from `TrainedWeights`: they are what autograd sees of the parameters.
    """

    def __init__(self, backbone: VideoBackbone, settings: WaveSettings, names: list[str], tensors: tuple[Tensor, ...]):
        self.names, self.backbone = names, backbone
        self.sums: dict[str, Tensor] = {}
        by_name = dict(zip(names, tensors, strict=True))
        self.adapters: dict[int, AdapterWeights] = {}
        with memory_scope("adapter casts"):
            for index in range(settings.first, settings.last + 1):
                adapter, prefix = backbone.blocks[index].adapter, f"blocks.{index}.adapter."
                if adapter is not None:
                    # Cast once a step and not once a tile: adapters are small, and every tile needs them twice.
                    masters = {n.removeprefix(prefix): t for n, t in by_name.items() if n.startswith(prefix)}
                    self.adapters[index] = cast_adapter(adapter, masters, settings.dtype)

    def add(self, name: str, gradient: Tensor) -> None:
        """Add one tile's part of a weight's gradient."""
        if name in self.sums:
            self.sums[name].add_(gradient)
        else:
            with memory_scope("gradients"):
                # A copy of its own, since what comes may be a view of something large.
                exact = torch.promote_types(gradient.dtype, torch.float32)
                self.sums[name] = gradient.to(exact, copy=True, memory_format=torch.contiguous_format)

    def complete(self, block: Block, index: int) -> None:
        """Make zeros for those weights of a block whose branch no tile has computed: engines wait for all gradients."""
        for name, weight in trained_outside_adapter(block).items():
            if f"blocks.{index}.{name}" not in self.sums:
                with memory_scope("gradients"):
                    exact = torch.promote_types(weight.dtype, torch.float32)
                    zeros = torch.zeros_like(weight, dtype=exact, memory_format=torch.contiguous_format)
                    self.sums[f"blocks.{index}.{name}"] = zeros

    def shard(self, blocks: range) -> None:
        """Keep this rank's part of the sums over ranks, of blocks that are done, where weights are sharded.

        Full gradients of the backbone together would be as large as its weights.
        """
        prefixes = tuple(f"blocks.{index}." for index in blocks)
        # In the same order on all ranks, whichever branches their tiles have dropped: each is a collective.
        for name in [name for name in self.names if name.startswith(prefixes) and read_from_block(name)]:
            with memory_scope("gradients"):
                self.sums[name] = part_of_sum(self.sums[name], self.backbone.get_parameter(name))


class WaveState:
    """The state of one forward and one backward of one micro-batch through a range of blocks."""

    def __init__(self, context: WaveContext, batch: WaveBatch, weights: WaveWeights):
        backbone, settings = context.backbone, context.settings
        self.backbone, self.settings, self.weights = backbone, settings, weights
        self.provider, self.halo_exchange, self.host = context.provider, context.halo_exchange, context.host
        self.positions, self.keep, self.input_gradient = batch.positions, batch.keep, batch.input_gradient
        # On which side the tile lies that comes next, and the one that came before.
        self.ahead, self.behind = (LEFT, RIGHT) if self.halo_exchange.backwards else (RIGHT, LEFT)
        self.tiles = self.halo_exchange.tiles(batch.windows, batch.clips, settings.tile_clips)
        # Drops are by clip: a tile looks up those of its own clips, so cutting into tiles changes no draw.
        self.transform = Transform(backbone, settings.dtype, batch.drops, settings.branch_type, batch.tables)
        self.adapters = weights.adapters
        self.trained = {index for index, block in self.blocks() if trained_outside_adapter(block)}
        # From the first block with anything to differentiate on; those before it run without a graph, and save nothing.
        differentiated = self.trained | self.adapters.keys()
        norm_learns = self.has_norm and any(p.requires_grad for p in backbone.final_norm.parameters())
        # A norm that learns alone still needs the tokens of the last block.
        none = settings.last if norm_learns else settings.last + 1
        first = settings.first if self.input_gradient else min(differentiated, default=none)
        starts = range(first, settings.last + 1, settings.segment_blocks) if self.keep else ()
        # The last segment may be shorter.
        self.segments = [(start, min(start + settings.segment_blocks, settings.last + 1)) for start in starts]
        if self.segments and self.has_norm:
            # One more block to go back through: its gradient needs the tokens that come into it, tile by tile.
            start, stop = self.segments[-1]
            self.segments[-1] = start, stop + 1
        # Block by block, the tokens of all tiles wait beside the saved inputs. If these are smaller, in 8 bits, the
        # tokens get buffers of their own when they come.
        waiting = int(settings.block_by_block and not settings.saved_in_8_bits)
        self.saved_inputs = self.token_store("saved inputs", len(starts) + waiting, settings.saved_in_8_bits)
        """Inputs of segments, by (start of the segment, tile)."""
        self.halos = self._halo_store()
        """First and last planes of a tile's z, by (block, window, index of the tile): [2, reach, positions, hidden]."""
        self.from_ranks: dict[tuple[int, int, int], Tensor] = {}
        """Planes of z from another rank, by (block, window, side), kept for backward."""

    def token_store(self, name: str, per_tile: int, in_8_bits: bool = False) -> ActivationStore:
        """Return a store for tokens of tiles. Gradients between segments take the buffers of inputs that are done."""
        settings, width = self.settings, self.backbone.width
        # Ranks that share a window unevenly may have a larger tile than the settings say.
        # Buffers on the host are of one size, that of the largest tile.
        largest = max(tile.stop - tile.start for tile in self.tiles[0])
        host = self.host if settings.saved_on_host else None
        clip_tokens = self.backbone.class_tokens + self.backbone.clip_tubelets * self.positions
        tokens, count = largest * clip_tokens, per_tile * sum(map(len, self.tiles))
        if not in_8_bits:
            return activation_store(name, host, tokens * width * settings.residual.itemsize, count)
        return EightBitStore(activation_store(name, host, coded_bytes(tokens, width), count), settings.residual, name)

    def _halo_store(self) -> ActivationStore:
        with_halos = [adapter for adapter in self.adapters.values() if adapter.reach] if self.keep else []
        widest = max((adapter.reach * adapter.down.shape[0] for adapter in with_halos), default=0)
        buffer_bytes = 2 * widest * self.positions * self.settings.dtype.itemsize
        host = self.host if self.settings.halos_on_host else None
        return activation_store("halos", host, buffer_bytes, len(with_halos) * sum(map(len, self.tiles)))

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Yield the blocks of the range, with their numbers."""
        settings = self.settings
        return ((index, self.backbone.blocks[index]) for index in range(settings.first, settings.last + 1))

    @property
    def has_norm(self) -> bool:
        """True where the range has the last block, and a norm follows it."""
        return self.backbone.final_norm is not None and self.settings.last == len(self.backbone.blocks) - 1

    def name_of(self, index: int) -> str:
        """Return the name in the backbone of a block, or of the norm behind the last one."""
        return "final_norm" if index == len(self.backbone.blocks) else f"blocks.{index}"

    def differentiates(self, index: int) -> bool:
        """Return whether a block's frozen part needs a backward: for its own weights, or for what is below it."""
        return index in self.trained or self.input_gradient or index > self.segments[0][0]

    def borders(self, t: int, count: int) -> list[int]:
        """Return the sides on which the t-th of a window's `count` tiles meets another rank."""
        ends = [(self.behind, t == 0), (self.ahead, t == count - 1)]
        return [side for side, at_end in ends if at_end and self.halo_exchange.has_neighbour(side)]

    def planes(self, tile: Tile) -> int:
        """Return the number of planes (tubelets) of a tile."""
        return (tile.stop - tile.start) * self.backbone.clip_tubelets
