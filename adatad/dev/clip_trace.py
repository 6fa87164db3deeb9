"""What one rank of a clip group does between its exchanges, in order; and what follows for all of them together.

A trace is taken of the code that trains, whichever clock it runs by: floating-point operations on the meta device, CPU
seconds on real ranks. `replay` lets traced ranks wait for each other, on machines of a given speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from adatad.memory.tiles import LEFT, RIGHT, PendingPlanes
from adatad.parallel.clip import ClipGroup, FakeClipGroup, pad_from_ranks


class Event(NamedTuple):
    """work, and the detector's: `amount` by the clock of the trace; trade: `amount` bytes leave for the neighbour on
    `side`; arrive: waits for the oldest planes from there that weren't waited for; gather: all ranks of the group meet,
    and `amount` bytes of each go to all."""

    kind: Literal["work", "detector", "trade", "arrive", "gather"]
    amount: float = 0.0
    side: int = LEFT


@dataclass
class TracedGroup:
    """A group whose exchanges are noted, with the work between them."""

    group: ClipGroup | FakeClipGroup
    clock: Callable[[], float]
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)

    def work_done(self, kind: Literal["work", "detector"] = "work") -> None:
        """Note the work since the last event."""
        now = self.clock()
        self.events.append(Event(kind, now - self._last))
        self._last = now

    def pad(self, window: Tensor, reach: int) -> Tensor:
        return pad_from_ranks(self, window, reach)

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        return self.exchange_sides({side: planes})[side]

    def exchange_sides(self, planes: dict[int, Tensor]) -> dict[int, PendingPlanes]:
        self.work_done()
        self.events += [Event("trade", own.numel() * own.element_size(), side) for side, own in planes.items()]
        arrivals = self.group.exchange_sides(planes)
        self._last = self.clock()
        return {side: partial(self._arrived, side, arrival) for side, arrival in arrivals.items()}

    def _arrived(self, side: int, arrival: PendingPlanes) -> Tensor:
        self.work_done()
        self.events.append(Event("arrive", side=side))
        planes = arrival()
        self._last = self.clock()
        return planes

    def gather(self, own: Tensor) -> Tensor:
        self.work_done()
        self.events.append(Event("gather", own.numel() * own.element_size()))
        joined = self.group.gather(own)
        self._last = self.clock()
        return joined


@dataclass(frozen=True)
class ReplayMachine:
    """work: by the traces' clock, per second; link: bytes per second between neighbours, each way; latency_seconds: of
    one exchange; slow: rank to the factor by which it takes longer."""

    work: float
    link: float
    latency_seconds: float
    slow: dict[int, float] = field(default_factory=dict)


class Replay(NamedTuple):
    """seconds: until the last rank is done; idle: of every rank, seconds in which it waits."""

    seconds: float
    idle: list[float]

    @property
    def idle_share(self) -> float:
        return sum(self.idle) / (len(self.idle) * self.seconds)


def replay(traces: Sequence[Sequence[Event]], machine: ReplayMachine) -> Replay:
    """Traces of all ranks of a group, in order, run against each other."""
    ranks = [_Rank(number, trace, machine) for number, trace in enumerate(traces)]
    while any(rank.left for rank in ranks):
        moved = [rank.go_on(ranks) for rank in ranks]
        if not any(moved) and not _meet(ranks, machine):
            raise RuntimeError(f"ranks wait for each other: {[rank.event for rank in ranks]}")
    end = max(rank.now for rank in ranks)
    return Replay(end, [rank.idle + end - rank.now for rank in ranks])


class _Rank:
    def __init__(self, number: int, trace: Sequence[Event], machine: ReplayMachine):
        self.number, self.trace, self.machine = number, trace, machine
        self.at, self.now, self.idle = 0, 0.0, 0.0
        self.sent: dict[int, list[float]] = {LEFT: [], RIGHT: []}
        """By side, when its planes are there."""
        self.taken = {LEFT: 0, RIGHT: 0}

    @property
    def left(self) -> bool:
        return self.at < len(self.trace)

    @property
    def event(self) -> Event | None:
        return self.trace[self.at] if self.left else None

    def go_on(self, ranks: list[_Rank]) -> bool:
        """As far as it can without waiting for what another hasn't done yet."""
        start = self.at
        while self.left and self.event.kind != "gather":
            kind, amount, side = self.event
            if kind in ("work", "detector"):
                self.now += amount / self.machine.work * self.machine.slow.get(self.number, 1.0)
            elif kind == "trade":
                self.sent[side].append(self.now + self.machine.latency_seconds + amount / self.machine.link)
            else:
                there = ranks[self.number + (1 if side == RIGHT else -1)].sent[1 - side]
                if self.taken[side] == len(there):
                    break
                self.wait_until(there[self.taken[side]])
                self.taken[side] += 1
            self.at += 1
        return self.at > start

    def wait_until(self, moment: float) -> None:
        self.idle += max(0.0, moment - self.now)
        self.now = max(self.now, moment)


def _meet(ranks: list[_Rank], machine: ReplayMachine) -> bool:
    """All ranks at a gather: they go on together."""
    if not all(rank.left and rank.event.kind == "gather" for rank in ranks):
        return False
    latest = max(rank.now for rank in ranks)
    for rank in ranks:
        cost = machine.latency_seconds + (len(ranks) - 1) * rank.event.amount / machine.link
        rank.wait_until(latest + cost)
        rank.at += 1
    return True
