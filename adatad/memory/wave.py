"""The wave: exact training through a range of blocks, tile by tile, without a tensor for the whole video.

The frozen part of a block sees one clip at a time; only the narrow bottleneck of an adapter crosses clips, by a few
planes. So forward is one stream of tiles, each adapter one tile behind the one before it, and what is kept is one row
of tokens per tile at every k-th block, and the bottleneck planes at the borders of tiles ("halos").

Backward goes segment by segment (k blocks), from the last to the first, and inside a segment as a skewed wave: tile t
at block i comes right after tile t + 1 at block i + 1. Then both neighbours' gradients are known when they are needed,
and no gradient exists for the whole video at more than one level. docs/memory.md explains it with pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adatad.memory.adapter_tile import AdapterWeights, add_adapter_, cast_adapter, squeeze
from adatad.memory.branches import CastBranch
from adatad.memory.coded import CodedShelf, coded_bytes
from adatad.memory.compiled import CompiledBranch
from adatad.memory.exchange import LEFT, RIGHT, HaloExchange, PendingPlanes
from adatad.memory.labels import label
from adatad.memory.offload import HostMemory, Shelf, shelf
from adatad.memory.segment_wave import FromTheOutput, Gradients, SegmentWave, trained_outside_adapter
from adatad.memory.tiles import Tile
from adatad.memory.transform import Transform
from adatad.memory.weights import WeightProvider, part_of_sum, read_from_block
from adatad.models.backbone import VideoBackbone
from adatad.models.drop_path import Drops
from adatad.models.vit import Block

Rows = Iterator[tuple[Tile, Tensor]]
Planes = Tensor | PendingPlanes | None
"""Of a neighbour: here, on the way from another rank, or none."""


@dataclass(frozen=True)
class WaveSettings:
    """How a range of blocks is executed; `adatad.memory.policy` makes it from the spec."""

    first: int
    last: int
    """Blocks of the range, last included."""
    tile_clips: int
    segment_blocks: int
    """k: blocks between two kept rows."""
    hold: bool
    """Keep the graphs of blocks that were run again until their turn comes; else run them once more."""
    block_by_block: bool
    """Run every block over all tiles before the next (for weights that come one block at a time)."""
    dtype: torch.dtype
    """Of arithmetic."""
    residual: torch.dtype
    """Of the tokens between blocks, and so of kept rows."""
    rows_on_host: bool = False
    """Kept rows, and gradients between segments, wait in host memory."""
    rows_coded: bool = False
    """Both of these are kept in fp8."""
    halos_on_host: bool = False
    compiled: bool = False
    """Branches are compiled (`adatad.memory.compiled`)."""

    @property
    def branch_type(self) -> type[CastBranch]:
        return CompiledBranch if self.compiled else CastBranch


class Weights:
    """The trained weights of a range of blocks, and the sums of their gradients (fp32, or fp64 of fp64 weights).

    `tensors`, in the order of `names`, come from the weight module: they are what autograd sees of the parameters.
    """

    def __init__(self, backbone: VideoBackbone, settings: WaveSettings, names: list[str], tensors: tuple[Tensor, ...]):
        self.names, self.backbone = names, backbone
        self.sums: dict[str, Tensor] = {}
        by_name = dict(zip(names, tensors, strict=True))
        self.adapters: dict[int, AdapterWeights] = {}
        with label("adapter casts"):
            for index in range(settings.first, settings.last + 1):
                adapter, prefix = backbone.blocks[index].adapter, f"blocks.{index}.adapter."
                if adapter is not None:
                    masters = {n.removeprefix(prefix): t for n, t in by_name.items() if n.startswith(prefix)}
                    self.adapters[index] = cast_adapter(adapter, masters, settings.dtype)

    def add(self, name: str, gradient: Tensor) -> None:
        if name in self.sums:
            self.sums[name].add_(gradient)
        else:
            with label("gradients"):
                exact = torch.promote_types(gradient.dtype, torch.float32)
                self.sums[name] = gradient.to(exact, copy=True, memory_format=torch.contiguous_format)

    def complete(self, trained: dict[str, Tensor]) -> None:
        """Zeros for those weights whose branch no tile has computed."""
        for name, weight in trained.items():
            if name not in self.sums:
                with label("gradients"):
                    exact = torch.promote_types(weight.dtype, torch.float32)
                    self.sums[name] = torch.zeros_like(weight, dtype=exact, memory_format=torch.contiguous_format)

    def share(self, blocks: range) -> None:
        """Of blocks that are done and let go, keep this rank's part of the sums over ranks, where weights are sharded:
        whole gradients of a whole backbone would be as large as its weights."""
        prefixes = tuple(f"blocks.{index}." for index in blocks)
        # In the same order on all ranks, whichever branches their tiles have dropped.
        for name in [name for name in self.names if name.startswith(prefixes) and read_from_block(name)]:
            with label("gradients"):
                self.sums[name] = part_of_sum(self.sums[name], self.backbone.get_parameter(name))


class Wave:
    """One forward and one backward of one batch through a range of blocks. All state belongs to this one call."""

    def __init__(
        self,
        backbone: VideoBackbone,
        settings: WaveSettings,
        windows: int,
        clips: int,
        drops: Drops | None,
        weights: Weights,
        provider: WeightProvider,
        halo_exchange: HaloExchange,
        host: HostMemory,
        positions: int,
        keep: bool,
        input_gradient: bool,
    ):
        """drops: stochastic depth of all clips; positions: of a plane; keep: a backward will follow."""
        self.provider, self.halo_exchange = provider, halo_exchange
        # Where the tile lies that comes next, and the one that came before.
        self.ahead, self.behind = (LEFT, RIGHT) if halo_exchange.backwards else (RIGHT, LEFT)
        self.backbone, self.settings, self.weights = backbone, settings, weights
        self.transform = Transform(backbone, settings.dtype, drops, settings.branch_type)
        self.adapters = weights.adapters
        self.tiles = halo_exchange.tiles(windows, clips, settings.tile_clips)
        self.keep = keep
        self.trained = {index for index, block in self._blocks() if trained_outside_adapter(block)}
        self.input_gradient = input_gradient
        starts = [] if not keep else range(self._first_kept(), settings.last + 1, settings.segment_blocks)
        self.segments = [(start, min(start + settings.segment_blocks, settings.last + 1)) for start in starts]
        self.host = host
        self.plane = positions
        # Block by block, a set of rows is on its way beside the kept ones, which may be smaller.
        on_the_way = int(settings.block_by_block and not settings.rows_coded)
        self.rows = self._row_shelf("saved rows", len(starts) + on_the_way, settings.rows_coded)
        self.halos = self._halo_shelf()
        self.from_ranks: dict[tuple[int, int, int], Tensor] = {}
        """Block, window, side: planes of z from the rank there, kept for backward."""
        self.spent = False

    def _row_shelf(self, name: str, per_tile: int, coded: bool = False) -> Shelf:
        """Keys (start of a segment, tile). The gradients between segments take the places of rows that are done."""
        settings, width = self.settings, self.backbone.width
        # Ranks that share a window unevenly may have a larger tile than the settings say.
        largest = max(self.planes(tile) for tile in self.tiles[0])
        host = self.host if settings.rows_on_host else None
        tokens, count = largest * self.plane, per_tile * sum(map(len, self.tiles))
        if not coded:
            return shelf(name, host, tokens * width * settings.residual.itemsize, count)
        return CodedShelf(shelf(name, host, coded_bytes(tokens, width), count), settings.residual, name)

    def _halo_shelf(self) -> Shelf:
        """Keys (block, window, index of a tile): first and last planes of its z, [2, reach, positions, hidden]."""
        kept = [adapter for adapter in self.adapters.values() if adapter.reach] if self.keep else []
        widest = max(kept, key=lambda adapter: adapter.reach * adapter.down.shape[0], default=None)
        numbers = 2 * widest.reach * self.plane * widest.down.shape[0] if widest else 0
        host = self.host if self.settings.halos_on_host else None
        return shelf("halos", host, numbers * self.settings.dtype.itemsize, len(kept) * sum(map(len, self.tiles)))

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        settings = self.settings
        return ((index, self.backbone.blocks[index]) for index in range(settings.first, settings.last + 1))

    def _first_kept(self) -> int:
        """The first block with anything to differentiate; those before it run without a graph."""
        if self.input_gradient:
            return self.settings.first
        return next(index for index, _ in self._blocks() if index in self.trained or index in self.adapters)

    def differentiates(self, index: int) -> bool:
        """Whether the frozen part of a block needs its backward: for its own weights, or for what is below it."""
        return index in self.trained or self.input_gradient or index > self.segments[0][0]

    # Forward

    def forward(self, rows: Rows) -> Rows:
        """Tiles of tokens (the wave's own from now on) through all blocks, as one stream; draw it under no_grad."""
        for index, _ in self._blocks():
            if any(index == start for start, _ in self.segments):
                rows = self._kept(rows, index)
            rows = self._through(rows, index)
            if self.settings.block_by_block:
                following = range(index + 1, min(index + 2, self.settings.last + 1))
                with self.provider.materialized(range(index, index + 1), following):
                    rows = self._all_through(rows)
        return rows

    def _kept(self, rows: Rows, index: int) -> Rows:
        for tile, x in rows:
            self.rows.put_copy((index, tile), x)
            yield tile, x

    def _all_through(self, rows: Rows) -> Rows:
        """Draws all tiles before the first is given on; meanwhile they wait where rows do."""
        waiting = self._row_shelf("tile", int(self.settings.rows_coded))
        tiles = deque()
        for tile, x in rows:
            waiting.put(tile, x)
            tiles.append(tile)
            del x
        return _from_shelf(waiting, tiles)

    def _through(self, rows: Rows, index: int) -> Rows:
        """Every tile through one block, in place. Where an adapter sees its neighbours, a tile waits for the next."""
        adapter = self.adapters.get(index)
        waiting: list[tuple[Tile, Tensor, Tensor, list[Planes]]] = []
        last = None
        for tile, x in rows:
            with label("tile"):
                self.transform.in_place(index, tile, x)
                z = None if adapter is None else squeeze(x, adapter, self.planes(tile))[0]
            if adapter is None:
                yield tile, x
                continue
            halo = self._halo(index, tile, z)
            beside = self._ask_ranks(tile, halo)
            if tile.index and halo is not None:
                beside[self.behind], waiting[0][3][self.ahead] = last, halo[self.behind]
            if waiting:
                yield self._finish(index, *waiting.pop())
            waiting.append((tile, x, z, beside))
            last = None if halo is None else halo[self.ahead]
        if waiting:
            yield self._finish(index, *waiting.pop())
        self.transform.let_go(range(index, index + 1))

    def _finish(self, index: int, tile: Tile, x: Tensor, z: Tensor, beside: list[Planes]) -> tuple[Tile, Tensor]:
        for side in (LEFT, RIGHT):
            if callable(beside[side]):
                beside[side] = self._arrived(index, tile, side, beside[side])
        with label("tile"):
            add_adapter_(x, z, *beside, self.adapters[index])
        return tile, x

    def _ask_ranks(self, tile: Tile, halo: Tensor | None) -> list[Planes]:
        """A tile's neighbours on other ranks, left and right, whose planes are on their way from now on."""
        sides = [] if halo is None else self.borders(tile.index, len(self.tiles[tile.window]))
        return [self.halo_exchange.exchange(side, halo[side]) if side in sides else None for side in (LEFT, RIGHT)]

    def _arrived(self, index: int, tile: Tile, side: int, arrival: PendingPlanes) -> Tensor:
        with label("halos"):
            planes = arrival()
        if self.keep:
            self.from_ranks[index, tile.window, side] = planes
        return planes

    def borders(self, t: int, count: int) -> list[int]:
        """Sides on which the t-th of a window's tiles meets another rank."""
        ends = [(self.behind, t == 0), (self.ahead, t == count - 1)]
        return [side for side, at_end in ends if at_end and self.halo_exchange.has_neighbour(side)]

    def planes(self, tile: Tile) -> int:
        return (tile.stop - tile.start) * self.backbone.clip_tubelets

    def _halo(self, index: int, tile: Tile, z: Tensor) -> Tensor | None:
        """The ends of a tile's z, kept if a backward follows; None where the adapter sees no neighbour."""
        reach = self.adapters[index].reach
        if not reach:
            return None
        with label("halos"):
            ends = torch.stack([z[:reach], z[len(z) - reach :]])
        if self.keep:
            self.halos.put((index, tile.window, tile.index), ends)
        return ends

    # Backward

    def backward(self, gradient_of: Callable[[Tile], Tensor]) -> dict[Tile, Tensor]:
        """Sums up all weight gradients, in `weights`, and returns the gradient of the input, by tile, if it has one.

        gradient_of: makes a tile's gradient of the output, in the residual dtype.
        """
        if self.spent:
            raise RuntimeError("the wave went back through this forward pass before; its rows are gone")
        self.spent = True
        above: Gradients = FromTheOutput(gradient_of)
        for number, (start, stop) in reversed(list(enumerate(self.segments))):
            wanted = number > 0 or self.input_gradient
            below = self._row_shelf("gradient rows", 0, self.settings.rows_coded) if wanted else None
            following = range(*self.segments[number - 1]) if number else range(0)
            with self.provider.materialized(range(start, stop), following), label(f"blocks {start} to {stop - 1}"):
                for tiles in self.tiles:
                    SegmentWave(self, start, stop, tiles, above, below).run()
                self.weights.complete({
                    f"blocks.{index}.{name}": parameter
                    for index in range(start, stop)
                    for name, parameter in trained_outside_adapter(self.backbone.blocks[index]).items()
                })  # fmt: skip
                self.transform.let_go(range(start, stop))
            self.weights.share(range(start, stop))
            above = below
        tiles = [tile for window in self.tiles for tile in window] if self.input_gradient else []
        return {tile: above.take(tile) for tile in tiles}


def _from_shelf(shelf: Shelf, tiles: deque[Tile]) -> Rows:
    """Tiles one by one, the next one on its way meanwhile; none stays referenced here."""
    while tiles:
        tile = tiles.popleft()
        x = shelf.take(tile)
        if tiles:
            shelf.want(tiles[0])
        yield tile, x
        del x
