"""From the weighed pieces to a whole step: what is on the device at its fullest moments, and how much is computed.

The peak is the largest of a few moments: the stream forward, the detector, the backward of the segment that is fullest,
and the update. The wave's backward is followed with sizes in place of tensors, from a segment's first tile until the
wave is full; after that it only empties. (docs/memory.md has the pictures, `adatad.memory.wave` the code.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from adatad.memory.offload import PIECE_BYTES, STAGING_BUFFERS
from adatad.memory.scale import Cost
from adatad.memory.unit_costs import BlockTile, Held
from adatad.memory.units import Units
from adatad.parallel.adamw import RoundedAdamW
from adatad.spec.schema import MemorySpec

Bytes = Counter
"""By category, as the meter's labels say it."""


@dataclass(frozen=True)
class Wave:
    """A resolved policy tile."""

    tile_clips: int
    segment_blocks: int
    hold: bool
    by_blocks: bool
    saved_on_host: bool
    saved_in_8_bits: bool
    """Kept rows are in 8 bits."""
    halos_on_host: bool
    frames_on_host: bool
    streamed: bool
    """Frozen blocks come from the host when they are wanted."""


@dataclass
class Work:
    """Of a micro-batch: FLOPs, kernels, seconds-to-be of what runs (FLOPs, kernels, times), and bytes copied to the
    device and from it while it runs."""

    flops: int = 0
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    into: int = 0
    out: int = 0

    def add(self, cost: Cost, times: int = 1, share: float = 1.0) -> None:
        """share: what its FLOPs are on average, where some tiles are shorter."""
        if times > 0 and cost.kernels:
            self.flops += int(cost.flops * times * share)
            self.runs.append((int(cost.flops * share), cost.kernels, times))


@dataclass
class Step:
    """Moments by name, with what is on the device then, beside weights and what belongs to them; bytes on the host."""

    moments: dict[str, Bytes] = field(default_factory=dict)
    host: Bytes = field(default_factory=Counter)
    work: Work = field(default_factory=Work)

    def note(self, name: str, content: Bytes) -> None:
        if name not in self.moments or sum(content.values()) > sum(self.moments[name].values()):
            self.moments[name] = content


# Policies none, selective and block


def plain_step(units: Units, policy: str) -> Step:
    """Every block over the whole micro-batch."""
    step, outer, embed = Step(), units.outer, units.embedding(policy)
    frames = Bytes({"frames": units.frame_bytes})
    # One window's clips are a view of it.
    copy = units.frame_bytes if units.windows > 1 else 0
    layers = [units.layer(policy, kind) for kind in units.kinds[: _last_run(units) + 1]]
    base = frames + Bytes(detector=outer.forward)
    step.note("patch embedding", base + Bytes({"tile": copy + embed.run.peak}))
    saved, tokens = embed.kept, embed.output
    listed = _listed(units)
    for index, layer in enumerate(layers):
        coming_in = 0 if index - 1 in listed else tokens
        content = Bytes({"saved activations": saved + coming_in, "tile": copy + layer.run.peak})
        step.note("forward", base + content)
        saved += layer.kept + (tokens if index in listed else 0)
        step.work.add(layer.run)
    step.work.add(embed.run)
    if units.side:
        _side_forward(step, units, policy, base, copy, saved)
        return step
    saved_at_end = Bytes({"saved activations": saved})
    step.note("detector", frames + saved_at_end + Bytes(detector=outer.between))
    # Nobody needs frames any more.
    base = Bytes(detector=outer.backward)
    for index in reversed(range(len(layers))):
        layer = layers[index]
        if not layer.back.kernels:
            break
        sums = Bytes(gradients=sum(above.sums for above in layers[index + 1 :]))
        step.note("backward", base + sums + Bytes({"saved activations": saved, "tile": layer.back.peak}))
        saved -= layer.kept - layer.casts
        step.work.add(layer.back)
    step.work.add(embed.back)
    return step


def _last_run(units: Units) -> int:
    return max(_listed(units)) if units.side else len(units.kinds) - 1


def _listed(units: Units) -> tuple[int, ...]:
    """Blocks whose outputs adapters beside the backbone read."""
    if not units.side:
        return ()
    blocks = units.spec.model.backbone.adapter.blocks
    return tuple(range(len(units.kinds))) if blocks == "all" else tuple(sorted(blocks))


