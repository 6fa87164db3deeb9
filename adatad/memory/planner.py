"""What fits: memory, host memory, FLOPs and time of a training step under every policy, by formulas, and the fastest.

Memory agrees with the meter's count of whole steps within a few per cent (`tests/memory/test_planner.py`). Times are
estimates: nothing here was measured on a GPU. See `seconds_of` for what they assume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from adatad.memory.moments import Bytes, Step, Wave, Work, plain_step, tiled_step, update_bytes
from adatad.memory.offload import GIB
from adatad.memory.tiles import default_segment_blocks, default_tile_clips
from adatad.memory.units import Held, Outer, Units
from adatad.parallel.partition import Held as Shares
from adatad.parallel.partition import gathered_bytes, held_bytes
from adatad.spec.checks import TILE_ONLY, cross_checks
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS, MemorySpec, Spec

KEPT_FREE = 0.1
"""Of a device's memory, for the allocator's gaps and libraries; beside GIB for the CUDA context."""
EFFICIENCY = 0.6
"""Of `tflops` that blocks reach."""
KERNEL_SECONDS = 5e-6
"""To launch one: what small tiles can't go below."""
UNHIDDEN = 0.05
"""Of the time of copies that run beside arithmetic."""


@dataclass(frozen=True)
class Machine:
    """What a rank may use. memory_bytes: of its device; host_bytes: of the host, for this rank (None: no bound);
    tflops: of large 16-bit matrix products; pcie_gbps: GB/s to the device, and as much from it; shared: the device is
    the host itself, so that nothing is gained by leaving it."""

    memory_bytes: float
    host_bytes: float | None = None
    tflops: float = 60.0
    pcie_gbps: float = 12.0
    ranks: int = 1
    shared: bool = False

    @property
    def usable_bytes(self) -> float:
        return max(0.0, (1 - KEPT_FREE) * self.memory_bytes - GIB)


@dataclass(frozen=True)
class Plan:
    """One way to run a spec, and what it takes on a rank. settings: what a spec must say, as "key=value"."""

    memory: MemorySpec
    engine: str
    accumulation: int
    bytes: int
    categories: dict[str, int]
    moment: str
    host: dict[str, int]
    flops: int
    seconds: float
    away: int
    """Kinds of things that aren't on the device."""

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    def fits(self, machine: Machine) -> bool:
        return self.bytes <= machine.usable_bytes and self.host_bytes <= (machine.host_bytes or float("inf"))

    @property
    def order(self) -> tuple:
        """Plans that are faster come first; of those that are as fast, what leaves most where it is, then the
        smallest."""
        return self.seconds, self.away, self.bytes


PLACES = ("rows", "halos", "frames", "optimizer_state", "moving_average", "frozen_weights")
LEVELS: tuple[tuple[str, ...], ...] = (
    (),
    ("rows", "halos"),
    ("rows", "halos", "frames", "optimizer_state", "moving_average"),
    PLACES,
)
"""What leaves the device, more at each level."""
SEGMENTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40)


