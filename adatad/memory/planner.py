"""The planner: memory, host memory, FLOPs and time of a training step under every policy, and the fastest plan.

Memory agrees with the count of whole steps within 5 % (`tests/memory/test_planner.py`). Times are estimates; see
`Planner.seconds` for what they assume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from adatad.memory.costs import TILE_DTYPES, CostProbe, Run
from adatad.memory.offload import GIB
from adatad.memory.peak_model import Step
from adatad.memory.tiles import default_segment_blocks, default_tile_clips
from adatad.spec.checks import TILE_ONLY, memory_checks
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS, MemorySpec, PolicyRange, Spec

RESERVED_FRACTION = 0.1
"""Of a device's memory, for the allocator's gaps and libraries; beside GIB for the CUDA context."""
EFFICIENCY = 0.6
"""Share of a card's rate of 16-bit products that blocks reach."""
NEXT_PLAN_FRACTION = 0.85
"""Of the memory of a plan that didn't fit after all, what the next one may take."""
TIE_FACTOR = 1.005
"""Plans whose times are within this factor count as equally fast."""
OVERLAP_LOSS = 0.05
"""Of the time of copies that run beside arithmetic, or of the arithmetic beside them."""
DTYPE_KEYS = (*TILE_DTYPES, "moment_dtype")
"""Of the section memory: no plan says another than its spec."""
PLACES = ("saved_inputs", "halos", "frames", "optimizer_state", "moving_average", "frozen_weights")
"""What can leave the device. Plans take it off in this order, up to one of LEVELS."""
LEVELS = (0, 2, 5, 6)
SEGMENTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 20, 40)


@dataclass(frozen=True)
class Machine:
    """Resources of a rank. memory_bytes: of its device; host_bytes: of the host, for this rank (None: no bound);
    tflops: of large 16-bit matrix products; pcie_gbps: GB/s to the device, and as much from it; launch_seconds: of the
    host, for a kernel; shared: the device is the host itself, so that nothing is gained by leaving it."""

    memory_bytes: float
    host_bytes: float | None = None
    tflops: float = 60.0
    pcie_gbps: float = 12.0
    ranks: int = 1
    shared: bool = False
    launch_seconds: float = 5e-6

    @property
    def usable_bytes(self) -> float:
        """Memory that a plan may take: the allocator and the context need the rest."""
        return max(0.0, (1 - RESERVED_FRACTION) * self.memory_bytes - GIB)


