"""What fits: memory, host memory, FLOPs and time of a training step under every policy, by formulas, and the fastest.

Memory agrees with the meter's count of whole steps within a few per cent (`tests/memory/test_planner.py`). Times are
estimates: nothing here was measured on a GPU. See `Planner.seconds` for what they assume.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from adatad.memory.inputs import ahead_bytes
from adatad.memory.moments import Bytes, Step, Wave, Work, moment_share, plain_step, tiled_step, update_bytes
from adatad.memory.offload import GIB
from adatad.memory.scale import Scale
from adatad.memory.tiles import default_segment_blocks, default_tile_clips
from adatad.memory.unit_costs import Held, Outer
from adatad.memory.units import Units
from adatad.parallel.layout import RankBytes as Shares
from adatad.parallel.layout import gathered_bytes, held_bytes
from adatad.spec.checks import TILE_ONLY, memory_checks
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS, MemorySpec, Spec

KEPT_FREE = 0.1
"""Of a device's memory, for the allocator's gaps and libraries; beside GIB for the CUDA context."""
EFFICIENCY = 0.6
"""Of `tflops` that blocks reach."""
SMALLER = 0.85
"""What the next smaller plan may take of one that didn't fit after all."""
KERNEL_SECONDS = 5e-6
"""To launch one: what small tiles can't go below."""
ALIKE = 1.02
"""Plans whose times are within this factor count as equally fast."""
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


def size_for(usable_bytes: float) -> float:
    """Of a device that has so much that is usable."""
    return (usable_bytes + GIB) / (1 - KEPT_FREE)


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
    """Kinds of things that aren't on the device all the time."""

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    def fits(self, machine: Machine) -> bool:
        return self.bytes <= machine.usable_bytes and self.fits_host(machine)

    def fits_host(self, machine: Machine) -> bool:
        limit = self.memory.host_limit_gib
        kept = sum(self.host.get(name, 0) for name in ("saved inputs", "halos"))
        allowed = limit is None or kept <= limit * GIB
        return allowed and (machine.host_bytes is None or self.host_bytes <= machine.host_bytes)

    @property
    def order(self) -> tuple:
        """Plans that are faster come first; of those that are as fast, what leaves most where it is, then the
        smallest."""
        return round(math.log(self.seconds) / math.log(ALIKE)), self.away, self.bytes + self.host_bytes

    def settings(self, asked: Spec) -> list[str]:
        """What `--set` must say for this plan: over `asked`, or over one that says no more of memory than dtypes."""
        memory, defaults = self.memory, MemorySpec()
        lines = [f"memory.policy={memory.policy}"]
        for name in MemorySpec.model_fields:
            value, kept = getattr(memory, name), name in DTYPE_KEYS
            differs = value != getattr(asked.memory, name) or (value != getattr(defaults, name) and not kept)
            if name != "policy" and differs:
                lines.append(f"memory.{name}={'null' if value is None else value}")
        if self.engine != ("ddp" if asked.parallel.engine == "auto" else asked.parallel.engine):
            lines.append(f"parallel.engine={self.engine}")
        if self.accumulation != asked.train.accumulation:
            lines.append(f"train.accumulation={self.accumulation}")
        return lines

    def describe(self) -> str:
        """In words: "tile, 1 clip, k 5, hold, rows and halos on the host"."""
        memory = self.memory
        parts = [memory.policy]
        if memory.policy == "tile":
            parts += [f"{memory.tile_clips} clip{'s' * (memory.tile_clips > 1)}", f"k {memory.segment_blocks}"]
            parts.append(memory.recompute)
        away = [name.replace("_", " ") for name in PLACES[:-1] if getattr(memory, name) == "host"]
        if away:
            parts.append(f"{' and '.join(filter(None, [', '.join(away[:-1]), away[-1]]))} on the host")
        if memory.frozen_weights == "stream":
            parts.append("frozen weights streamed")
        named = (("frozen weights", "frozen_dtype"), ("rows", "saved_input_dtype"), ("moments", "moment_dtype"))
        eight = {what: getattr(memory, name) for what, name in named}
        parts += [f"{what} in {dtype}" for what, dtype in eight.items() if dtype not in ("auto", "fp32")]
        return ", ".join(parts)


