"""The wave: exact training through a range of blocks, tile by tile, without a tensor for the whole video.

The frozen part of a block sees one clip at a time; only the narrow bottleneck of an adapter crosses clips, by a few
planes. So forward is one stream of tiles, each adapter one tile behind the one before it. What is saved is the input of
every k-th block, tile by tile, and the bottleneck planes at the borders of tiles ("halos").

Backward goes segment by segment (k blocks), from the last to the first, and inside a segment as a skewed wave: tile t
at block i comes right after tile t + 1 at block i + 1. Then both neighbours' gradients are known when they are needed,
and no gradient exists for the whole video at more than one level. docs/memory.md explains it with pictures.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from adatad.memory.adapter_tile import add_adapter_, squeeze
from adatad.memory.offload import ActivationStore
from adatad.memory.scopes import memory_scope, timed_part
from adatad.memory.segment_wave import Gradients, OutputGradients, SegmentWave
from adatad.memory.tiles import LEFT, RIGHT, PendingPlanes, Tile
from adatad.memory.wave_state import GradientOf, TileStream, WaveState

Planes = Tensor | PendingPlanes | None
"""A neighbour's planes: here, on their way from another rank, or none."""


class Wave(WaveState):
    """One forward and one backward of one micro-batch through a range of blocks."""

    backward_done = False
    """True after backward, which uses the saved inputs up."""

    def forward(self, stream: TileStream) -> TileStream:
        """Send tiles of tokens (the wave's own from now on) through all blocks, as one stream.

        Nothing runs before the stream that is returned is drawn from; draw it under no_grad.
        """
        # Generators in one another: drawing a tile from the last block draws it through all the others.
        starts = {start for start, _ in self.segments}
        for index, _ in self.blocks():
            # The input of a segment is saved before its first block changes it in place.
            if index in starts:
                stream = self._save_inputs(stream, index)
            stream = self._forward_block(stream, index)
            if self.settings.block_by_block:
                following = range(index + 1, min(index + 2, self.settings.last + 1))
                # The block's weights are there only while all tiles are drawn through it.
                with self.provider.materialized(range(index, index + 1), following):
                    stream = self._draw_all(stream)
        return stream

    def _save_inputs(self, stream: TileStream, index: int) -> TileStream:
        """Save every tile on its way into the block that begins a segment."""
        for tile, x_nlc in stream:
            self.saved_inputs.save_copy((index, tile), x_nlc)
            yield tile, x_nlc

    def _draw_all(self, stream: TileStream) -> TileStream:
        """Draw all tiles before the first is given on; meanwhile they wait where saved inputs do."""
        waiting = self.token_store("tile", int(self.settings.saved_in_8_bits))
        tiles = deque()
        for tile, x_nlc in stream:
            waiting.save(tile, x_nlc)
            tiles.append(tile)
            # The next tile is made while this name would still hold the last one.
            del x_nlc
        return _from_store(waiting, tiles)

    def _forward_block(self, stream: TileStream, index: int) -> TileStream:
        """Send every tile through one block, in place. An adapter that sees its neighbours is one tile late."""
        adapter = self.adapters.get(index)
        waiting: list[tuple[Tile, Tensor, Tensor, list[Planes]]] = []
        """The tile before: its tokens without the adapter, z, and its neighbours' planes of z as far as they came."""
        last_planes = None
        for tile, x_nlc in stream:
            with memory_scope("tile"):
                self.transform.in_place(index, tile, x_nlc)
                with timed_part("adapters"):
                    z = None if adapter is None else squeeze(x_nlc, adapter, self.planes(tile))[0]
            if adapter is None:
                yield tile, x_nlc
                continue
            ends = self._save_halo(index, tile, z)
            # Planes of other ranks are asked for now, and waited for when the adapter runs, one tile later.
            sides = [] if ends is None else self.borders(tile.index, len(self.tiles[tile.window]))
            beside: list[Planes] = [
                self.halo_exchange.exchange(side, ends[side]) if side in sides else None for side in (LEFT, RIGHT)
            ]
            if tile.index and ends is not None:
                # Not a window's first tile: it and the waiting one are neighbours, and know each other now.
                beside[self.behind], waiting[0][3][self.ahead] = last_planes, ends[self.behind]
            if waiting:
                yield self._add_adapter(index, *waiting.pop())
            # At most one waits: its successor's z is all that it lacks.
            waiting.append((tile, x_nlc, z, beside))
            last_planes = None if ends is None else ends[self.ahead]
        if waiting:
            yield self._add_adapter(index, *waiting.pop())
        # The last tile is through: the block's cast weights aren't needed before backward.
        self.transform.release(range(index, index + 1))

    def _add_adapter(
        self, index: int, tile: Tile, x_nlc: Tensor, z: Tensor, beside: list[Planes]
    ) -> tuple[Tile, Tensor]:
        """Add the adapter to a tile whose neighbours' planes are known, or on their way, which is waited for."""
        for side in (LEFT, RIGHT):
            if callable(beside[side]):
                with memory_scope("halos"):
                    beside[side] = beside[side]()
                if self.keep:
                    # Backward reads them again; asking the rank a second time would cost one more exchange.
                    self.from_ranks[index, tile.window, side] = beside[side]
        with memory_scope("tile"), timed_part("adapters"):
            add_adapter_(x_nlc, z, *beside, self.adapters[index])
        return tile, x_nlc

    def _save_halo(self, index: int, tile: Tile, z: Tensor) -> Tensor | None:
        """Return the ends of a tile's z, saved if a backward follows; None where the adapter sees no neighbour."""
        reach = self.adapters[index].reach
        if not reach:
            return None
        with memory_scope("halos"):
            ends = torch.stack([z[:reach], z[len(z) - reach :]])
        if self.keep:
            self.halos.save((index, tile.window, tile.index), ends)
        return ends

    def backward(self, gradient_of: GradientOf) -> dict[Tile, Tensor]:
        """Sum up all weight gradients, in `weights`; return the gradient of the input, by tile, if it is wanted."""
        if self.backward_done:
            raise RuntimeError("the wave went back through this forward pass before; its saved inputs are gone")
        self.backward_done = True
        above: Gradients = OutputGradients(gradient_of)
        # From the last segment to the first; `above` are the gradients that the segment behind has left.
        for number, (start, stop) in reversed(list(enumerate(self.segments))):
            below = None
            if number > 0 or self.input_gradient:
                below = self.token_store("saved gradients", 0, self.settings.saved_in_8_bits)
            # Without the norm behind the last block, whose weights are there all the time.
            blocks = range(start, min(stop, self.settings.last + 1))
            following = range(*self.segments[number - 1]) if number else range(0)
            # Windows one after another: they have nothing to do with each other but the sums of weights' gradients.
            with self.provider.materialized(blocks, following), memory_scope(f"blocks {blocks[0]} to {blocks[-1]}"):
                for tiles in self.tiles:
                    SegmentWave(self, start, stop, tiles, above, below).run()
                for index in blocks:
                    self.weights.complete(self.backbone.blocks[index], index)
                self.transform.release(range(start, stop))
            # After the blocks' weights are let go: their full gradients shrink to this rank's part of the sums.
            self.weights.shard(blocks)
            above = below
        tiles = [tile for window in self.tiles for tile in window] if self.input_gradient else []
        return {tile: above.pop(tile) for tile in tiles}


def _from_store(store: ActivationStore, tiles: deque[Tile]) -> TileStream:
    """Yield tiles one by one, the next one on its way meanwhile; none stays referenced here."""
    while tiles:
        tile = tiles.popleft()
        x_nlc = store.pop(tile)
        if tiles:
            store.prefetch(tiles[0])
        yield tile, x_nlc
        del x_nlc
