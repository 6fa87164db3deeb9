"""Times of the parts of a step, from what torch.profiler has recorded of it.

Parts are the ranges that `memory_scope` and `timed_part` open while a step is profiled. They nest, and a part's own
time is what no range inside it has. A kernel of a GPU belongs to the innermost range that was open when the host
launched it. Where autograd goes back through modules no range is open: each of its nodes takes the name of the part
that made it in forward.

Times are microseconds on the profiler's clock.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.autograd import DeviceType

from adatad.memory.scopes import RECOMPUTATION, WAIT

PREFIX = "adatad: "
"""Start of the names of our ranges in a profile."""
STEP, BACKWARD, COMMUNICATION = "step", "backward", "communication"
OTHER, IDLE = "other", "device idle"
WORDS = {
    STEP: OTHER, "tile": "blocks", "window": "blocks", "held graphs": "blocks", "features": "backbone",
    "optimizer state": "optimizer", BACKWARD: "rest",
}  # fmt: skip
"""Ranges that have another name as a part: memory is counted more finely than time."""
SEGMENT = re.compile(r"blocks \d+ to \d+")
NODE = "autograd::engine::evaluate_function: "
"""Start of the names of autograd's nodes, going back."""
# RecordScope::BACKWARD_FUNCTION, which Python has no name for: the same nodes a second time, inside of those.
BACKWARD_FUNCTION = 1


class PartTime(NamedTuple):
    """A part's share of a step, averaged over the profiled ones. milliseconds: on the device, or of a CPU; calls: how
    often it was entered (parts of a backward pass: nodes of autograd); allocated_bytes: by its operators, freed or
    not."""

    part: str
    milliseconds: float
    calls: float
    allocated_bytes: int


@dataclass(eq=False)
class Range:
    """A range of a profile, and the one around it. inside: time of those directly in it."""

    name: str
    start: float
    end: float
    around: Range | None = None
    inside: float = 0.0

    @property
    def own(self) -> float:
        """Time that no inner range has."""
        return self.end - self.start - self.inside

    @property
    def path(self) -> list[str]:
        """Names from this range outwards."""
        return [self.name, *(self.around.path if self.around else ())]

    @property
    def word(self) -> str:
        """The range's own name as that of a part, whether it is open in forward or in backward."""
        # Of the part around it, computed a second time.
        if self.name == RECOMPUTATION and self.around is not None:
            return self.around.word
        return "blocks" if SEGMENT.fullmatch(self.name) else WORDS.get(self.name, self.name)

    @property
    def part(self) -> str:
        """The part that the range's own time belongs to."""
        path = self.path
        if BACKWARD not in path:
            return self.word
        return f"backward: {self.word}{', recomputed' if RECOMPUTATION in path else ''}"

    @property
    def enters(self) -> bool:
        """True where the part is entered, and not gone on with."""
        around = self.around
        if self.name == RECOMPUTATION:
            return False
        return around is None or around.name == RECOMPUTATION or around.part != self.part


class Ranges:
    """Ranges that nest in time, on whichever threads of the host they were opened: all of them wait for each other."""

    def __init__(self, ranges: Iterable[Range]):
        self.all = sorted(ranges, key=lambda one: (one.start, -one.end))
        self._starts = [one.start for one in self.all]
        last: Range | None = None
        for one in self.all:
            one.inside = 0.0
            while last is not None and last.end <= one.start:
                last = last.around
            one.around = last
            if last is not None:
                last.inside += one.end - one.start
            last = one

    def at(self, time: float) -> Range | None:
        """Return the innermost range that is open at a time."""
        number = bisect_right(self._starts, time) - 1
        found = self.all[number] if number >= 0 else None
        while found is not None and found.end < time:
            found = found.around
        return found

    def step_at(self, time: float) -> Range | None:
        """Return the same, but None outside of all steps."""
        found = self.at(time)
        return found if found is not None and found.path[-1] == STEP else None


def part_times(events: Iterable[Any], steps: int, on_device: bool) -> list[PartTime]:
    """Return the parts of a step, the dearest first.

    events: torch.profiler's (FunctionEvent); steps: how many were profiled. on_device: times are those of a GPU's
    kernels, with rows for what it waits: for data, and for anything else. Otherwise all rows together are the step.
    """
    events = list(events)
    ops = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    ranges = with_autograd(Ranges(our_ranges(ops)), ops)
    inside = [one for one in ranges.all if one.path[-1] == STEP]
    calls, allocated = Counter(one.part for one in inside if one.enters), Counter()
    for op in ops:
        size = op.self_device_memory_usage if on_device else op.self_cpu_memory_usage
        if size > 0 and (found := ranges.step_at(op.time_range.start)):
            allocated[found.part] += size
    host = Counter()
    for one in inside:
        host[one.part] += one.own
    times = host if not on_device else device_times(events, ops, ranges, host[WAIT])
    rows = [
        PartTime(part, time / steps / 1000, calls[part] / steps, allocated[part] // steps)
        for part, time in times.items()
        if time > 0
    ]
    return sorted(rows, key=lambda row: -row.milliseconds)


def our_ranges(ops: Iterable[Any]) -> list[Range]:
    """Return the ranges that the profiled step has opened itself."""
    found = (op for op in ops if op.name.startswith(PREFIX))
    return [Range(op.name.removeprefix(PREFIX), op.time_range.start, op.time_range.end) for op in found]


def with_autograd(ranges: Ranges, ops: list[Any]) -> Ranges:
    """Return the ranges with one more for each node of autograd, named after the part that made it."""
    made: dict[tuple[int, int], str] = {}
    nodes = []
    for op in ops:
        if op.sequence_nr < 0 or op.name.startswith(PREFIX):
            continue
        if op.name.startswith(NODE):
            nodes.append(op)
        elif op.scope != BACKWARD_FUNCTION and (around := ranges.at(op.time_range.start)) is not None:
            # Operators that make no node show the next one's number: the last to show it is the one that makes it.
            made[op.thread, op.sequence_nr] = around.word
    named = [(made.get((op.fwd_thread, op.sequence_nr)), op.time_range) for op in nodes]
    return Ranges([*ranges.all, *(Range(word, time.start, time.end) for word, time in named if word is not None)])


def device_times(events: list[Any], ops: list[Any], ranges: Ranges, waiting: float) -> Counter:
    """Return the time of a GPU's kernels by part, and what it had nothing to do. waiting: for data, on the host."""
    launches = {op.id: op.time_range.start for op in ops if not op.linked_correlation_id}
    times, spans = Counter(), []
    for event in events:
        # Ranges are drawn on the GPU, too, where they would count a second time.
        if event.device_type == DeviceType.CPU or event.is_user_annotation:
            continue
        launched = ranges.step_at(launches.get(event.linked_correlation_id, event.time_range.start))
        if launched is None:
            continue
        start, end = event.time_range.start, event.time_range.end
        # Collectives are queued by hooks, in the middle of any part.
        times[COMMUNICATION if "nccl" in event.name.lower() else launched.part] += end - start
        spans.append((start, end))
    whole = sum(one.end - one.start for one in ranges.all if one.name == STEP)
    times[WAIT] += waiting
    times[IDLE] = max(0.0, whole - covered(spans) - waiting)
    return times


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the time that at least one of the spans covers: kernels of several streams run beside each other."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