class Planner:
    """All plans of a spec on a machine.

    arithmetic: dtype of the run. What the spec says about memory beside `policy: auto` is kept in every plan.
    """

    def __init__(self, spec: Spec, machine: Machine, arithmetic: torch.dtype, num_classes: int = 20):
        self.spec, self.machine, self.arithmetic, self.num_classes = spec, machine, arithmetic, num_classes
        self._units: dict[int, Units] = {}

    def units(self, accumulation: int) -> Units:
        windows = max(1, self.spec.train.global_batch // (accumulation * self.machine.ranks))
        if windows not in self._units:
            self._units[windows] = Units(self.spec, windows, self.arithmetic, self.num_classes)
        return self._units[windows]

    # Which plans there are

    def plans(self) -> list[Plan]:
        """All that the spec's own checks allow, fastest first."""
        plans = [self.plan(memory, engine) for memory, engine in self.candidates()]
        return sorted(plans, key=lambda plan: plan.order)

    def candidates(self) -> Iterator[tuple[MemorySpec, str]]:
        for engine in self.engines():
            seen = set()
            for memory in self.memories():
                resolved = self.resolved(memory, engine)
                if resolved not in seen and self.allowed(resolved, engine):
                    seen.add(resolved)
                    yield resolved, engine

    def engines(self) -> tuple[str, ...]:
        asked = self.spec.parallel.engine
        return ("ddp", "fsdp") if asked == "auto" and self.machine.ranks > 1 else (asked,)

    def memories(self) -> Iterator[MemorySpec]:
        asked = self.spec.memory
        only_tile = any(getattr(asked, name) != getattr(MemorySpec(), name) for name in TILE_ONLY)
        levels = LEVELS[:1] if self.machine.shared else LEVELS
        for level in levels:
            if not only_tile:
                for policy in ("none", "selective", "block"):
                    yield self.placed({"policy": policy}, level, ("optimizer_state", "moving_average"))
            for recompute in ("hold", "rebuild"):
                for clips in self.tile_sizes():
                    for blocks in SEGMENTS:
                        shape = {"tile_clips": clips, "segment_blocks": blocks, "recompute": recompute}
                        yield self.placed({"policy": "tile", **shape}, level, PLACES)

    def tile_sizes(self) -> list[int]:
        units = self.units(self.spec.train.accumulation)
        usual = default_tile_clips(units.tubelets * units.positions, units.sizes.width)
        sizes = {1, usual // 4, usual // 2, usual, 2 * usual, 4 * usual}
        return sorted({min(size, units.clips) for size in sizes if size > 0})

    def placed(self, changes: dict[str, Any], level: tuple[str, ...], places: tuple[str, ...]) -> MemorySpec:
        """The spec's settings with changes; what the spec itself says stays."""
        asked = self.spec.memory
        away = {name: "stream" if name == "frozen_weights" else "host" for name in level if name in places}
        said = {name for name in asked.model_fields_set if name != "policy"}
        return asked.model_copy(update={k: v for k, v in {**changes, **away}.items() if k == "policy" or k not in said})

    def resolved(self, memory: MemorySpec, engine: str) -> MemorySpec:
        """Without what has no effect, so that equal plans are equal; tiles and segments as they will be."""
        units = self.units(self.spec.train.accumulation)
        if memory.policy != "tile":
            return memory
        changes: dict[str, Any] = {}
        clips = memory.tile_clips or default_tile_clips(units.tubelets * units.positions, units.sizes.width)
        changes["tile_clips"] = min(clips, units.clips)
        learning = sum(kind != "below" for kind in units.kinds)
        if units.side or not learning:
            changes |= {"rows": "device", "halos": "device", "recompute": "hold", "segment_blocks": 1}
        else:
            ratio = units.sizes.mlp_width / units.sizes.width
            blocks = memory.segment_blocks or default_segment_blocks(
                learning, units.clips, changes["tile_clips"], ratio, memory.recompute == "hold"
            )
            changes["segment_blocks"] = min(blocks, learning)
            if changes["segment_blocks"] == 1:
                changes["recompute"] = "hold"
        said = memory.model_fields_set if self.spec.memory.policy != "auto" else self.spec.memory.model_fields_set
        keep = {"tile_clips", "segment_blocks"}
        return memory.model_copy(update={k: v for k, v in changes.items() if k in keep or k not in said})

    def allowed(self, memory: MemorySpec, engine: str) -> bool:
        parallel = self.spec.parallel.model_copy(update={"engine": engine})
        changed = self.spec.model_copy(update={"memory": memory, "parallel": parallel})
        return not [key for key, _ in cross_checks(changed) if key[0] == "memory"]

    # One plan

    def own(self) -> Plan | None:
        """Of the spec as it is; None for `auto` and for ranges of policies."""
        policy = self.spec.memory.policy
        if not isinstance(policy, str) or policy == "auto":
            return None
        engine = "ddp" if self.spec.parallel.engine == "auto" else self.spec.parallel.engine
        return self.plan(self.resolved(self.spec.memory, engine), engine)

    def plan(self, memory: MemorySpec, engine: str, accumulation: int | None = None) -> Plan:
        """memory: resolved."""
        accumulation = accumulation or self.spec.train.accumulation
        engine = "ddp" if engine == "auto" else engine
        units = self.units(accumulation)
        held = units.held("tile" if memory.policy == "tile" else "none")
        rule = held_bytes(engine, self.machine.ranks, held.frozen, held.trained)
        step = self.step(units, memory, engine)
        gathered = Bytes(gathered=self.gathered(units, held, memory, engine))
        step.moments = {name: content + gathered for name, content in step.moments.items()}
        step.note("update", self.update(units, held, int(rule.gradients), memory))
        moment, content = max(step.moments.items(), key=lambda item: sum(item[1].values()))
        content = content + self.static(units, held, rule, memory)
        flops = (step.work.flops + self.outer(units, memory).flops) * accumulation
        seconds = self.seconds(units, step.work, held, memory, engine, accumulation)
        host = self.host(step.host, held, memory, units)
        away = sum(getattr(memory, name) != "device" for name in PLACES)
        categories = dict(content.most_common())
        return Plan(
            memory, engine, accumulation, sum(categories.values()), categories, moment, host, flops, seconds, away
        )

    def step(self, units: Units, memory: MemorySpec, engine: str) -> Step:
        if memory.policy != "tile":
            return plain_step(units, memory.policy)
        return tiled_step(units, self.wave(memory, engine))

    def wave(self, memory: MemorySpec, engine: str) -> Wave:
        away = memory.frozen_weights == "stream" or engine in SHARDS_FROZEN_WEIGHTS
        return Wave(
            tile_clips=memory.tile_clips,
            segment_blocks=memory.segment_blocks,
            hold=memory.recompute == "hold",
            by_blocks=memory.order == "blocks" or (memory.order == "auto" and away),
            rows_on_host=memory.rows == "host",
            halos_on_host=memory.halos == "host",
            frames_on_host=memory.frames == "host",
            streamed=memory.frozen_weights == "stream",
        )

    def outer(self, units: Units, memory: MemorySpec) -> Outer:
        return units.side_outer if units.side and memory.policy == "tile" else units.outer

    def static(self, units: Units, held: Held, rule: Shares, memory: MemorySpec) -> Bytes:
        """Weights and what belongs to them."""
        # Those that are streamed stand with the moments that they are there in.
        frozen = held.frozen_rest if memory.frozen_weights == "stream" else int(rule.frozen)
        return Bytes({
            "frozen weights": frozen,
            "trained weights": int(rule.trained),
            "optimizer state": int(rule.optimizer) if memory.optimizer_state == "device" else 0,
            "moving average": int(rule.average) if memory.moving_average == "device" else 0,
            "buffers": held.buffers,
        })  # fmt: skip

    def blocks_at_once(self, units: Units, memory: MemorySpec) -> int:
        """That are whole while others wait elsewhere: those in work and the next."""
        segment = memory.segment_blocks if memory.policy == "tile" and not units.side else 1
        return min(2 * segment, len(units.kinds))

    def gathered(self, units: Units, held: Held, memory: MemorySpec, engine: str) -> int:
        """What a rank holds of others, or exchanges, in backward."""
        whole = 0 if engine == "fsdp" and units.kinds[0] == "full" else held.trained_blocks
        blocks = self.blocks_at_once(units, memory) * held.largest_block
        root = held.frozen_rest + held.trained_rest
        return gathered_bytes(engine, self.machine.ranks, held.trained, blocks + root + whole)

    def update(self, units: Units, held: Held, gradients: int, memory: MemorySpec) -> Bytes:
        frames = 0 if memory.frames == "host" else units.frame_bytes
        return Bytes(gradients=gradients, frames=frames, update=update_bytes(held, memory.optimizer_state == "host"))

    def host(self, kept: Bytes, held: Held, memory: MemorySpec, units: Units) -> dict[str, int]:
        host = Counter(kept)
        host["frames"] = units.frame_bytes if memory.frames == "host" else 0
        host["optimizer state"] = 2 * held.trained if memory.optimizer_state == "host" else 0
        host["moving average"] = held.trained if memory.moving_average == "host" else 0
        host["frozen weights"] = held.frozen_blocks if memory.frozen_weights == "stream" else 0
        return dict((+host).most_common())

    # Time

    def seconds(
        self, units: Units, work: Work, held: Held, memory: MemorySpec, engine: str, accumulation: int
    ) -> float:
        """Of a step, estimated. Products run at EFFICIENCY of the machine's rate, but no kernel ends before the next
        is launched; copies and gathers run beside them, all but a small share; AdamW's state and averages that wait on
        the host come and go after backward, beside nothing."""
        rate, link = self.machine.tflops * 1e12 * EFFICIENCY, self.machine.pcie_gbps * 1e9
        outer = self.outer(units, memory)
        runs = [*work.runs, (outer.flops, outer.kernels, 1)]
        computing = sum(times * max(flops / rate, kernels * KERNEL_SECONDS) for flops, kernels, times in runs)
        into, ranks = work.into, self.machine.ranks
        if memory.frozen_weights == "stream":
            into += 2 * held.frozen_blocks
        if ranks > 1 and engine in SHARDS_FROZEN_WEIGHTS:
            into += int(2 * (held.frozen + held.trained) * (ranks - 1) / ranks)
        copying = max(into, work.out) / link
        micro_batch = max(computing, copying) + UNHIDDEN * min(computing, copying)
        moved = 4 * held.trained * (memory.optimizer_state == "host")
        moved += 2 * held.trained * (memory.moving_average == "host")
        moved += 2 * held.trained * (ranks > 1)
        return micro_batch * accumulation + moved / link
