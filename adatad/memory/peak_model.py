"""Adds measured costs up to a step: what is on the device at its fullest, what waits on the host, what is computed.

A step goes forward through parts (a block over whole windows, or a segment of blocks on tiles), through the detector,
and back through the parts in reverse. Each part keeps something from its forward to its backward and needs room to
work in, so that the peak is the largest of a few sums. `adatad.memory.costs` measures what the sums are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from adatad.memory.coded import coded_bytes
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
    """Bytes on the device at the fullest moment, by category, and its name; bytes on the host; what runs how often in a
    micro-batch; bytes copied while it runs, in the busier direction, and beside nothing at the end of the step."""

    content: Counter
    moment: str
    host: Counter
    runs: list[tuple[Run, float]]
    copied: float
    copied_at_end: float


def step_of(
    costs: CostProbe, memory: MemorySpec, engine: str, ranks: int, accumulation: int, ahead: bool = True
) -> Step:
    """The step of a micro-batch. memory: with tiles and segments as they will be; ahead: a second stream prepares
    frames."""
    return _Adder(costs, memory, engine, ranks, accumulation, ahead).step()


class _Adder:
    def __init__(self, costs: CostProbe, memory: MemorySpec, engine: str, ranks: int, accumulation: int, ahead: bool):
        self.costs, self.memory, self.engine, self.ranks, self.ahead = costs, memory, engine, ranks, ahead
        self.accumulates = accumulation > 1
        self.host, self.runs, self.copied = Counter(), [(costs.outer.run, 1.0)], 0.0
        self.ranges = policy_ranges(memory, costs.depth)
        self.tiled = any(policy == "tile" for _, _, policy in self.ranges)
        self.listed, self.bare, self.rest, model = costs.weights(
            memory.model_copy(update={"policy": "tile" if self.tiled else "none"})
        )
        carrying = costs.depth if costs.mode == "full" else len(costs.adapters) * (costs.mode in ("adapter", "plain"))
        self.trained_blocks = carrying * self.listed.trained
        self.frozen_blocks = carrying * self.listed.frozen + (costs.depth - carrying) * self.bare.frozen
        self.trained = self.trained_blocks + self.rest.trained
        never_run = (costs.depth - costs.run_depth) * self.bare.frozen
        self.streamed = self.frozen_blocks - never_run if memory.frozen_weights == "stream" else 0
        self.buffers = sum(buffer.nbytes for buffer in model.buffers())
        self.largest = max(p.nbytes for p in model.parameters() if p.requires_grad)
        detector = sum(p.nbytes for p in model.detector.parameters())
        self.largest_group = max(detector, self.trained - detector)
        sharded = memory.frozen_weights == "stream" or engine in SHARDS_FROZEN_WEIGHTS or memory.frozen_dtype != "auto"
        self.by_blocks = memory.order == "blocks" or (memory.order == "auto" and sharded)

    def step(self) -> Step:
        """Return the step's moments of peak memory, its work, and what waits on the host."""
        memory, costs, rule = self.memory, self.costs, held_bytes(self.engine, self.ranks, self.frozen, self.trained)
        parts = [part for span in self.ranges for part in self._parts(*span)]
        moments = dict(self._moments(parts))
        gathered = Counter({"gathered": self._gathered()})
        moments = {name: content + gathered for name, content in moments.items()}
        moments["update"] = Counter({"gradients": rule.gradients, "update": self._update()})
        moment, content = max(moments.items(), key=lambda item: item[1].total())
        share = 0.5 if memory.moment_dtype == "bf16" else 1.0
        states = {"optimizer state": (memory.optimizer_state, share * rule.optimizer, 2 * share * self.trained),
                  "moving average": (memory.moving_average, rule.average, self.trained)}  # fmt: skip
        static = Counter({
            "frozen weights": self.frozen - self.streamed if self.streamed else rule.frozen,
            "trained weights": rule.trained, "buffers": self.buffers,
            "frames ahead": ahead_bytes(costs.spec, memory, costs.frame_bytes, costs.windows) if self.ahead else 0,
        })  # fmt: skip
        at_end = 2 * self.trained * (self.ranks > 1)
        for name, (place, here, there) in states.items():
            static[name] = here if place == "device" else 0
            self.host[name] = there if place == "host" else 0
            at_end += 2 * self.host[name]
        self.host["frozen weights"] = self.streamed
        self.copied += 2 * self.streamed
        if self.ranks > 1 and self.engine in SHARDS_FROZEN_WEIGHTS:
            self.copied += 2 * (self.frozen + self.trained) * (self.ranks - 1) / self.ranks
        content = Counter({name: int(size) for name, size in (content + static).items()})
        return Step(+content, moment, +self.host, self.runs, self.copied, at_end)

    @property
    def frozen(self) -> int:
        """Bytes of all frozen weights."""
        return self.frozen_blocks + self.rest.frozen

    def _moments(self, parts: list[Part]) -> Iterator[tuple[str, Counter]]:
        """The fullest moment of forward, detector and backward. `max` by total, part by part."""
        costs, memory = self.costs, self.memory
        frames = Counter(frames=costs.frame_bytes)
        if memory.frames == "host":
            tile = min(memory.tile_clips, costs.clips) * costs.clip_bytes
            frames = Counter(frames=min(2 * tile, costs.frame_bytes))
            self.host["frames"] = costs.frame_bytes
            self.copied += costs.frame_bytes * (2 if costs.mode in ("full", "side") else 1)
        # Gradients of the micro-batch before, and until its losses are replaced what its graph holds for good.
        before, kept = Counter(), Counter()
        if self.accumulates:
            casts = sum(part.kept["adapter casts"] for part in parts)
            before = Counter({"gradients": self.trained, "adapter casts": casts})
        forward, frames = [], frames + before
        for part in parts:
            forward.append(kept + frames + Counter({"in work": part.work}))
            kept = kept + part.kept
        yield "forward", max(forward, key=Counter.total)
        between = kept + Counter(detector=costs.outer.between)
        yield "detector", between + frames if memory.frames == "device" else between + before
        backward, sums = [], 0.0
        rest = Counter(gradients=self.trained_blocks) if self.accumulates else Counter()
        if self.tiled and costs.mode in ("full", "side"):
            rest += frames - before
        for part in reversed(parts):
            content = Counter({"detector": costs.outer.backward, "in work": part.back, "gradients": sums})
            backward.append(kept + content + rest)
            kept, sums = kept - part.kept, sums + part.sums
        yield "backward", max(backward, key=Counter.total)

    def _parts(self, first: int, last: int, policy: str) -> Iterator[Part]:
        if self.costs.mode == "side":
            yield self._beside()
        elif policy == "tile":
            yield from self._tiled(first, last)
        else:
            for index in range(first, last + 1):
                yield self._plain(index, policy)

    def _sums(self, index: int) -> int:
        return self.listed.trained if self.costs.mode == "full" or self._carries(index) else 0

    def _carries(self, index: int) -> bool:
        return self.costs.mode in ("adapter", "plain") and index in self.costs.adapters

    # Whole windows

    def _plain(self, index: int, policy: str) -> Part:
        costs = self.costs
        first, block = costs.first_block(policy), costs.block(policy, self._carries(index) or costs.mode == "full")
        source = first if index == 0 else block
        self.runs.append((source.forward, 1.0))
        if index < costs.first_trained:
            return Part(work=source.work)
        back = first if index == costs.first_trained else block
        self.runs.append((back.backward, 1.0))
        return Part(Counter({"saved activations": back.kept}), source.work, back.back, self._sums(index))

    def _beside(self) -> Part:
        run, memory = self.costs.beside(self.memory), self.memory
        self.runs += [(run.forward, 1.0), (run.backward, 1.0)]
        streamed = 2 * self.bare.frozen * (memory.frozen_weights == "stream")
        kept = Counter({"saved activations": run.kept})
        return Part(kept, run.forward_peak + streamed, run.backward_peak - run.kept + streamed)

    # Tiles

    def _tiled(self, first: int, last: int) -> Iterator[Part]:
        """A range of blocks on tiles: its segments, from the first block that is differentiated."""
        costs, memory = self.costs, self.memory
        clips = memory.tile_clips
        cost = costs.tile(clips, memory)
        tiles = -(-costs.clips // clips)
        count, share = costs.windows * tiles, costs.clips / (tiles * clips)
        arithmetic = DTYPES.get(memory.weight_dtype, costs.arithmetic)
        residual = DTYPES.get(memory.residual_dtype, arithmetic)
        row = clips * costs.clip_tokens * costs.sizes.width * residual.itemsize
        kept_row = (
            coded_bytes(clips * costs.clip_tokens, costs.sizes.width) if memory.saved_input_dtype == "fp8" else row
        )
        all_saved, on_device, halos_here = (
            row * count * share,
            memory.saved_inputs == "device",
            memory.halos == "device",
        )
        adapter = costs.spec.model.backbone.adapter
        reach = adapter.dilation * (adapter.kernel - 1) // 2 if costs.mode == "adapter" else 0
        hidden = int(costs.sizes.width * adapter.ratio)
        halo = 2 * reach * costs.clip_tokens // costs.tubelets * hidden * arithmetic.itemsize
        start = max(first, costs.first_trained)
        flows = costs.first_trained < first or costs.mode == "full"
        carrying = [index for index in range(first, last + 1) if self._carries(index)]
        starts = range(start, last + 1, memory.segment_blocks)
        # The features of a range that isn't the last, and their gradient, are whole.
        joined = all_saved if last < costs.depth - 1 else 0

        self.runs.append((cost.first if first == 0 else cost.block, count * share))
        below, above = start - first, last - start
        self.runs.append((cost.again, below * count * share))
        self.runs.append((cost.block, above * count * share))
        if memory.recompute == "twice":
            # All but a segment's top, and the very first block, which nothing flows through.
            repeated = above + 1 - len(starts) - (not flows and memory.segment_blocks > 1)
            self.runs.append((cost.again, max(0, repeated) * count * share))
        saved = kept_row * count * share
        buffers = STAGING_BUFFERS * ((not on_device) * kept_row + (not halos_here) * halo) if starts else 0
        held = Counter({"adapter casts": cost.casts * len(carrying), "offload buffers": buffers})
        if not on_device:
            self.host["saved inputs"] += (len(starts) * saved) + self.by_blocks * all_saved
            self.copied += 2 * len(starts) * saved + self.by_blocks * all_saved * (last + 1 - first)
        if not halos_here:
            self.host["halos"] += halo * len(carrying) * count
            self.copied += 2 * halo * len(carrying) * count
        weights = self.bare.frozen if memory.frozen_weights == "stream" else 0

        # Forward: the tiles that wait at adapters, of which the later ones haven't passed all segments yet.
        passing = min(len(carrying), count)
        missing = len(starts) * kept_row * on_device / max(1, len(carrying))
        waiting = min(passing, cost.stream / missing) if missing else passing
        work = cost.work + waiting * cost.stream - missing * waiting**2 / 2 + joined
        if self.by_blocks:
            work = cost.work + (all_saved if on_device else 2 * row) + row + 2 * weights
        for number, begin in enumerate(starts):
            blocks = range(begin, min(begin + memory.segment_blocks, last + 1))
            halos = Counter(halos=halo * count * sum(self._carries(i) for i in blocks) * halos_here)
            part = Part(Counter({"saved inputs": saved * on_device}) + halos, sums=sum(map(self._sums, blocks)))
            if number == 0:
                part.kept += held
            part.back = self._segment(cost, blocks, costs.clips / clips, row, flows or number > 0) + joined
            part.back += weights * (len(blocks) + (memory.segment_blocks if number else 0))
            part.back -= min(len(blocks), tiles) * kept_row * on_device
            if number == 0 and flows:
                bottom = costs.embedding_back(clips) if costs.mode == "full" else all_saved
                bottom += all_saved + part.sums - saved * on_device
                part.back = max(part.back, bottom)
            if number == len(starts) - 1:
                part.work = part.kept.total() + work
            yield part
        if not starts:
            yield Part(held, work)

    def _segment(self, cost: TileCost, blocks: range, tiles: float, row: int, flows: bool) -> float:
        """The wave in a segment when it is widest: a block holds graphs of one tile more than the block above it, of
        the `tiles` (the last one shorter) that a window has."""
        size, sums = cost.back, 0.0
        for level, index in enumerate(reversed(blocks)):
            if level == 0:
                continue
            sums = self._sums(index)
            graph = cost.graph if self.costs.mode == "full" or self._carries(index) else cost.graph - row
            if self.memory.recompute == "twice" or (index == blocks[0] and not flows):
                graph = row
            size += min(level + 1, tiles) * graph + sums + (cost.segment - sums) * (level < tiles)
        return size

    # Everything else

    def _gathered(self) -> int:
        """Bytes that a rank holds of others, or exchanges, in backward."""
        memory = self.memory
        segment = memory.segment_blocks if self.tiled and self.costs.mode != "side" else 1
        blocks = min(2 * segment, self.costs.depth) * max(sum(vars(b).values()) for b in (self.listed, self.bare))
        trained = 0 if self.engine == "fsdp" and self.costs.mode == "full" else self.trained_blocks
        return gathered_bytes(
            self.engine, self.ranks, self.trained, blocks + self.rest.frozen + self.rest.trained + trained
        )

    def _update(self) -> int:
        """Bytes beside weights, moments and gradients: two copies of the largest tensor, and the moments of a piece of
        the parameters, where they aren't there in fp32; or what rounds them."""
        on_host, rounded = self.memory.optimizer_state == "host", self.memory.moment_dtype == "bf16"
        piece = RoundedAdamW.piece_bytes if rounded else PIECE_BYTES
        together = min(self.largest_group, max(piece, self.largest))
        if not rounded:
            return 2 * self.largest + 2 * together * on_host
        # Both moments in fp32 and bf16; beside them random numbers and three temporaries of 32 bits in their making.
        return together * (2 + on_host) + max(2 * self.largest, 4 * together)