def _side_forward(step: Step, units: Units, policy: str, base: Bytes, copy: int, listed: int) -> None:
    """Adapters beside the backbone, one after the other, over the listed outputs."""
    layer, outer, count = units.side_layer(policy), units.outer, units.side_adapters
    tokens = layer.output
    # Beside the listed outputs: what adapters keep, and the sum before and behind the last of them.
    own = layer.kept - tokens * layer.holds
    content = {"saved activations": listed + own * (count - 1) + tokens * (count > 1)}
    step.note("forward", base + Bytes({**content, "tile": copy + layer.run.peak - tokens}))
    saved = Bytes({"saved activations": layer.kept * count})
    step.note("detector", Bytes(frames=units.frame_bytes) + saved + Bytes(detector=outer.between))
    step.note("backward", saved + Bytes({"detector": outer.backward, "tile": layer.back.peak}))
    step.work.add(layer.run, count)
    step.work.add(layer.back, count)


# Policy tile


def tiled_step(units: Units, wave: Wave) -> Step:
    if units.side:
        return _side_step(units, wave)
    return _WaveStep(units, wave).step()


def tile_count(units: Units, wave: Wave) -> int:
    """Of a window."""
    return -(-units.clips // wave.tile_clips)


def _frames(units: Units, wave: Wave) -> Bytes:
    """On the device all the time; or a tile's and the next one's."""
    if not wave.frames_on_host:
        return Bytes(frames=units.frame_bytes)
    tile = min(wave.tile_clips, units.clips)
    return Bytes(frames=min(2, tile_count(units, wave)) * units.frame_bytes // units.windows * tile // units.clips)


def _side_step(units: Units, wave: Wave) -> Step:
    step, outer, full = Step(), units.side_outer, units.windows * tile_count(units, wave)
    tile = units.tile(wave.tile_clips, "below", hold=True)
    embed, _ = units.embedding_tile(wave.tile_clips)
    frames, row = _frames(units, wave), units.row_bytes(wave.tile_clips)
    rows = row if not wave.by_blocks else units.row_bytes(units.clips) * units.windows
    streamed = Bytes({"frozen weights": 2 * units.held("tile").largest_frozen_block * wave.streamed})
    streamed["weight casts"] = tile.copies * (1 if wave.by_blocks else max(_listed(units)) + 1)
    adapter = units.side_visit(wave.tile_clips)
    reads = len(_listed(units))
    # The tile before, and what its last visit made, go when the next ones come.
    left_over = 0 if wave.by_blocks or full == 1 else row
    narrow = row * units.side_hidden // units.sizes.width
    for name, base, visit, made in (
        ("forward", outer.forward, adapter[0], 1), ("backward", outer.backward, adapter[1], 3),
    ):  # fmt: skip
        work = max(tile.run.peak, visit.peak, embed.peak - row) + left_over + made * narrow
        step.note(name, frames + streamed + Bytes({"detector": base, "tile": rows + work}))
        share = units.clips / (tile_count(units, wave) * wave.tile_clips)
        step.work.add(embed, full, share)
        step.work.add(tile.run, full * (max(_listed(units)) + 1), share)
        step.work.add(visit, full * reads, share)
    between = frames if not wave.frames_on_host else Bytes()
    step.note("detector", between + Bytes(detector=outer.between))
    if wave.frames_on_host:
        step.work.into += 2 * units.frame_bytes
    return step


class _WaveStep:
    """One step under the wave, of one spec."""

    def __init__(self, units: Units, wave: Wave):
        self.units, self.wave = units, wave
        self.tiles = tile_count(units, wave)
        self.kinds = units.kinds
        self.row = units.row_bytes(wave.tile_clips)
        self.all_experiments = units.row_bytes(units.clips) * units.windows
        # Of a kept row, as a share of a row in work.
        self.kept_share = units.coded_row_share() if wave.saved_in_8_bits else 1.0
        self.all_kept = int(self.kept_share * self.all_experiments)
        weighed = {kind: units.tile(wave.tile_clips, kind, wave.hold) for kind in set(self.kinds)}
        self.blocks: list[BlockTile] = [weighed[kind] for kind in self.kinds]
        self.held = units.held("tile")
        first = next((i for i, kind in enumerate(self.kinds) if kind != "below"), None)
        k = wave.segment_blocks
        starts = [] if first is None else range(first, len(self.kinds), k)
        self.segments = [(start, min(start + k, len(self.kinds))) for start in starts]
        self.embed, self.embed_back = units.embedding_tile(wave.tile_clips)
        self.casts = sum(block.casts for block in self.blocks)
        self.frames = _frames(units, wave)
        self.last_share = units.clips / wave.tile_clips - (self.tiles - 1)
        entered = [self.entered(index) for index in range(len(self.kinds))]
        self.graphs_below = [0, *accumulate(graph for graph, _ in entered)]
        self.copies_below = [0, *accumulate(copy for _, copy in entered)]

    def step(self) -> Step:
        step, outer, units, wave = Step(), self.units.outer, self.units, self.wave
        base = self.frames + Bytes({"adapter casts": self.casts, "offload buffers": self.buffers()})
        forward = base + Bytes(detector=outer.forward, features=0 if wave.by_blocks else outer.timeline)
        # Blocks go through the stream together, or one after the other.
        copies = [block.copies for block in self.blocks]
        forward["weight casts"] = max(copies) if wave.by_blocks else sum(copies)
        for content in self.by_blocks() if wave.by_blocks else self.by_tiles():
            step.note("forward", forward + content + self.streamed(range(1), range(1)))
        kept = self.kept_rows(len(self.segments)) + self.kept_halos(0)
        # Frames are there until the losses are known, and for the patch embedding's gradients; those that come from the
        # host in forward alone.
        without = base - self.frames
        step.note("detector", (without if wave.frames_on_host else base) + kept + Bytes(detector=outer.between))
        again = self.kinds[0] == "full" and not wave.frames_on_host
        backward = (base if again else without) + Bytes(
            {"detector": outer.backward, "saved gradients": outer.timeline // 2}
        )
        for number in self.fullest_segments():
            start, stop = self.segments[number]
            following = range(*self.segments[number - 1]) if number else range(0)
            there = backward + self.streamed(range(start, stop), following)
            there["weight casts"] += sum(copies[start:stop])
            for window in range(min(2, units.windows)):
                for content in self.segment(number, window):
                    step.note(f"backward of blocks {start} to {stop - 1}", there + content)
        if self.segments and self.kinds[0] == "full":
            frames = self.frames if wave.frames_on_host else Bytes()
            step.note("backward of the patch embedding", backward + frames + self.at_the_bottom())
        self.count_work(step)
        rows = int((len(self.segments) * self.kept_share + wave.by_blocks) * units.windows * self.tiles * self.row)
        step.host = Bytes({"saved inputs": rows if wave.saved_on_host else 0})
        if wave.halos_on_host:
            each = max(block.halo for block in self.blocks)
            step.host["halos"] = each * sum(block.halo > 0 for block in self.blocks) * units.windows * self.tiles
        return step

    def streamed(self, blocks: range, following: range) -> Bytes:
        """Frozen weights that are there for a while: of the blocks in work, and those that come next."""
        one = self.held.largest_frozen_block if self.wave.streamed else 0
        return Bytes({"frozen weights": (len(blocks) + len(following)) * one})

    def buffers(self) -> int:
        """That copies to the host leave from."""
        halo = max(block.halo for block in self.blocks) if self.wave.halos_on_host and self.segments else 0
        sizes = {self.kept_share} if self.segments else set()
        sizes |= {1.0} if self.wave.by_blocks else set()
        row = int(self.row * sum(sizes)) if self.wave.saved_on_host else 0
        return STAGING_BUFFERS * (row + halo)

    def kept_rows(self, segments: int) -> Bytes:
        return Bytes({"saved inputs": 0 if self.wave.saved_on_host else segments * self.all_kept})

    def kept_halos(self, below: int) -> Bytes:
        """Of all blocks from number `below` up."""
        if self.wave.halos_on_host or not self.segments:
            return Bytes()
        return Bytes(halos=sum(block.halo for block in self.blocks[below:]) * self.units.windows * self.tiles)

    # Forward

    def by_tiles(self) -> Iterator[Bytes]:
        """The stream, from when the last tile is embedded until it leaves. Tile t has come through `a` adapters when
        t + a tiles have entered."""
        waiting = [i for i, kind in enumerate(self.kinds) if kind in ("first", "adapter")]
        all_tiles, stages = self.units.windows * self.tiles, len(waiting)
        widest = max((block.run.peak for block in self.blocks), default=0)
        yield self.stream_content(waiting, all_tiles - 1, self.embed.peak)
        for entered in range(all_tiles, all_tiles + stages + 1):
            yield self.stream_content(waiting, entered, self.row + widest)

    def stream_content(self, waiting: list[int], entered: int, moving: int) -> Bytes:
        """When some tiles have entered and one is `moving`. waiting: blocks that a tile waits at."""
        all_tiles, stages = self.units.windows * self.tiles, len(waiting)
        stops = [index for number, index in enumerate(waiting) if 1 <= entered - number <= all_tiles]
        flying = len(stops) * self.row + sum(self.blocks[index].squeeze.kept for index in stops)
        # Whoever took a tile out of the stream has it until the next one comes.
        content = Bytes(tile=flying + moving + self.row * (entered > stages))
        if self.segments and not self.wave.saved_on_host:
            behind = [sum(index < start for index in waiting) for start, _ in self.segments]
            passed = sum(min(all_tiles, max(0, entered - a)) for a in behind)
            content["saved inputs"] = passed * self.all_kept // all_tiles
        if self.segments and not self.wave.halos_on_host:
            content["halos"] = sum(
                self.blocks[index].halo * min(all_tiles, max(0, entered - number))
                for number, index in enumerate(waiting)
            )
        return content

    def by_blocks(self) -> Iterator[Bytes]:
        """A whole set of rows on its way, beside the kept ones: at the last block; when the last tile is embedded; and
        when all are pooled, for which the features are made only then."""
        moving = self.all_experiments if not self.wave.saved_on_host else 2 * self.row
        narrow = max(block.squeeze.kept for block in self.blocks)
        work = max(block.run.peak for block in self.blocks) + 2 * narrow + self.row * (narrow > 0)
        content = Bytes(tile=moving + work)
        if self.segments:
            content += self.kept_rows(len(self.segments)) + self.kept_halos(0)
        yield content
        first = self.kept_rows(int(bool(self.segments) and self.segments[0][0] == 0))
        yield first + Bytes(tile=moving - self.row + self.embed.peak)
        yield content - Bytes(tile=work) + Bytes(features=self.units.outer.timeline)

    # Backward

    def fullest_segments(self) -> list[int]:
        last = len(self.segments) - 1
        return sorted({max(last, 0), max(last - 1, 0), 0} if self.segments else set())

    def segment(self, number: int, window: int) -> Iterator[Bytes]:
        """What a window's wave through a segment has on the device, at each of its steps. The first finds the most
        rows, the second finds all sums of gradients made."""
        start, stop = self.segments[number]
        depth, tiles, top = stop - start, self.tiles, number == len(self.segments) - 1
        wanted = number > 0 or self.kinds[0] == "full"
        for t in range(min(tiles + depth - 1, depth + 2)):
            rest = self.rows_beside(number, window, top, wanted, t) + self.halos_of(start, stop, window, t)
            rest["gradients"] += sum(self.sums(index) for index in range(stop, len(self.kinds)))
            gradients = min(t + 2, tiles) - max(0, t - depth + 1)
            rest["saved gradients"] += max(gradients, 1) * self.row - (1 - self.last_share) * self.row * (t + 2 > tiles)
            made = depth if window else min(depth, t + 1)
            rest["gradients"] += sum(self.sums(stop - 1 - level) for level in range(made))
            fullest = Bytes()
            if t < tiles:
                entering = max((self.blocks[i].graph.peak for i in range(start, stop - 1)), default=0)
                work = max(self.blocks[stop - 1].top.peak, entering - self.last_entered(start, stop))
                fullest = self.waiting(start, stop, t, 0, work)
            for level in self.turns(start, stop):
                if level <= t and t - level < tiles:
                    content = self.waiting(start, stop, t, level, self.blocks[stop - 1 - level].low.peak)
                    fullest = max(fullest, content, key=lambda content: sum(content.values()))
            yield rest + fullest

    def turns(self, start: int, stop: int) -> list[int]:
        """Of the levels below the top, the first of each kind of block: later ones find less."""
        levels = {self.kinds[stop - 1 - level]: level for level in range(stop - start - 1, 0, -1)}
        return sorted(levels.values())

    def last_entered(self, start: int, stop: int) -> int:
        return self.blocks[stop - 2].graph.kept if stop - start > 1 else 0

    def waiting(self, start: int, stop: int, t: int, level: int, work: int) -> Bytes:
        """Graphs, and inputs of blocks, of all tiles of the wave in step t when levels below `level` are done."""
        graphs = inputs = 0.0
        for other in range(max(0, t - (stop - start) + 1), min(t, self.tiles - 1) + 1):
            done = t - other + (t - other < level)
            highest = stop - 1 - done
            if highest < start:
                continue
            share = self.share(other)
            graphs += share * (self.graphs_below[min(highest + 1, stop - 1)] - self.graphs_below[start])
            inputs += share * (self.row + self.copies_below[highest] - self.copies_below[start])
        share = self.share(t - level)
        return Bytes({"held graphs": int(graphs), "window": int(inputs), "tile": int(share * work)})

    def share(self, t: int) -> float:
        """Of a whole tile that a tile is: the last of a window may be shorter."""
        return self.last_share if t == self.tiles - 1 else 1.0

    def entered(self, index: int) -> tuple[int, int]:
        """What `enter` makes of a tile: graph and output, and a copy for the next block."""
        block = self.blocks[index]
        carries = self.kinds[index] != "bare" and block.squeeze.kept > 0
        if not self.wave.hold or self.kinds[index] == "first":
            return 0, self.row
        copy = self.row if carries else 0
        return block.graph.kept - copy, copy

    def sums(self, index: int) -> int:
        """Of a block's weight gradients."""
        kind = self.kinds[index]
        if kind == "full":
            return self.held.trained_block
        return self.held.adapter if kind in ("first", "adapter") else 0

    def rows_beside(self, number: int, window: int, top: bool, wanted: bool, t: int) -> Bytes:
        """Kept rows of this segment and those below it, gradients that wait above and below it."""
        if self.wave.saved_on_host:
            # The next ones, on their way.
            row = int(self.kept_share * self.row)
            gradients = row * (not top and t + 2 < self.tiles)
            return Bytes({"saved inputs": row * (t + 1 < self.tiles), "saved gradients": gradients})
        depth, before = self.segments[number][1] - self.segments[number][0], window * self.tiles
        all_tiles = self.units.windows * self.tiles
        own = all_tiles - before - min(t + 1, self.tiles)
        above = 0 if top else all_tiles - before - min(t + 2, self.tiles)
        below = before + max(0, t + 1 - depth) if wanted else 0
        each = self.all_kept / all_tiles
        return Bytes({
            "saved inputs": int(number * self.all_kept + own * each), "saved gradients": int((above + below) * each)
        })  # fmt: skip

    def halos_of(self, start: int, stop: int, window: int, t: int) -> Bytes:
        """Of this segment's blocks and those below it."""
        inside = list(enumerate(reversed(self.blocks[start:stop])))
        if self.wave.halos_on_host:
            known = min(t + 3, self.tiles)
            return Bytes(halos=sum(block.halo * max(0, known - max(0, t - level - 1)) for level, block in inside))
        all_tiles = self.units.windows * self.tiles
        below = sum(block.halo for block in self.blocks[:start]) * all_tiles
        left = all_tiles - window * self.tiles
        own = sum(block.halo * (left - max(0, min(t - level - 1, self.tiles))) for level, block in inside)
        return Bytes(halos=below + own)

    def at_the_bottom(self) -> Bytes:
        """Mode full: gradients of the tokens wait, those of all blocks are summed."""
        sums = sum(self.sums(index) for index in range(len(self.kinds)))
        # What the tile before has made is there until the next one's takes its place.
        work = self.embed_back.peak + self.embed_back.kept * (self.units.windows * self.tiles > 1)
        return Bytes({"saved gradients": self.all_experiments, "gradients": sums, "tile": work})

    # Work

    def count_work(self, step: Step) -> None:
        units, wave, work, count = self.units, self.wave, step.work, self.units.windows * self.tiles
        share = units.clips / (self.tiles * wave.tile_clips)
        costs = [self.embed, *(cost for block in self.blocks for cost in (block.run, block.squeeze, block.add))]
        for start, stop in self.segments:
            for index in range(start, stop):
                block, top = self.blocks[index], index == stop - 1
                if not top or self.kinds[index] == "first":
                    costs.append(block.run if top else block.graph)
                costs.append(block.top if top else block.low)
        if self.kinds[0] == "full":
            costs.append(self.embed_back)
        for cost in costs:
            work.add(cost, count, share)
        moved = 0
        if wave.saved_on_host:
            moved += 2 * len(self.segments) * self.all_kept
            if wave.by_blocks:
                moved += len(self.kinds) * self.all_experiments
        if wave.halos_on_host:
            moved += sum(block.halo for block in self.blocks) * count
        work.out += moved
        work.into += moved + (units.frame_bytes if wave.frames_on_host else 0)


# The update


def moment_share(memory: MemorySpec) -> float:
    """What AdamW's moments take between steps of what they take in fp32."""
    return 0.5 if memory.moment_dtype == "bf16" else 1.0


def update_bytes(held: Held, memory: MemorySpec) -> int:
    """Beside weights, moments and gradients: two copies of the largest tensor, and the moments of a piece of the
    parameters, where they aren't there in fp32; or what rounds them."""
    on_host, rounded = memory.optimizer_state == "host", memory.moment_dtype == "bf16"
    piece_bytes = RoundedAdamW.piece_bytes if rounded else PIECE_BYTES
    together = min(held.largest_group, max(piece_bytes, held.largest_trained))
    copies = 2 * held.largest_trained
    if not rounded:
        return copies + 2 * together * on_host
    # Both moments in fp32 and bf16; beside them the draws and three temporaries in their making, 32 bits a number.
    return together * (2 + on_host) + max(copies, 4 * together)
