"""Streams and events of the pretended GPU as vector clocks, and the uses of its memory by stream and time.

A clock holds, for each stream by number, how much of its work is known to be done. A stream that waits for another
merges the other's clock. Two uses of the same bytes, at least one a write, race if neither is known to come before the
other."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, UntypedStorage

Clock = dict[int, int]

PACKAGE = str(Path(__file__).parents[2]) + "/"
TORCH = str(Path(torch.__file__).parent) + "/"
OWN = (PACKAGE + "dev/", PACKAGE + "memory/meta.py")
"""Files whose lines are left out of a place, since they do what torch does on a GPU."""
FRAMES_OF_A_PLACE = 3
USES_KEPT = 128
"""Uses by one stream that a storage remembers; races with older ones aren't found."""


def place() -> str:
    """Return the lines of the package on the stack, innermost first: "models/vit.py:29 < models/backbone.py:70";
    without any, the line that called torch."""
    found: list[str] = []
    caller = ""
    # sys._getframe instead of traceback, which reads source lines: this runs for every counted event.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < FRAMES_OF_A_PLACE:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and not file.startswith(OWN):
            found.append(f"{file[len(PACKAGE) :]}:{frame.f_lineno}")
        elif not caller and not file.startswith((PACKAGE, TORCH)):
            caller = f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return " < ".join(found) or caller


@dataclass
class Counts:
    """Counts of each kind of event, by event and place in the code."""

    waits: Counter = field(default_factory=Counter)
    """Host waits for the device: a value that is read, a blocking copy, a result whose size depends on values."""
    unpinned: Counter = field(default_factory=Counter)
    """Non-blocking copies to the device from memory that isn't pinned: the driver copies twice, or waits."""
    pinnings: Counter = field(default_factory=Counter)
    """Allocations of pinned memory: slow, and the driver waits for the device."""
    races: Counter = field(default_factory=Counter)
    """Uses of the same bytes by two streams, or a stream and the host, without a wait between them."""
    freed: Counter = field(default_factory=Counter)
    """Memory that the allocator may reuse while another stream still uses it, by where it was freed."""
    launches: Counter = field(default_factory=Counter)
    """Kernels and copies, by operator."""

    def clear(self) -> None:
        """Set all counts to zero."""
        for counter in vars(self).values():
            counter.clear()


def learn(clock: Clock, other: Clock) -> None:
    """Merge another clock into a clock."""
    for number, time in other.items():
        if clock.get(number, 0) < time:
            clock[number] = time


class StreamTimeline:
    """The streams of one pretended GPU, with the host as one of them, and all memory that they use."""

    def __init__(self, counts: Counts):
        self.counts = counts
        self.streams: list[PretendedStream] = []
        # The host is stream 0, so that uses by it race like those of any stream.
        self.host = PretendedStream(self)
        self.current = [PretendedStream(self)]
        self.memories: dict[int, Memory] = {}
        self.pinned: dict[int, Any] = {}
        """Storages in pinned host memory, by address; kept, so that no other memory gets the same address."""
        self.pools: dict[int, list[tuple[int, int, str]]] = {}
        """Freed memory by number of its stream: the stream that still used it, until when, and where it was freed."""

    @property
    def stream(self) -> PretendedStream:
        """The current stream."""
        return self.current[-1]

    @contextmanager
    def on(self, stream: PretendedStream | None):
        """Make a stream the current one; None changes nothing, as in torch."""
        self.current.append(stream or self.stream)
        try:
            yield stream
        finally:
            self.current.pop()

    @property
    def everything(self) -> Clock:
        """The clock at which all work so far is done."""
        return {stream.number: stream.clock[stream.number] for stream in self.streams}

    def launch(self, what: str) -> None:
        """Count work on the current stream; it comes after all that the host has done or waited for."""
        self.counts.launches[what] += 1
        stream = self.stream
        # The host launches in order: whatever it waited for is done when this work starts.
        learn(stream.clock, self.host.clock)
        stream.clock[stream.number] += 1

    def wait(self, clock: Clock, why: str) -> None:
        """Have the host wait for the work that a clock holds."""
        learn(self.host.clock, clock)
        self.counts.waits[f"{why}: {place()}"] += 1

    def memory(self, tensor: Tensor) -> Memory:
        """Return the record of a tensor's storage; a new one belongs to the current stream."""
        storage = tensor.untyped_storage()
        on_host = tensor.device.type == "cpu"
        # Meta storages all have address 0: their C++ object identifies them, negative to be apart from addresses.
        key = storage.data_ptr() if on_host else -storage._cdata
        memory = self.memories.get(key)
        if memory is None:
            owner = self.host if on_host else self.stream
            memory = self.memories[key] = Memory(owner)
            if not on_host:
                # The pool may reuse any memory that was freed on this stream: uses by others must be done.
                for number, time, where in self.pools.pop(owner.number, ()):
                    if time > owner.clock.get(number, 0):
                        self.counts.freed[f"while {self.name(number)} still uses it: {where}"] += 1
                # Called when the last tensor on this storage is gone, as the caching allocator is.
                memory.dies = weakref.ref(storage, lambda _: self.free(key))
        return memory

    def use(self, tensor: Tensor, writes: bool, stream: PretendedStream) -> None:
        """Record that a stream, or the host, reads or writes a tensor now, and count the races."""
        if not tensor.numel():
            return
        memory, item = self.memory(tensor), tensor.itemsize
        first = tensor.storage_offset() * item
        # From the first byte to the last: gaps of strided tensors count as used.
        last = first + (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1) * item
        for number in memory.use(first, last, writes, stream):
            self.counts.races[f"{'writes' if writes else 'reads'} what {self.name(number)} still uses: {place()}"] += 1

    def free(self, key: int) -> None:
        """Give a storage back to its stream's pool."""
        memory = self.memories.pop(key)
        for number, time in memory.unknown_to_owner():
            self.pools.setdefault(memory.owner.number, []).append((number, time, place()))

    def resize(self, storage: UntypedStorage) -> None:
        """Treat the resizing of a storage as freeing it: FSDP and ours free weights that way."""
        key = -storage._cdata
        if storage.device.type != "cpu" and key in self.memories:
            self.free(key)

    def name(self, number: int) -> str:
        """Return a stream's name in counts."""
        return "the host" if number == self.host.number else f"stream {number - 1}"