DTYPE_KEYS = ("weight_dtype", "residual_dtype", "frozen_dtype", "saved_input_dtype", "moment_dtype")
"""Of the section memory: no plan says another than its spec."""
PLACES = ("saved_inputs", "halos", "frames", "optimizer_state", "moving_average", "frozen_weights")
LEVELS: tuple[tuple[str, ...], ...] = (
    (),
    ("saved_inputs", "halos"),
    ("saved_inputs", "halos", "frames", "optimizer_state", "moving_average"),
    PLACES,
)
"""What leaves the device, more at each level."""
SEGMENTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40)


class Planner:
    """All plans of a spec on a machine.

    arithmetic: dtype of the run. What the spec says about memory beside `policy: auto` is kept in every plan.
    """

    def __init__(
        self,
        spec: Spec,
        machine: Machine,
        arithmetic: torch.dtype,
        num_classes: int = 20,
        engines: tuple[str, ...] = ("ddp",),
        scale: Scale | None = None,
    ):
        """engines: that `parallel.engine: auto` may become; scale: that has weighed for another spec."""
        self.spec, self.machine, self.arithmetic, self.num_classes = spec, machine, arithmetic, num_classes
        self.engines = engines if spec.parallel.engine == "auto" else (spec.parallel.engine,)
        self.scale = scale or Scale()
        self._units: dict[int, Units] = {}

    def units(self, accumulation: int) -> Units:
        groups = self.machine.ranks // self.spec.parallel.clip
        windows = max(1, self.spec.train.global_batch // (accumulation * max(1, groups)))
        if windows not in self._units:
            self._units[windows] = Units(self.spec, windows, self.arithmetic, self.num_classes, self.scale)
        return self._units[windows]

    # Which plans there are

    def plans(self, coarse: bool = False) -> list[Plan]:
        """All that the spec's own checks allow, fastest first. coarse: few of them, the smallest ones included."""
        plans = [self.plan(memory, engine) for memory, engine in self.candidates(coarse)]
        return sorted(plans, key=lambda plan: plan.order)

    def candidates(self, coarse: bool) -> Iterator[tuple[MemorySpec, str]]:
        for engine in self.engines:
            seen = set()
            for asked in self.memories(coarse):
                memory = self.resolved(asked)
                if memory not in seen and self.allowed(memory, engine):
                    yield memory, engine
                seen.add(memory)

    def memories(self, coarse: bool) -> Iterator[MemorySpec]:
        asked, defaults = self.spec.memory, MemorySpec()
        only_tile = any(getattr(asked, name) != getattr(defaults, name) for name in TILE_ONLY)
        sizes, segments = ([1], SEGMENTS[::3]) if coarse else (self.tile_sizes(), SEGMENTS)
        for level in LEVELS[:1] if self.machine.shared else LEVELS:
            if not (only_tile and asked.policy == "auto"):
                for policy in ("none", "selective", "block"):
                    yield self.placed({"policy": policy}, level)
            for recompute in ("once", "twice"):
                for clips in sizes:
                    for blocks in segments:
                        shape = {"tile_clips": clips, "segment_blocks": blocks, "recompute": recompute}
                        yield self.placed({"policy": "tile", **shape}, level)

    def tile_sizes(self) -> list[int]:
        units = self.units(self.spec.train.accumulation)
        usual = default_tile_clips(units.tubelets * units.positions, units.sizes.width, units.clips)
        sizes = {1, usual // 2, usual, 2 * usual}
        return sorted({min(size, units.clips) for size in sizes if size > 0})

    def placed(self, changes: dict[str, Any], level: tuple[str, ...]) -> MemorySpec:
        """The spec's section with changes, and what is away at a level; what `auto` has beside it stays as it is. Of a
        spec with a policy of its own nothing is kept but dtypes and the limit."""
        asked, defaults = self.spec.memory, MemorySpec()
        away = {name: "stream" if name == "frozen_weights" else "host" for name in level}
        kept = {"weight_dtype": asked.weight_dtype, "moment_dtype": asked.moment_dtype}
        if changes["policy"] == "tile":
            kept |= {
                name: getattr(asked, name)
                for name in ("residual_dtype", "frozen_dtype", "saved_input_dtype", "compile")
            }
            kept["host_limit_gib"] = asked.host_limit_gib
        else:
            away = {name: place for name, place in away.items() if name not in TILE_ONLY}
            kept["weight_dtype"] = asked.weight_dtype if asked.weight_dtype in ("auto", "fp32") else "auto"
        if asked.policy == "auto":
            names = asked.model_fields_set - {"policy"}
            kept |= {
                name: getattr(asked, name) for name in names if changes["policy"] == "tile" or name not in TILE_ONLY
            }
        return defaults.model_copy(update={**changes, **away, **kept})

    def resolved(self, memory: MemorySpec) -> MemorySpec:
        """With tiles and segments as they will be, and without what has no effect: equal plans are equal."""
        if memory.policy != "tile":
            return memory
        units = self.units(self.spec.train.accumulation)
        usual = default_tile_clips(units.tubelets * units.positions, units.sizes.width, units.clips)
        tile_clips = min(memory.tile_clips or usual, units.clips)
        changes: dict[str, Any] = {"tile_clips": tile_clips}
        learning = sum(kind != "below" for kind in units.kinds)
        if units.side or not learning:
            changes |= {"recompute": "once", "segment_blocks": 1}
        else:
            ratio, hold = units.sizes.mlp_width / units.sizes.width, memory.recompute == "once"
            blocks = memory.segment_blocks or default_segment_blocks(learning, units.clips, tile_clips, ratio, hold)
            changes["segment_blocks"] = min(blocks, learning)
            if changes["segment_blocks"] == 1:
                changes["recompute"] = "once"
        return memory.model_copy(update=changes)

    def allowed(self, memory: MemorySpec, engine: str) -> bool:
        parallel = self.spec.parallel.model_copy(update={"engine": engine})
        return not memory_checks(self.spec.model_copy(update={"memory": memory, "parallel": parallel}))

    def best(self, plans: list[Plan]) -> Plan | None:
        """The first that fits, of plans in order."""
        return next((plan for plan in plans if plan.fits(self.machine)), None)

    def smallest(self, plans: list[Plan]) -> Plan:
        """The one that takes least of the device, of those that the host has room for."""
        roomy = [plan for plan in plans if plan.fits_host(self.machine)]
        return min(roomy or plans, key=lambda plan: plan.bytes)

    def smaller(self, plans: list[Plan], than: Plan) -> Plan | None:
        """The fastest plan that takes at most SMALLER of another's memory; None if there is none."""
        return next((p for p in plans if p.bytes <= SMALLER * than.bytes and p.fits_host(self.machine)), None)

    # One plan

    def own(self) -> Plan | None:
        """Of the spec as it is; None for `auto` and for ranges of policies."""
        policy = self.spec.memory.policy
        if not isinstance(policy, str) or policy == "auto":
            return None
        engine = "ddp" if self.spec.parallel.engine == "auto" else self.spec.parallel.engine
        return self.plan(self.resolved(self.spec.memory), engine)

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
        step.note("update", Bytes(gradients=int(rule.gradients), update=update_bytes(held, memory)))
        moment, content = max(step.moments.items(), key=lambda item: sum(item[1].values()))
        content = content + self.static(units, held, rule, memory)
        flops = (step.work.flops + self.outer(units, memory).flops) * accumulation
        seconds = self.seconds(units, step.work, held, memory, engine, accumulation)
        host = self.host(step.host, held, memory, units)
        away = sum(getattr(memory, name) != "device" for name in PLACES) + (engine in SHARDS_FROZEN_WEIGHTS)
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
        away = away or memory.frozen_dtype != "auto"
        return Wave(
            tile_clips=memory.tile_clips,
            segment_blocks=memory.segment_blocks,
            hold=memory.recompute == "once",
            by_blocks=memory.order == "blocks" or (memory.order == "auto" and away),
            saved_on_host=memory.saved_inputs == "host",
            saved_in_8_bits=memory.saved_input_dtype == "fp8",
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
            "optimizer state": int(rule.optimizer * moment_share(memory)) if memory.optimizer_state == "device" else 0,
            "moving average": int(rule.average) if memory.moving_average == "device" else 0,
            "buffers": held.buffers,
            "frames ahead": self.ahead(units, memory),
        })  # fmt: skip

    def ahead(self, units: Units, memory: MemorySpec) -> int:
        """For frames that are made ready on a second stream; a CPU has none."""
        if self.machine.shared:
            return 0
        return ahead_bytes(self.spec, memory, units.frame_bytes, units.windows)

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

    def host(self, kept: Bytes, held: Held, memory: MemorySpec, units: Units) -> dict[str, int]:
        host = Counter(kept)
        host["frames"] = units.frame_bytes if memory.frames == "host" else 0
        host["optimizer state"] = int(2 * held.trained * moment_share(memory)) * (memory.optimizer_state == "host")
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
        moved = 4 * held.trained * moment_share(memory) * (memory.optimizer_state == "host")
        moved += 2 * held.trained * (memory.moving_average == "host")
        moved += 2 * held.trained * (ranks > 1)
        return micro_batch * accumulation + moved / link
