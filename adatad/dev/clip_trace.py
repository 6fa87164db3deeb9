"""Traces of ranks that share a window: work and communication of each in order, and a simulation of them together.

The training code itself is traced, by any clock: floating-point operations on the meta device, CPU seconds on real
ranks. `replay` simulates how traced ranks wait for each other on machines of a given speed.
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
    """One event of a trace.

    work, detector: `amount` by the clock of the trace; send: `amount` bytes are sent to the neighbour on `side`;
    receive: a wait for the oldest planes from `side` not yet waited for; gather: all ranks wait for each other, and
    `amount` bytes of each go to all.
    """

    kind: Literal["work", "detector", "send", "receive", "gather"]
    amount: float = 0.0
    side: int = LEFT


@dataclass
class TracedGroup:
    """A clip group that records its exchanges, and the work between them."""

    group: ClipGroup | FakeClipGroup
    clock: Callable[[], float]
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def __getattr__(self, name: str) -> Any:
        # Everything else, such as the rank's own clips, is the group's.
        return getattr(self.group, name)

    def work_done(self, kind: Literal["work", "detector"] = "work") -> None:
        """Record the work since the last event."""
        now = self.clock()
        self.events.append(Event(kind, now - self._last))
        self._last = now

    def pad(self, window: Tensor, reach: int) -> Tensor:
        """Pad a window with the neighbours' planes, recording the exchange."""
        return pad_from_ranks(self, window, reach)

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        """Exchange planes with the neighbour on one side."""
        return self.exchange_sides({side: planes})[side]

    def exchange_sides(self, planes: dict[int, Tensor]) -> dict[int, PendingPlanes]:
        """Record sending to every side, and later the wait for each arrival."""
        self.work_done()
        self.events += [Event("send", own.numel() * own.element_size(), side) for side, own in planes.items()]
        arrivals = self.group.exchange_sides(planes)
        # Sending isn't work: the clock starts again behind it.
        self._last = self.clock()
        return {side: partial(self._arrived, side, arrival) for side, arrival in arrivals.items()}

    def _arrived(self, side: int, arrival: PendingPlanes) -> Tensor:
        self.work_done()
        self.events.append(Event("receive", side=side))
        planes = arrival()
        self._last = self.clock()
        return planes

    def gather(self, own: Tensor) -> Tensor:
        """Record a gather of all ranks' tensors."""
        self.work_done()
        self.events.append(Event("gather", own.numel() * own.element_size()))
        joined = self.group.gather(own)
        self._last = self.clock()
        return joined


@dataclass(frozen=True)
class ReplayMachine:
    """Speeds for a simulation. work: per second, in units of the traces' clock; link: bytes per second between
    neighbours, each way; latency_seconds: of one exchange; slow: by rank, the factor by which it is slower."""

    work: float
    link: float
    latency_seconds: float
    slow: dict[int, float] = field(default_factory=dict)


class Replay(NamedTuple):
    """Result of a simulation. seconds: until the last rank is done; idle: for every rank, seconds in which it waits."""

    seconds: float
    idle: list[float]

    @property
    def idle_share(self) -> float:
        """Share of all ranks' time that is spent waiting."""
        return sum(self.idle) / (len(self.idle) * self.seconds)


def replay(traces: Sequence[Sequence[Event]], machine: ReplayMachine) -> Replay:
    """Simulate the traces of all ranks of a group, in order of rank."""
    ranks = [_Rank(number, trace, machine) for number, trace in enumerate(traces)]
    while any(rank.left for rank in ranks):
        moved = [rank.advance(ranks) for rank in ranks]
        if any(moved):
            continue
        if all(rank.left and rank.event.kind == "gather" for rank in ranks):
            latest = max(rank.now for rank in ranks)
            for rank in ranks:
                # A ring: every rank passes on the bytes of all others.
                cost = machine.latency_seconds + (len(ranks) - 1) * rank.event.amount / machine.link
                rank.wait_until(latest + cost)
                rank.at += 1
        else:
            # Nobody can go on: the traces belong to different groups, or the code traced deadlocks.
            raise RuntimeError(f"ranks wait for each other: {[rank.event for rank in ranks]}")
    end = max(rank.now for rank in ranks)
    # Ranks that are done early wait for the last one.
    return Replay(end, [rank.idle + end - rank.now for rank in ranks])


class _Rank:
    def __init__(self, number: int, trace: Sequence[Event], machine: ReplayMachine):
        self.number, self.trace, self.machine = number, trace, machine
        self.at, self.now, self.idle = 0, 0.0, 0.0
        self.sent: dict[int, list[float]] = {LEFT: [], RIGHT: []}
        """Times at which sent planes arrive, by side."""
        self.taken = {LEFT: 0, RIGHT: 0}

    @property
    def left(self) -> bool:
        """True while events of this rank are left."""
        return self.at < len(self.trace)

    @property
    def event(self) -> Event | None:
        """The next event; None at the end."""
        return self.trace[self.at] if self.left else None

    def advance(self, ranks: list[_Rank]) -> bool:
        """Simulate events until one that depends on what another rank hasn't simulated yet; return whether there was
        any."""
        start = self.at
        while self.left and self.event.kind != "gather":
            kind, amount, side = self.event
            if kind in ("work", "detector"):
                # Compute is slowed down by a slow rank, communication isn't.
                self.now += amount / self.machine.work * self.machine.slow.get(self.number, 1.0)
            elif kind == "send":
                # Sends overlap compute: the sender's time doesn't move.
                self.sent[side].append(self.now + self.machine.latency_seconds + amount / self.machine.link)
            else:
                # What arrives from the right, the right neighbour sent to its left.
                there = ranks[self.number + (1 if side == RIGHT else -1)].sent[1 - side]
                if self.taken[side] == len(there):
                    # Not sent yet in the simulation: the neighbour has to be advanced first.
                    break
                self.wait_until(there[self.taken[side]])
                self.taken[side] += 1
            self.at += 1
        return self.at > start

    def wait_until(self, moment: float) -> None:
        """Let the rank stand idle until a moment, if that is still to come."""
        self.idle += max(0.0, moment - self.now)
        self.now = max(self.now, moment)
