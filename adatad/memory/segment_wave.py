"""The wave's way back through one segment: consecutive blocks, over the tiles of one window.

Tile t at block i comes right after tile t + 1 at block i + 1, so at every moment the wave is at one tile of each block:

    step          0     1     2     3            (segment of 2 blocks, 3 tiles)
    block i + 1   t0    t1    t2
    block i             t0    t1    t2

Before its first block going back, each tile runs forward through the segment once more, from its saved input.

Names: t counts the tiles of a window in the order of the wave; z, v as in `adatad.memory.adapter_tile`, gv the gradient
of v. Shapes: n clips of a tile, l tokens of a clip, c width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adatad.memory.adapter_tile import (
    Borders,
    adapter_backward,
    add_adapter_,
    planes_at,
    squeeze,
    through_up_and_pointwise,
)
from adatad.memory.offload import ActivationStore
from adatad.memory.scopes import RECOMPUTATION, memory_scope, timed_part
from adatad.memory.tiles import LEFT, RIGHT, PendingPlanes, Tile
from adatad.memory.transform import Graph
from adatad.memory.wave_state import GradientOf, WaveState


class Gradients(Protocol):
    """Gradients of the tokens above a segment, by tile."""

    def prefetch(self, tile: Tile) -> None:
        """Say that `pop` will come soon."""

    def pop(self, tile: Tile) -> Tensor:
        """Take a tile's gradient [n, l, c] out."""


@dataclass(frozen=True)
class OutputGradients:
    """Gradients of the wave's output, each made when it is needed."""

    gradient_of: GradientOf

    def prefetch(self, tile: Tile) -> None:
        """Do nothing: nothing has to be copied."""

    def pop(self, tile: Tile) -> Tensor:
        """Make a tile's gradient."""
        return self.gradient_of(tile)


@dataclass
class TileState:
    """One tile between its recomputation and its way back through the segment."""

    starts: dict[int, Tensor | Graph] = field(default_factory=dict)
    """What the backward of each block starts from; see `recompute_block`."""
    gradient: Tensor | None = None
    """The gradient behind the block that comes next for this tile."""

    def pop_gradient(self) -> Tensor:
        """Take the gradient out."""
        # Handed on without a reference left behind: the gradient is freed as soon as the block has used it.
        gradient, self.gradient = self.gradient, None
        return gradient


@dataclass
class BlockState:
    """Planes at the borders of the tiles that the wave is at, of one block whose adapter sees its neighbours."""

    z_ends: dict[int, Tensor] = field(default_factory=dict)
    """First and last planes of z, by t: [2, reach, positions, hidden]."""
    gv_behind: Tensor | None = None
    """v's gradient of the tile that was here before, at the planes next to the one that comes."""
    gv_pending: dict[int, PendingPlanes] = field(default_factory=dict)
    """v's gradient at the planes of another rank, by side, on its way."""