@dataclass(frozen=True)
class Plan:
    """One way to run a spec, and what it takes on a rank. moment: the fullest; host: bytes there by category; away:
    kinds of things that aren't on the device all the time."""

    memory: MemorySpec
    engine: str
    bytes: int
    categories: dict[str, int]
    moment: str
    host: dict[str, int]
    flops: int
    launches: int
    seconds: float
    away: int

    @property
    def host_bytes(self) -> int:
        """Host memory of the plan, of all kinds together."""
        return sum(self.host.values())

    def fits(self, machine: Machine) -> bool:
        """Return whether a machine has room for the plan, on the device and on the host."""
        return self.bytes <= machine.usable_bytes and self.fits_host(machine)

    def fits_host(self, machine: Machine) -> bool:
        """Return whether the host has room for what the plan keeps there."""
        limit = self.memory.host_limit_gib
        kept = sum(self.host.get(name, 0) for name in ("saved inputs", "halos"))
        allowed = limit is None or kept <= limit * GIB
        return allowed and (machine.host_bytes is None or self.host_bytes <= machine.host_bytes)

    @property
    def order(self) -> tuple:
        """Plans that are faster come first; of those that are as fast, what leaves most where it is, then the
        smallest."""
        return round(math.log(self.seconds) / math.log(TIE_FACTOR)), self.away, self.bytes + self.host_bytes

    def settings(self, asked: Spec) -> list[str]:
        """Return what `--set` must say for this plan: over `asked`, or over a spec whose memory says dtypes alone."""
        policy = self.memory.policy
        if not isinstance(policy, str):
            spans = (f"{{first: {span.first}, last: {span.last}, policy: {span.policy}}}" for span in policy)
            policy = f"[{', '.join(spans)}]"
        lines = [f"memory.policy={policy}"]
        for name, field in MemorySpec.model_fields.items():
            value = getattr(self.memory, name)
            unusual = value != field.default and name not in DTYPE_KEYS
            if name != "policy" and (unusual or value != getattr(asked.memory, name)):
                lines.append(f"memory.{name}={'null' if value is None else value}")
        if self.engine != _engine(asked):
            lines.append(f"parallel.engine={self.engine}")
        return lines

    def describe(self) -> str:
        """Describe the plan: "tile, 1 clip, k 5, once, saved inputs and halos on the host"."""
        memory = self.memory
        parts = [memory.policy] if isinstance(memory.policy, str) else list(map(_blocks, memory.policy))
        if "tile" in policies_of(memory):
            parts += [f"{memory.tile_clips} clip{'s' * (memory.tile_clips > 1)}", f"k {memory.segment_blocks}"]
            parts.append(memory.recompute)
        away = [name.replace("_", " ") for name in PLACES[:-1] if getattr(memory, name) == "host"]
        if away:
            parts.append(f"{' and '.join(filter(None, [', '.join(away[:-1]), away[-1]]))} on the host")
        if memory.frozen_weights == "stream":
            parts.append("frozen weights streamed")
        named = (("frozen weights", "frozen_dtype"), ("saved inputs", "saved_input_dtype"), ("moments", "moment_dtype"))
        eight = {what: getattr(memory, name) for what, name in named}
        parts += [f"{what} in {dtype}" for what, dtype in eight.items() if dtype not in ("auto", "fp32")]
        return ", ".join(parts)


def _blocks(span: PolicyRange) -> str:
    which = f"block {span.last}" if span.first == span.last else f"blocks {span.first} to {span.last}"
    return f"{span.policy} for {which}"


def _engine(spec: Spec) -> str:
    return "ddp" if spec.parallel.engine == "auto" else spec.parallel.engine


def policies_of(memory: MemorySpec) -> list[str]:
    """Return the policies of a section, one for each range."""
    return [memory.policy] if isinstance(memory.policy, str) else [span.policy for span in memory.policy]


