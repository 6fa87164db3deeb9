"""The wave's way back through one segment: consecutive blocks, over the tiles of one window.

Tile t at block i comes right after tile t + 1 at block i + 1: see `adatad.memory.wave`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
from adatad.memory.exchange import LEFT, RIGHT, PendingPlanes
from adatad.memory.labels import label
from adatad.memory.offload import Shelf
from adatad.memory.tiles import Tile
from adatad.memory.transform import Graph
from adatad.models.vit import Block

if TYPE_CHECKING:
    from adatad.memory.wave import Wave


class Gradients(Protocol):
    """Of the tokens above a segment, by tile."""

    def want(self, tile: Tile) -> None: ...

    def take(self, tile: Tile) -> Tensor: ...


@dataclass(frozen=True)
class FromTheOutput:
    """Gradients that are made when they are needed."""

    gradient_of: Callable[[Tile], Tensor]

    def want(self, tile: Tile) -> None:
        pass

    def take(self, tile: Tile) -> Tensor:
        return self.gradient_of(tile)


class SegmentWave:
    """The wave through blocks `start` to `stop` - 1 of one window. `t` counts its tiles."""

    def __init__(
        self,
        wave: Wave,
        start: int,
        stop: int,
        tiles: list[Tile],
        above: Gradients,
        below: Shelf | None,
    ):
        self.wave, self.start, self.stop, self.tiles = wave, start, stop, tiles
        self.above, self.below = above, below
        self.looking = [i for i in range(start, stop) if i in wave.adapters and wave.adapters[i].reach]
        """Blocks whose adapters see neighbours."""
        self.halos: dict[tuple[int, int], Tensor] = {}
        """Block, t: of the tiles that the wave is at, and their neighbours."""
        self.waiting: dict[tuple[int, int], Tensor | Graph] = {}
        """(t, block): what backward will start from there; see `enter`."""
        self.gradients: dict[int, Tensor] = {}
        """t: gradient at the level that this tile has come down to."""
        self.gv_behind: dict[int, Tensor] = {}
        """Block: v's gradient of the tile that was there before, at the planes next to this one."""
        self.gv_arriving: dict[tuple[int, int], PendingPlanes] = {}
        """Block, side: v's gradient at the planes of the rank there."""

    def run(self) -> None:
        depth = self.stop - self.start
        self.fetch(0)
        for step in range(len(self.tiles) + depth - 1):
            self.fetch(step + 1)
            if step < len(self.tiles):
                self.rebuild(step)
            for level in range(min(depth, step + 1)):
                if step - level < len(self.tiles):
                    self.descend(self.stop - 1 - level, step - level)

    def fetch(self, t: int) -> None:
        """Halos of a tile, which its neighbours need; and what is on the host of the tile after it sets out."""
        for ahead, known in ((False, t), (True, t + 1)):
            for index in self.looking if known < len(self.tiles) else ():
                key = index, self.tiles[known].window, self.tiles[known].index
                if ahead:
                    self.wave.halos.want(key)
                else:
                    self.halos[index, known] = self.wave.halos.take(key)
        if t < len(self.tiles):
            self.wave.rows.want((self.start, self.tiles[t]))
        if t + 1 < len(self.tiles):
            self.above.want(self.tiles[t + 1])

    def neighbours(self, index: int, t: int) -> tuple[Tensor | None, Tensor | None]:
        """Planes of z next to a tile: the left neighbour's last and the right one's first."""
        wave, window = self.wave, self.tiles[t].window
        beside: list[Tensor | None] = [None, None]
        for side, other in ((wave.behind, t - 1), (wave.ahead, t + 1)):
            if (halo := self.halos.get((index, other))) is not None:
                beside[side] = halo[1 - side]
            else:
                beside[side] = wave.from_ranks.get((index, window, side))
        return beside[LEFT], beside[RIGHT]

    def rebuild(self, t: int) -> None:
        """The inputs of all blocks of the segment for one tile, from its kept row and the halos."""
        tile = self.tiles[t]
        x = self.wave.rows.take((self.start, tile))
        for index in range(self.start, self.stop):
            above = None if index == self.stop - 1 else index + 1
            x = self.enter(index, t, tile, x, above is not None)

    def enter(self, index: int, t: int, tile: Tile, x: Tensor, go_on: bool) -> Tensor | None:
        """Put down what backward of this block starts from: its input, its graph (hold), or, where nothing flows
        through its frozen part, that part's output. Returns the next block's input if it is wanted."""
        wave, adapter = self.wave, self.wave.adapters.get(index)
        following = None
        if not wave.differentiates(index):
            with label("tile"):
                wave.transform.in_place(index, tile, x)
            self.waiting[t, index] = x
            following = _copy(x) if go_on else None
        elif go_on and wave.settings.hold:
            with label("held graphs"):
                self.waiting[t, index] = graph = wave.transform.graph(index, tile, x)
            following = graph[1].detach() if adapter is None else _copy(graph[1])
        else:
            self.waiting[t, index] = x
            if go_on:
                following = _copy(x)
                with label("tile"):
                    wave.transform.in_place(index, tile, following)
        if go_on and adapter is not None:
            with label("tile"):
                z, _ = squeeze(following, adapter, wave.planes(tile))
                add_adapter_(following, z, *self.neighbours(index, t), adapter)
        return following

    def descend(self, index: int, t: int) -> None:
        """Backward of one block for one tile."""
        tile = self.tiles[t]
        for known in (t, t + 1):
            if known < len(self.tiles) and known not in self.gradients:
                with label("gradient rows"):
                    gradient = self.above.take(self.tiles[known])
                self.reached(index, known, gradient)
        with label("tile"):
            gradient = self.through_block(index, t, tile, self.gradients.pop(t))
        if index > self.start:
            self.reached(index - 1, t, gradient)
        elif self.below is not None:
            self.below.put(tile, gradient)

    def reached(self, index: int, t: int, gradient: Tensor) -> None:
        """A tile's gradient stands behind a block: what other ranks need of it leaves at once."""
        self.gradients[t] = gradient
        if index in self.looking:
            for side in self.wave.borders(t, len(self.tiles)):
                planes = self.gv_at(index, side, gradient)
                self.gv_arriving[index, side] = self.wave.halo_exchange.exchange(side, planes)

    def gv_at(self, index: int, end: int, gradient: Tensor) -> Tensor:
        """v's gradient at one end of a tile."""
        adapter = self.wave.adapters[index]
        positions = gradient.shape[1] // self.wave.backbone.clip_tubelets
        planes = gradient.view(-1, positions, gradient.shape[-1])
        return through_up_and_pointwise(planes_at(end, planes, adapter.reach), adapter)

    def through_block(self, index: int, t: int, tile: Tile, gradient: Tensor) -> Tensor | None:
        wave = self.wave
        waiting, adapter = self.waiting.pop((t, index)), wave.adapters.get(index)
        flows = wave.differentiates(index)
        if flows and isinstance(waiting, Tensor):
            waiting = wave.transform.graph(index, tile, waiting)
        behind = waiting[1].detach() if flows else waiting
        if adapter is not None:
            gradient = self.through_adapter(index, t, tile, behind, gradient, flows)
        if not flows:
            return None
        del behind
        return self.through_transform(index, waiting, gradient)

    def through_adapter(
        self, index: int, t: int, tile: Tile, behind: Tensor, gradient: Tensor, flows: bool
    ) -> Tensor | None:
        wave, adapter = self.wave, self.wave.adapters[index]
        gv: list[Tensor | None] = [None, None]
        gv[wave.behind] = self.gv_behind.pop(index, None)
        if adapter.reach and t + 1 < len(self.tiles):
            gv[wave.ahead] = self.gv_at(index, wave.behind, self.gradients[t + 1])
        for side in wave.borders(t, len(self.tiles)) if adapter.reach else ():
            gv[side] = self.gv_arriving.pop((index, side))()
        borders = Borders(*self.neighbours(index, t), *gv)
        self.halos.pop((index, t - 1), None)

        def add(name: str, part: Tensor) -> None:
            wave.weights.add(f"blocks.{index}.adapter.{name}", part)

        planes, end = wave.planes(tile), wave.ahead
        gradient, gv_end = adapter_backward(behind, gradient, borders, adapter, planes, add, flows, end)
        if gv_end is not None and t + 1 < len(self.tiles):
            self.gv_behind[index] = gv_end
        return gradient

    def through_transform(self, index: int, graph: Graph, gradient: Tensor) -> Tensor:
        into, out = graph
        if out is into:
            return gradient
        weights = self.wave.transform.weights(index)
        learning = weights.learning
        # Weights of a branch that this tile drops aren't in the graph.
        into_gradient, *parts = torch.autograd.grad(out, [into, *learning.values()], gradient, allow_unused=True)
        parts = {name: part for name, part in zip(learning, parts, strict=True) if part is not None}
        for name, part in weights.gradients(parts).items():
            self.wave.weights.add(f"blocks.{index}.{name}", part)
        return into_gradient


def trained_outside_adapter(block: Block) -> dict[str, Tensor]:
    """Trained parameters of a block but for its adapter's, by their names in the block."""
    named = block.named_parameters()
    return {name: p for name, p in named if p.requires_grad and not name.startswith("adapter.")}


def _copy(x: Tensor) -> Tensor:
    with label("window"):
        return x.detach().clone()