class SegmentWave:
    """The wave back through blocks `start` to `stop` - 1 of one window."""

    def __init__(
        self,
        wave: WaveState,
        start: int,
        stop: int,
        tiles: list[Tile],
        above: Gradients,
        below: ActivationStore | None,
    ):
        """above: gradients of the segment's output; below: takes those of its input, None if nobody wants them."""
        self.wave, self.start, self.stop, self.tiles = wave, start, stop, tiles
        self.above, self.below = above, below
        self.tile_states = [TileState() for _ in tiles]
        self.block_states = {index: BlockState() for index in range(start, stop)}
        self.blocks_with_halos = [i for i in range(start, stop) if i in wave.adapters and wave.adapters[i].reach]
        """Blocks whose adapters see planes of the neighbouring tiles."""

    def run(self) -> None:
        """Add the weights' gradients to `wave.weights`, and hand the input's to `below`."""
        depth = self.stop - self.start
        self.fetch(0)
        # In each step every block takes one tile, the one above first; the wave enters at the top and leaves below.
        for step in range(len(self.tiles) + depth - 1):
            # One step ahead of what is computed, so that copies from the host run beside it.
            self.fetch(step + 1)
            if step < len(self.tiles):
                with timed_part(RECOMPUTATION):
                    self.recompute_tile(step)
            # From the top of the segment down: a block's gradient is what the tile after it needs one block lower.
            for level in range(min(depth, step + 1)):
                if step - level < len(self.tiles):
                    self.backward_block(self.stop - 1 - level, step - level)

    def fetch(self, t: int) -> None:
        """Take the halos of tile t out of their store, and begin to copy back what the next one will need."""
        # A tile's neighbours need its halos too, so these are here one tile earlier than its saved input.
        for index in self.blocks_with_halos if t < len(self.tiles) else ():
            self.block_states[index].z_ends[t] = self.wave.halos.pop(self._halo_key(index, t))
        for index in self.blocks_with_halos if t + 1 < len(self.tiles) else ():
            self.wave.halos.prefetch(self._halo_key(index, t + 1))
        if t < len(self.tiles):
            self.wave.saved_inputs.prefetch((self.start, self.tiles[t]))
        if t + 1 < len(self.tiles):
            self.above.prefetch(self.tiles[t + 1])

    def _halo_key(self, index: int, t: int) -> tuple[int, int, int]:
        return index, self.tiles[t].window, self.tiles[t].index

    def z_beside(self, index: int, t: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the planes of z next to a tile: the left neighbour's last and the right one's first."""
        wave, window = self.wave, self.tiles[t].window
        beside: list[Tensor | None] = [None, None]
        # Tiles are counted in the order of the wave, which may run backwards through the video.
        for side, other in ((wave.behind, t - 1), (wave.ahead, t + 1)):
            if (ends := self.block_states[index].z_ends.get(other)) is not None:
                beside[side] = ends[1 - side]
            else:
                beside[side] = wave.from_ranks.get((index, window, side))
        return beside[LEFT], beside[RIGHT]

    def recompute_tile(self, t: int) -> None:
        """Compute the inputs of all blocks of the segment for one tile, from its saved input and the halos."""
        # Taken out: the memory of each tile's input is free as soon as the tile goes back.
        x_nlc = self.wave.saved_inputs.pop((self.start, self.tiles[t]))
        for index in range(self.start, self.stop):
            x_nlc = self.recompute_block(index, t, x_nlc, go_on=index < self.stop - 1)

    def recompute_block(self, index: int, t: int, x_nlc: Tensor, go_on: bool) -> Tensor | None:
        """Put down what backward of this block starts from, and return the next block's input if `go_on`.

        That is the block's input; or its graph, if graphs are held; or, where nothing flows through its frozen part,
        that part's output.
        """
        wave, tile, starts = self.wave, self.tiles[t], self.tile_states[t].starts
        adapter = wave.adapters.get(index)
        following = None
        if not wave.differentiates(index):
            with memory_scope("tile"):
                wave.transform.in_place(index, tile, x_nlc)
            starts[index] = x_nlc
            following = _copy(x_nlc) if go_on else None
        elif go_on and wave.settings.hold:
            with memory_scope("held graphs"):
                starts[index] = graph = wave.transform.graph(index, tile, x_nlc)
            # The graph's output must stay as it is where an adapter would add to it in place.
            following = graph[1].detach() if adapter is None else _copy(graph[1])
        else:
            # Without `go_on` the block is differentiated next: its graph is made then.
            starts[index] = x_nlc
            if go_on:
                following = _copy(x_nlc)
                with memory_scope("tile"):
                    wave.transform.in_place(index, tile, following)
        if go_on and adapter is not None:
            with memory_scope("tile"), timed_part("adapters"):
                z, _ = squeeze(following, adapter, wave.planes(tile))
                add_adapter_(following, z, *self.z_beside(index, t), adapter)
        return following

    def backward_block(self, index: int, t: int) -> None:
        """Differentiate one block on one tile, and hand the gradient down."""
        # At the top of the segment gradients come from above; the next tile's is needed beside this one's.
        for known in (t, t + 1):
            if known < len(self.tiles) and self.tile_states[known].gradient is None:
                with memory_scope("saved gradients"):
                    gradient = self.above.pop(self.tiles[known])
                self.receive_gradient(index, known, gradient)
        # Popped, not read: this frame must not hold the gradient while the block computes the next one.
        with memory_scope("tile"):
            gradient = self.through_block(index, t, self.tile_states[t].pop_gradient())
        if index > self.start:
            self.receive_gradient(index - 1, t, gradient)
        elif self.below is not None:
            self.below.save(self.tiles[t], gradient)

    def receive_gradient(self, index: int, t: int, gradient: Tensor) -> None:
        """Note a tile's gradient behind a block; what other ranks need of it is sent at once."""
        self.tile_states[t].gradient = gradient
        if index in self.blocks_with_halos:
            for side in self.wave.borders(t, len(self.tiles)):
                with timed_part("adapters"):
                    planes = self.gv_at(index, side, gradient)
                self.block_states[index].gv_pending[side] = self.wave.halo_exchange.exchange(side, planes)

    def gv_at(self, index: int, end: int, gradient: Tensor) -> Tensor:
        """Return v's gradient at one end of a tile."""
        backbone, adapter = self.wave.backbone, self.wave.adapters[index]
        patches_nlc = backbone.patch_tokens(gradient)
        # Of the clips at this end alone: without their class tokens, clips lie apart in memory and are copied.
        clips = planes_at(end, patches_nlc, min(-(-adapter.reach // backbone.clip_tubelets), len(patches_nlc)))
        planes = clips.unflatten(1, (backbone.clip_tubelets, -1)).flatten(0, 1)
        return through_up_and_pointwise(planes_at(end, planes, adapter.reach), adapter)

    def through_block(self, index: int, t: int, gradient: Tensor) -> Tensor | None:
        """Return the gradient of a block's input from that of its output; None where nobody wants it."""
        wave, tile = self.wave, self.tiles[t]
        start, adapter = self.tile_states[t].starts.pop(index), wave.adapters.get(index)
        differentiates = wave.differentiates(index)
        if differentiates and isinstance(start, Tensor):
            # Only an input was put down: now is its turn to get a graph.
            with timed_part(RECOMPUTATION):
                start = wave.transform.graph(index, tile, start)
        # The adapter's input is the output of the frozen part.
        x_nlc = start[1].detach() if differentiates else start
        if adapter is not None:
            with timed_part("adapters"):
                gradient = self.through_adapter(index, t, x_nlc, gradient, differentiates)
        if not differentiates:
            return None
        # It shares its memory with the graph's output, which autograd frees on its way.
        del x_nlc
        return self.through_transform(index, start, gradient)

    def through_adapter(self, index: int, t: int, x_nlc: Tensor, gradient: Tensor, pass_on: bool) -> Tensor | None:
        """Differentiate an adapter on one tile, with what its neighbours contribute.

        x_nlc: the adapter's input; pass_on: whether its gradient is wanted, None is returned otherwise.
        """
        wave, adapter, state = self.wave, self.wave.adapters[index], self.block_states[index]
        gv: list[Tensor | None] = [None, None]
        # Left by the tile that was here before; taken out, so that it is freed with this tile.
        gv[wave.behind], state.gv_behind = state.gv_behind, None
        if adapter.reach and t + 1 < len(self.tiles):
            # The next tile has come down to this block already: that is what the skew is for.
            gv[wave.ahead] = self.gv_at(index, wave.behind, self.tile_states[t + 1].gradient)
        for side in wave.borders(t, len(self.tiles)) if adapter.reach else ():
            gv[side] = state.gv_pending.pop(side)()
        borders = Borders(*self.z_beside(index, t), *gv)
        # No later tile is a neighbour of the one before this.
        state.z_ends.pop(t - 1, None)

        def add(name: str, part: Tensor) -> None:
            """Add a part of a weight's gradient to the sum over tiles."""
            wave.weights.add(f"blocks.{index}.adapter.{name}", part)

        planes, end = wave.planes(self.tiles[t]), wave.ahead
        gradient, gv_end = adapter_backward(x_nlc, gradient, borders, adapter, planes, add, pass_on, end)
        # The next tile asks for it; after a window's last tile nobody does.
        if gv_end is not None and t + 1 < len(self.tiles):
            state.gv_behind = gv_end
        return gradient

    def through_transform(self, index: int, graph: Graph, gradient: Tensor) -> Tensor:
        """Differentiate a block without its adapter, by autograd."""
        into, out = graph
        if out is into:
            # Both branches are dropped.
            return gradient
        weights = self.wave.transform.weights(index)
        learning = weights.learning
        # Weights of a branch that this tile drops aren't in the graph.
        into_gradient, *parts = torch.autograd.grad(out, [into, *learning.values()], gradient, allow_unused=True)
        parts = {name: part for name, part in zip(learning, parts, strict=True) if part is not None}
        for name, part in weights.gradients(parts).items():
            self.wave.weights.add(f"{self.wave.name_of(index)}.{name}", part)
        return into_gradient


def _copy(x_nlc: Tensor) -> Tensor:
    with memory_scope("window"):
        return x_nlc.detach().clone()