class Memory:
    """One storage: the stream that it was made on, and the uses of its bytes by stream."""

    def __init__(self, owner: PretendedStream):
        self.owner = owner
        self.uses: dict[int, dict[tuple[int, int, bool], int]] = {}
        """Time of each use, by number of the stream, then by (first byte, byte behind the last, whether it is
        written)."""
        self.recorded: set[int] = set()
        """Streams given to `record_stream`, which the allocator waits for."""
        self.dies: weakref.ref | None = None

    def use(self, first: int, last: int, writes: bool, stream: PretendedStream) -> list[int]:
        """Record a use; return the numbers of the streams that it races with."""
        clock, raced = stream.clock, []
        for number, uses in self.uses.items():
            if number == stream.number:
                continue
            known = clock.get(number, 0)
            for (begin, end, wrote), time in list(uses.items()):
                if end <= first or last <= begin:
                    continue
                if time > known:
                    # Two reads never race.
                    if writes or wrote:
                        raced.append(number)
                elif first <= begin and end <= last and (writes or not wrote):
                    # This use covers that one, and comes after it: whoever waits for this one waits for both.
                    del uses[begin, end, wrote]
        own = self.uses.setdefault(stream.number, {})
        # A write makes this stream's earlier uses within it irrelevant: who waits for it waits for them.
        if writes and len(own) > 1:
            for begin, end, wrote in [use for use in own if first <= use[0] and use[1] <= last]:
                del own[begin, end, wrote]
        # Inserted last, so that the oldest are dropped first.
        own.pop((first, last, writes), None)
        own[first, last, writes] = clock.get(stream.number, 0)
        if len(own) > USES_KEPT:
            del own[next(iter(own))]
        return raced

    def unknown_to_owner(self) -> list[tuple[int, int]]:
        """Return the streams, with times, that use this memory and that its own stream hasn't waited for."""
        ends = {number: max(uses.values()) for number, uses in self.uses.items() if uses}
        clock = self.owner.clock
        return [(n, time) for n, time in ends.items() if n not in self.recorded and time > clock.get(n, 0)]


class PretendedStream:
    """Replacement of torch.cuda.Stream."""

    def __init__(self, timeline: StreamTimeline):
        self.timeline, self.number = timeline, len(timeline.streams)
        self.clock: Clock = {self.number: 0}
        timeline.streams.append(self)
        # A stack: `with stream:` may be nested in itself.
        self._entered: list[AbstractContextManager] = []

    def wait_stream(self, other: PretendedStream) -> None:
        """Wait for all work of another stream so far."""
        learn(self.clock, other.clock)

    def wait_event(self, event: PretendedEvent) -> None:
        """Wait for an event."""
        learn(self.clock, event.clock)

    def record_event(self, event: PretendedEvent | None = None) -> PretendedEvent:
        """Record an event, a new one by default."""
        event = event or PretendedEvent(self.timeline)
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Have the host wait."""
        self.timeline.wait(self.clock, "synchronize")

    def query(self) -> bool:
        """Return True: work counts as done when asked."""
        return True

    def is_capturing(self) -> bool:
        """Return False: there are no CUDA graphs."""
        return False

    def __enter__(self) -> PretendedStream:
        self._entered.append(self.timeline.on(self))
        self._entered[-1].__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.pop().__exit__(None, None, None)


class PretendedEvent:
    """Replacement of torch.cuda.Event: a stream's clock when it was recorded."""

    def __init__(self, timeline: StreamTimeline):
        self.timeline = timeline
        self.clock: Clock = {}

    def record(self, stream: PretendedStream | None = None) -> None:
        """Take the clock of a stream, by default the current one."""
        self.clock = dict((stream or self.timeline.stream).clock)

    def wait(self, stream: PretendedStream | None = None) -> None:
        """Have a stream wait for the event."""
        (stream or self.timeline.stream).wait_event(self)

    def synchronize(self) -> None:
        """Have the host wait."""
        self.timeline.wait(self.clock, "synchronize")

    def query(self) -> bool:
        """Return True: work counts as done when asked."""
        return True

    def elapsed_time(self, _: PretendedEvent) -> float:
        """Return a time in milliseconds, always 1."""
        return 1.0


def on_timeline(kind: Callable[[StreamTimeline], Any], timeline: StreamTimeline) -> type:
    """Return a class that takes torch.cuda.Stream's or Event's arguments, ignores them, and belongs to a timeline."""

    class Made(kind):
        """The kind on this timeline, whatever its arguments are."""

        def __init__(self, *_: object, **__: object):
            super().__init__(timeline)

    return Made
