"""Adds measured costs up to a step: what is on the device at its fullest, what waits on the host, what is computed.

A step goes forward through parts (a block over whole windows, or a segment of blocks on tiles), through the detector,
and back through the parts in reverse. Each part keeps something from its forward to its backward and needs room to
work in, so that the peak is the largest of a few sums. `adatad.memory.costs` measures what the sums are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from adatad.memory.costs import CostProbe, Run, TileCost
from adatad.memory.inputs import ahead_bytes
from adatad.memory.offload import PIECE_BYTES, STAGING_BUFFERS
from adatad.memory.policy import DTYPES, policy_ranges
from adatad.parallel.adamw import RoundedAdamW
from adatad.parallel.layout import gathered_bytes, held_bytes
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS, MemorySpec


@dataclass
class Part:
    """Consecutive blocks that go back together, in bytes. kept: from forward to backward; work, back: at most in
    forward and in backward, beside what all parts keep; sums: weight gradients that its backward leaves."""

    kept: Counter = field(default_factory=Counter)
    work: float = 0.0
    back: float = 0.0
    sums: float = 0.0


@dataclass
class Step:
    """The step of a micro-batch. memory: with tiles and segments as they will be; accumulates: it isn't the only one;
    ahead: a second stream prepares frames.

    content, moment: bytes on the device at the fullest moment, by category, and its name; host: bytes there; runs: what
    runs how often; copied, copied_at_end: bytes copied while it runs, in the busier direction, and beside nothing at
    the end of the step.
    """

    costs: CostProbe
    memory: MemorySpec
    engine: str = "ddp"
    ranks: int = 1
    accumulates: bool = False
    ahead: bool = True

    def __post_init__(self) -> None:
        costs, memory = self.costs, self.memory
        self.runs: list[tuple[Run, float]] = [(costs.outer.run, 1.0)]
        self.host, self.copied = Counter(), 0.0
        ranges = policy_ranges(memory, costs.depth)
        self.tiled = any(policy == "tile" for _, _, policy in ranges)
        self.weights = costs.weights(memory.model_copy(update={"policy": "tile" if self.tiled else "none"}))
        self.trained_blocks = sum(trained for _, trained in self.weights.blocks)
        run = sum(frozen for frozen, _ in self.weights.blocks[: costs.run_depth])
        self.streamed = run if memory.frozen_weights == "stream" else 0
        sharded = self.streamed > 0 or self.engine in SHARDS_FROZEN_WEIGHTS or memory.frozen_dtype != "auto"
        self.by_blocks = memory.order == "blocks" or (memory.order == "auto" and sharded)
        self._add_up([part for span in ranges for part in self._parts(*span)])

    def _add_up(self, parts: list[Part]) -> None:
        memory, costs, weights, trained = self.memory, self.costs, self.weights, self.weights.trained
        rule = held_bytes(self.engine, self.ranks, weights.frozen, trained)
        moments = dict(self._moments(parts))
        moments["update"] = Counter({"gradients": rule.gradients, "update": self._update()})
        self.moment, content = max(moments.items(), key=lambda item: item[1].total())
        content["frozen weights"] = weights.frozen - self.streamed if self.streamed else rule.frozen
        content["trained weights"], content["buffers"] = rule.trained, weights.buffers
        if self.ahead:
            content["frames ahead"] = ahead_bytes(costs.spec, memory, costs.frame_bytes, costs.windows)
        share = 0.5 if memory.moment_dtype == "bf16" else 1.0
        self.copied_at_end = 2 * trained * (self.ranks > 1)
        for name, place, here, there in (
            ("optimizer state", memory.optimizer_state, share * rule.optimizer, 2 * share * trained),
            ("moving average", memory.moving_average, rule.average, trained),
        ):
            if place == "host":
                self.host[name], self.copied_at_end = there, self.copied_at_end + 2 * there
            else:
                content[name] = here
        self.host["frozen weights"] = self.streamed
        self.copied += 2 * self.streamed
        if self.engine in SHARDS_FROZEN_WEIGHTS:
            self.copied += 2 * (weights.frozen + trained) * (self.ranks - 1) / self.ranks
        self.content, self.host = (
            +Counter({name: int(size) for name, size in kinds.most_common()}) for kinds in (content, self.host)
        )

    def _moments(self, parts: list[Part]) -> Iterator[tuple[str, Counter]]:
        """Yield the fullest moment of forward, detector and backward."""
        costs, memory, outer, trained = self.costs, self.memory, self.costs.outer, self.weights.trained
        frames = Counter(frames=costs.frame_bytes)
        if memory.frames == "host":
            frames = Counter(frames=min(2 * memory.tile_clips * costs.clip_bytes, costs.frame_bytes))
            self.host["frames"] = costs.frame_bytes
            self.copied += costs.frame_bytes * (2 if costs.mode in ("full", "side") else 1)
        # Gradients of the micro-batch before, and until its losses are replaced what its graph holds for good.
        before, kept = Counter(gathered=self._gathered()), Counter()
        rest = before.copy()
        if self.accumulates:
            casts = sum(part.kept["adapter casts"] for part in parts)
            before += Counter({"gradients": trained, "adapter casts": casts})
            rest += Counter(gradients=self.trained_blocks)
        forward, backward, sums = [], [], 0.0
        for part in parts:
            forward.append(kept + frames + before + Counter({"in work": part.work}))
            kept = kept + part.kept
        yield "forward", max(forward, key=Counter.total)
        between = kept + before + Counter(detector=max(outer.work, outer.kept + outer.back))
        yield "detector", between + frames if memory.frames == "device" else between
        if self.tiled and costs.mode in ("full", "side"):
            rest += frames
        for part in reversed(parts):
            content = Counter({"detector": outer.left, "in work": part.back, "gradients": sums})
            backward.append(kept + content + rest)
            kept, sums = kept - part.kept, sums + part.sums
        yield "backward", max(backward, key=Counter.total)

    def _parts(self, first: int, last: int, policy: str) -> Iterator[Part]:
        if self.costs.mode == "side":
            yield self._beside()
        elif policy == "tile":
            yield from self._tiles(first, last)
        else:
            yield from (self._plain(index, policy) for index in range(first, last + 1))

    def _carries(self, index: int) -> bool:
        return self.costs.mode == "full" or index in self.costs.carrying

    # Whole windows

    def _plain(self, index: int, policy: str) -> Part:
        costs = self.costs
        lowest, block = costs.lowest(policy), costs.block(policy, self._carries(index))
        going, back = lowest if index == 0 else block, lowest if index == costs.first_trained else block
        self.runs.append((going.forward, 1.0))
        if index < costs.first_trained:
            return Part(work=going.work)
        self.runs.append((back.backward, 1.0))
        return Part(Counter({"saved activations": back.kept}), going.work, back.back, self.weights.blocks[index][1])

    def _beside(self) -> Part:
        cost = self.costs.beside(self.memory)
        self.runs.append((cost.run, 1.0))
        streamed = 2 * self.weights.blocks[0][0] * (self.streamed > 0)
        return Part(Counter({"saved activations": cost.kept}), cost.work + streamed, cost.back + streamed)

    # Tiles

    def _tiles(self, first: int, last: int) -> Iterator[Part]:
        """Yield the segments of a range of blocks on tiles, from the first block that is differentiated."""
        costs, memory = self.costs, self.memory
        clips = memory.tile_clips
        cost = costs.tile(clips, memory)
        # The last tile of a window may be shorter; its halos aren't.
        tiles = costs.clips / clips
        count = costs.windows * tiles
        residual = DTYPES.get(memory.residual_dtype, DTYPES.get(memory.weight_dtype, costs.arithmetic))
        row = clips * costs.clip_tokens * costs.sizes.width * residual.itemsize
        start = min(max(first, costs.first_trained), last + 1)
        starts = range(start, last + 1, memory.segment_blocks)
        flows = costs.first_trained < first or costs.mode == "full"
        carrying = [index for index in range(first, last + 1) if index in costs.carrying]
        self._run_tiles(cost, count, first, start, last, len(carrying), flows)
        # The features of a range that isn't the last, and their gradient, are whole.
        joined = row * count if last < costs.depth - 1 else 0
        saved, halo = cost.saved * count, cost.halo * costs.windows * -(-costs.clips // clips)
        saved_here, halos_here = memory.saved_inputs == "device", memory.halos == "device"
        buffers = STAGING_BUFFERS * ((not saved_here) * cost.saved + (not halos_here) * cost.halo) if starts else 0
        held = Counter({"adapter casts": cost.casts * len(carrying), "offload buffers": buffers})
        if not saved_here:
            self.host["saved inputs"] += len(starts) * saved + self.by_blocks * row * count
            self.copied += 2 * len(starts) * saved + self.by_blocks * row * count * (last + 1 - first)
        if not halos_here:
            self.host["halos"] += halo * len(carrying)
            self.copied += 2 * halo * len(carrying)
        weights = self.weights.blocks[0][0] if self.streamed else 0

        # Forward: a tile waits at every adapter.
        work = cost.work + min(len(carrying), count) * cost.stream + joined
        if self.by_blocks:
            work = cost.work + (row * count if saved_here else 2 * row) + row + 2 * weights
        for number, begin in enumerate(starts):
            blocks = range(begin, min(begin + memory.segment_blocks, last + 1))
            halos = halo * sum(index in costs.carrying for index in blocks) * halos_here
            part = Part(Counter({"saved inputs": saved * saved_here, "halos": halos}))
            part.sums = sum(self.weights.blocks[index][1] for index in blocks)
            if number == 0:
                part.kept += held
            at_top = self.costs.has_norm and blocks[-1] == costs.depth - 1
            part.back = self._segment(cost, blocks, tiles, row, flows or number > 0, at_top) + joined
            part.back += weights * (len(blocks) + (memory.segment_blocks if number else 0))
            part.back -= min(len(blocks), tiles) * cost.saved * saved_here
            if number == len(starts) - 1:
                part.work = part.kept.total() + work
            yield part
        if not starts:
            yield Part(held, work)

    def _run_tiles(
        self, cost: TileCost, count: float, first: int, start: int, last: int, carrying: int, flows: bool
    ) -> None:
        """Note what runs on `count` tiles. start: the first block that is differentiated."""
        memory, trained = self.memory, last + 1 - start
        self.runs += [(cost.embed, count * (first == 0)), (cost.bare, count * (start - first))]
        if trained:
            self.runs += [(cost.block if flows else cost.lowest, count), (cost.block, count * (trained - 1))]
            self.runs.append((cost.adapter, count * (carrying - trained)))
        if memory.recompute == "twice":
            # All but a segment's top, and the very first block, which nothing flows through.
            segments = -(-trained // memory.segment_blocks)
            repeated = trained - segments - (not flows and memory.segment_blocks > 1)
            # The last block, too, where a norm needs what comes out of it.
            repeated += self.costs.has_norm and last == self.costs.depth - 1
            self.runs.append((cost.again, count * max(0, repeated)))

    def _segment(self, cost: TileCost, blocks: range, tiles: float, row: int, flows: bool, at_top: bool) -> float:
        """Return the wave in a segment when it is widest: a block holds graphs of one tile more than the block above
        it, of the `tiles` that a window has. at_top: a norm is one more stage, above the blocks."""
        size = cost.top if at_top else cost.back
        for number, index in enumerate(reversed(blocks)):
            level = number + at_top
            if number == 0:
                continue
            sums = self.weights.blocks[index][1]
            graph = cost.graph if self._carries(index) else cost.graph - row
            if self.memory.recompute == "twice" or (index == blocks[0] and not flows):
                graph = row
            size += min(level + 1, tiles) * graph + sums + (cost.segment - sums) * (level < tiles)
        return size

    # Everything else

    def _gathered(self) -> float:
        """Return the bytes that a rank holds of others, or exchanges, in backward."""
        weights, costs = self.weights, self.costs
        segment = self.memory.segment_blocks if self.tiled and costs.mode != "side" else 1
        blocks = min(2 * segment, costs.depth) * max(map(sum, weights.blocks))
        outside = weights.frozen + weights.trained - sum(map(sum, weights.blocks))
        trained = 0 if self.engine == "fsdp" and costs.mode == "full" else self.trained_blocks
        return gathered_bytes(self.engine, self.ranks, weights.trained, blocks + outside + trained)

    def _update(self) -> float:
        """Return the bytes beside weights, moments and gradients: two copies of the largest tensor, and the moments of
        a piece of the parameters, where they aren't there in fp32; or what rounds them."""
        on_host, rounded = self.memory.optimizer_state == "host", self.memory.moment_dtype == "bf16"
        piece, largest = RoundedAdamW.piece_bytes if rounded else PIECE_BYTES, self.weights.largest
        together = min(self.weights.largest_part, max(piece, largest))
        if not rounded:
            return 2 * largest + 2 * together * on_host
        # Both moments in fp32 and bf16; beside them random numbers and three temporaries of 32 bits in their making.
        return together * (2 + on_host) + max(2 * largest, 4 * together)