class Planner:
    """All plans of a spec on a machine.

    arithmetic: dtype of the run; engines: what `parallel.engine: auto` may become. What the spec says about memory
    beside `policy: auto` is kept in every plan.
    """

    def __init__(
        self,
        spec: Spec,
        machine: Machine,
        arithmetic: torch.dtype,
        num_classes: int = 20,
        engines: tuple[str, ...] = ("ddp",),
    ):
        self.spec, self.machine, self.arithmetic, self.num_classes = spec, machine, arithmetic, num_classes
        self.engines = engines if spec.parallel.engine == "auto" else (spec.parallel.engine,)

    @cached_property
    def costs(self) -> CostProbe:
        """Costs of the parts of a micro-batch, measured when they are first asked for."""
        train, groups = self.spec.train, max(1, self.machine.ranks // self.spec.parallel.clip)
        windows = max(1, train.global_batch // (train.accumulation * groups))
        return CostProbe(self.spec, windows, self.arithmetic, self.num_classes)

    @property
    def _usual_clips(self) -> int:
        return default_tile_clips(self.costs.clip_tokens, self.costs.sizes.width, self.costs.clips)

    # Which plans there are

    def plans(self, coarse: bool = False) -> list[Plan]:
        """All that the spec's own checks allow, fastest first. coarse: few of them, the smallest ones included."""
        plans = []
        for engine in self.engines:
            memories = dict.fromkeys(self.resolved(asked) for asked in self._uniform(coarse))
            uniform = [self.plan(memory, engine) for memory in memories if self._allowed(memory, engine)]
            plans += uniform
            if not coarse and not self.machine.shared:
                plans += self._mixed(uniform, engine)
        return sorted(plans, key=lambda plan: plan.order)

    def _uniform(self, coarse: bool) -> Iterator[MemorySpec]:
        """One policy for all blocks."""
        asked, defaults, usual = self.spec.memory, MemorySpec(), self._usual_clips
        only_tile = any(getattr(asked, name) != getattr(defaults, name) for name in TILE_ONLY)
        sizes = {1} if coarse else {1, max(1, usual // 2), usual}
        for level in LEVELS[: 1 if self.machine.shared else None]:
            away = {name: "stream" if name == "frozen_weights" else "host" for name in PLACES[:level]}
            if not (only_tile and asked.policy == "auto"):
                yield from (self._section(away | {"policy": policy}) for policy in ("none", "selective", "block"))
            for recompute in ("once", "twice"):
                for clips in sorted(sizes):
                    for blocks in SEGMENTS[::3] if coarse else SEGMENTS:
                        shape = {"tile_clips": clips, "segment_blocks": blocks, "recompute": recompute}
                        yield self._section(away | shape | {"policy": "tile"})

    def _section(self, changes: dict[str, Any]) -> MemorySpec:
        """Return a section with changes to what the planner may choose; what the spec has beside `policy: auto` stays
        as it is. Of a spec with a policy of its own nothing stays but dtypes and the limit."""
        asked, tiled = self.spec.memory, changes["policy"] == "tile"
        kept = {*DTYPE_KEYS, "host_limit_gib", "compile"}
        if asked.policy == "auto":
            kept = asked.model_fields_set - {"policy"}
        elif not tiled and asked.weight_dtype not in ("auto", "fp32"):
            kept.discard("weight_dtype")
        changes = changes | {name: getattr(asked, name) for name in kept}
        changes = {name: value for name, value in changes.items() if tiled or name not in TILE_ONLY}
        return MemorySpec().model_copy(update=changes)

    def _mixed(self, uniform: list[Plan], engine: str) -> Iterator[Plan]:
        """Plans that fill the room which the best `tile` or `block` leaves: the last blocks keep more.

        Backward begins with the last blocks, so that what they keep is gone when the others need room to work in.
        """
        if self.costs.mode == "side" or not isinstance(self.spec.memory.policy, str):
            return
        fitting = [plan for plan in uniform if plan.fits(self.machine) and plan.memory.frozen_weights == "device"]
        for policy, away in (("block", False), ("tile", False), ("tile", True)):
            alike = [plan for plan in fitting if (plan.memory.policy, plan.away > 0) == (policy, away)]
            if not alike:
                continue
            # A slightly slower one may be much smaller.
            fastest = min(plan.seconds for plan in alike)
            base = min((p for p in alike if p.seconds <= 1.02 * fastest), key=lambda plan: plan.bytes)
            above: list[tuple[str, int]] = []
            for kept in ("none", "selective"):
                # As many blocks as the machine has room for, below those that are set already.
                least, most = 0, self.costs.depth - self.costs.first_trained - sum(count for _, count in above) - 1
                while least < most:
                    count = (least + most + 1) // 2
                    plan = self._with_above(base.memory, [*above, (kept, count)], engine)
                    if plan is not None and plan.fits(self.machine):
                        least, best = count, plan
                    else:
                        most = count - 1
                if least:
                    above.append((kept, least))
                    yield best

    def _with_above(self, base: MemorySpec, above: list[tuple[str, int]], engine: str) -> Plan | None:
        """Plan `base`, but for numbers of blocks under other policies, from the last block down; None if that isn't
        allowed."""
        last, ranges = self.costs.depth - 1, []
        for policy, count in (*above, (base.policy, self.costs.depth)):
            ranges.insert(0, PolicyRange(first=max(0, last - count + 1), last=last, policy=policy))
            last -= count
        memory = base.model_copy(update={"policy": tuple(ranges)})
        return self.plan(memory, engine) if self._allowed(memory, engine) else None

    def resolved(self, memory: MemorySpec) -> MemorySpec:
        """Return the section with tiles and segments as they will be, and without what has no effect: equal plans are
        equal."""
        if "tile" not in policies_of(memory):
            return memory
        costs = self.costs
        clips = min(memory.tile_clips or self._usual_clips, costs.clips)
        learning, once = costs.depth - costs.first_trained, memory.recompute == "once"
        ratio = costs.sizes.mlp_width / costs.sizes.width
        blocks = memory.segment_blocks or default_segment_blocks(max(1, learning), costs.clips, clips, ratio, once)
        blocks = max(1, min(blocks, learning))
        recompute = "once" if blocks == 1 else memory.recompute
        return memory.model_copy(update={"tile_clips": clips, "segment_blocks": blocks, "recompute": recompute})

    def _allowed(self, memory: MemorySpec, engine: str) -> bool:
        parallel = self.spec.parallel.model_copy(update={"engine": engine})
        return not memory_checks(self.spec.model_copy(update={"memory": memory, "parallel": parallel}))

    def best(self, plans: Iterable[Plan]) -> Plan | None:
        """The first that fits, of plans in order."""
        return next((plan for plan in plans if plan.fits(self.machine)), None)

    def smallest(self, plans: list[Plan]) -> Plan:
        """The one that takes least of the device, of those that the host has room for."""
        roomy = [plan for plan in plans if plan.fits_host(self.machine)]
        return min(roomy or plans, key=lambda plan: plan.bytes)

    def smaller(self, plans: list[Plan], than: Plan) -> Plan | None:
        """The fastest plan that takes at most NEXT_PLAN_FRACTION of another's memory; None if there is none."""
        limit = NEXT_PLAN_FRACTION * than.bytes
        return next((plan for plan in plans if plan.bytes <= limit and plan.fits_host(self.machine)), None)

    # One plan

    def own(self) -> Plan | None:
        """The plan of the spec as it is; None for `auto`."""
        if self.spec.memory.policy == "auto":
            return None
        return self.plan(self.resolved(self.spec.memory), _engine(self.spec))

    def plan(self, memory: MemorySpec, engine: str) -> Plan:
        """Plan a step. memory: resolved."""
        machine, accumulation = self.machine, self.spec.train.accumulation
        step = Step(self.costs, memory, engine, machine.ranks, accumulation > 1, not machine.shared)
        away = sum(getattr(memory, name) != "device" for name in PLACES) + (engine in SHARDS_FROZEN_WEIGHTS)
        flops = int(accumulation * sum(run.flops * times for run, times in step.runs))
        launches = int(accumulation * sum(run.kernels * times for run, times in step.runs))
        return Plan(memory, engine, step.content.total(), dict(step.content.most_common()), step.moment,
                    dict(step.host.most_common()), flops, launches, self.seconds(step), away)  # fmt: skip

    def seconds(self, step: Step) -> float:
        """Estimated time of a step. Products run at EFFICIENCY of the machine's rate, but no kernel ends before the
        next is launched; copies and gathers run beside them, all but a small share; AdamW's state and averages that
        wait on the host come and go after backward, beside nothing."""
        link = self.machine.pcie_gbps * 1e9
        computing, copying = self._computing(step.runs), step.copied / link
        micro_batch = max(computing, copying) + OVERLAP_LOSS * min(computing, copying)
        return micro_batch * self.spec.train.accumulation + step.copied_at_end / link

    def forward_seconds(self) -> float:
        """Estimated time of a window's forward pass alone, as in an evaluation."""
        costs = self.costs
        runs = [(costs.lowest("none").forward, 1), (costs.block("none", True).forward, costs.run_depth - 1)]
        return self._computing([*runs, (costs.outer.forward, 1)]) / costs.windows

    def _computing(self, runs: list[tuple[Run, float]]) -> float:
        rate, launch = self.machine.tflops * 1e12 * EFFICIENCY, self.machine.launch_seconds
        return sum(times * max(run.flops / rate, run.kernels * launch) for run, times in runs)
