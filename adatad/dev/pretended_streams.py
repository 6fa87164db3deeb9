"""Streams and events of the pretended GPU as vector clocks, and who uses which bytes of its memory when.

A clock says, for each stream by its number, how much of that stream's work is certainly done. A stream learns another's
clock where it waits for it; two uses of the same bytes, one of them a write, of which neither knows of the other, race.
"""

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

PACKAGE = str(Path(__file__).parents[1]) + "/"
TORCH = str(Path(torch.__file__).parent) + "/"
OWN = (str(Path(__file__).parent) + "/", PACKAGE + "memory/meta.py")
"""Lines of these are in no place: they do what torch does on a GPU."""
FRAMES_OF_A_PLACE = 3
USES_KEPT = 128
"""Uses of one stream that a storage remembers; older ones are forgotten, and races with them not found."""


def place() -> str:
    """Return the lines of the package that are being run, innermost first: "models/draws.py:29 < models/vit.py:70".
    Outside of the package, the line that called torch."""
    found: list[str] = []
    caller = ""
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
    """What was counted, each by what and where."""

    waits: Counter = field(default_factory=Counter)
    """Host waits for the device: a value that is read, a blocking copy, a result whose size is its content's."""
    unpinned: Counter = field(default_factory=Counter)
    """Copies to the device that shall not block, from memory that isn't pinned: the driver copies twice, or waits."""
    pinnings: Counter = field(default_factory=Counter)
    """Pieces of host memory that are pinned: slow, and the driver waits for the device."""
    races: Counter = field(default_factory=Counter)
    """Uses of the same bytes by two streams, or a stream and the host, of which neither waits for the other."""
    freed: Counter = field(default_factory=Counter)
    """Memory that its stream's pool may hand out again while another stream still uses it, by where it was freed."""
    launches: Counter = field(default_factory=Counter)
    """Kernels and copies, by operator."""

    def clear(self) -> None:
        for counter in vars(self).values():
            counter.clear()


def learn(clock: Clock, other: Clock) -> None:
    """Add to a clock what another one knows."""
    for number, time in other.items():
        if clock.get(number, 0) < time:
            clock[number] = time


class StreamTimeline:
    """The streams of one pretended GPU, the host among them, and all memory that they use."""

    def __init__(self, counts: Counts):
        self.counts = counts
        self.streams: list[PretendedStream] = []
        self.host = PretendedStream(self)
        self.current = [PretendedStream(self)]
        self.memories: dict[int, Memory] = {}
        self.pinned: dict[int, Any] = {}
        """Storages in pinned host memory, by address; they stay, so that no other memory gets the same address."""
        self.pools: dict[int, list[tuple[int, int, str]]] = {}
        """Freed memory by number of its stream: who still used it, until when, and where it was freed."""

    @property
    def stream(self) -> PretendedStream:
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
        """The clock of who knows all work so far to be done."""
        return {stream.number: stream.clock[stream.number] for stream in self.streams}

    def launch(self, what: str) -> None:
        """Count work on the current stream; it comes after all that the host has waited for or done itself."""
        self.counts.launches[what] += 1
        stream = self.stream
        learn(stream.clock, self.host.clock)
        stream.clock[stream.number] += 1

    def wait(self, clock: Clock, why: str) -> None:
        """Have the host wait until what a clock says is done."""
        learn(self.host.clock, clock)
        self.counts.waits[f"{why}: {place()}"] += 1

    def memory(self, tensor: Tensor) -> Memory:
        """Return what is known of a tensor's storage; a new one belongs to the current stream."""
        storage = tensor.untyped_storage()
        on_host = tensor.device.type == "cpu"
        key = storage.data_ptr() if on_host else -storage._cdata
        memory = self.memories.get(key)
        if memory is None:
            owner = self.host if on_host else self.stream
            memory = self.memories[key] = Memory(owner)
            if not on_host:
                self._hand_out(owner)
                memory.dies = weakref.ref(storage, lambda _: self.free(key))
        return memory

    def use(self, tensor: Tensor, writes: bool, stream: PretendedStream) -> None:
        """Note that a stream, or the host, reads or writes a tensor now, and count what races with it."""
        if not tensor.numel():
            return
        memory, item = self.memory(tensor), tensor.itemsize
        first = tensor.storage_offset() * item
        # From the first byte to the last: what strides leave out counts as used.
        last = first + (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1) * item
        for number in memory.use(first, last, writes, stream):
            self.counts.races[f"{'writes' if writes else 'reads'} what {self.name(number)} still uses: {place()}"] += 1

    def free(self, key: int) -> None:
        memory = self.memories.pop(key)
        for number, time in memory.unknown_to_owner():
            self.pools.setdefault(memory.owner.number, []).append((number, time, place()))

    def _hand_out(self, owner: PretendedStream) -> None:
        """New memory of a stream may be any that was freed to its pool: all who used that must be known to be done."""
        for number, time, where in self.pools.pop(owner.number, ()):
            if time > owner.clock.get(number, 0):
                self.counts.freed[f"while {self.name(number)} still uses it: {where}"] += 1

    def resize(self, storage: UntypedStorage) -> None:
        """Take a storage that is resized for memory that is freed, and other memory from then on."""
        key = -storage._cdata
        if storage.device.type != "cpu" and key in self.memories:
            self.free(key)

    def name(self, number: int) -> str:
        return "the host" if number == self.host.number else f"stream {number - 1}"


class Memory:
    """One storage: the stream that it was made on, and who uses which of its bytes."""

    def __init__(self, owner: PretendedStream):
        self.owner = owner
        self.uses: dict[int, dict[tuple[int, int, bool], int]] = {}
        """By number of the stream, then (first byte, byte behind the last, whether it is written): the time."""
        self.recorded: set[int] = set()
        """Streams that `record_stream` named: the allocator waits for them."""
        self.dies: weakref.ref | None = None

    def use(self, first: int, last: int, writes: bool, stream: PretendedStream) -> list[int]:
        """Note a use; returns the streams that it races with, by number."""
        clock, raced = stream.clock, []
        for number, uses in self.uses.items():
            if number == stream.number:
                continue
            known = clock.get(number, 0)
            for (begin, end, wrote), time in list(uses.items()):
                if end <= first or last <= begin:
                    continue
                if time > known:
                    if writes or wrote:
                        raced.append(number)
                elif first <= begin and end <= last and (writes or not wrote):
                    # Who knows of this use knows of that one too.
                    del uses[begin, end, wrote]
        own = self.uses.setdefault(stream.number, {})
        if writes and len(own) > 1:
            for begin, end, wrote in [use for use in own if first <= use[0] and use[1] <= last]:
                del own[begin, end, wrote]
        # Last in order, so that the oldest are forgotten first.
        own.pop((first, last, writes), None)
        own[first, last, writes] = clock.get(stream.number, 0)
        if len(own) > USES_KEPT:
            del own[next(iter(own))]
        return raced

    def unknown_to_owner(self) -> list[tuple[int, int]]:
        """Return the streams that use this memory and that its own stream hasn't waited for, and until when."""
        ends = {number: max(uses.values()) for number, uses in self.uses.items() if uses}
        clock = self.owner.clock
        return [(n, time) for n, time in ends.items() if n not in self.recorded and time > clock.get(n, 0)]


class PretendedStream:
    """A stream in the place of torch.cuda.Stream."""

    def __init__(self, timeline: StreamTimeline):
        self.timeline, self.number = timeline, len(timeline.streams)
        self.clock: Clock = {self.number: 0}
        timeline.streams.append(self)
        self._entered: list[AbstractContextManager] = []

    def wait_stream(self, other: PretendedStream) -> None:
        learn(self.clock, other.clock)

    def wait_event(self, event: PretendedEvent) -> None:
        learn(self.clock, event.clock)

    def record_event(self, event: PretendedEvent | None = None) -> PretendedEvent:
        event = event or PretendedEvent(self.timeline)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.timeline.wait(self.clock, "synchronize")

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> PretendedStream:
        self._entered.append(self.timeline.on(self))
        self._entered[-1].__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.pop().__exit__(None, None, None)


class PretendedEvent:
    """An event in the place of torch.cuda.Event: a stream's clock when it was recorded."""

    def __init__(self, timeline: StreamTimeline):
        self.timeline = timeline
        self.clock: Clock = {}

    def record(self, stream: PretendedStream | None = None) -> None:
        self.clock = dict((stream or self.timeline.stream).clock)

    def wait(self, stream: PretendedStream | None = None) -> None:
        (stream or self.timeline.stream).wait_event(self)

    def synchronize(self) -> None:
        self.timeline.wait(self.clock, "synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: PretendedEvent) -> float:
        return 1.0


def on_timeline(kind: Callable[[StreamTimeline], Any], timeline: StreamTimeline) -> type:
    """Return a class for torch.cuda.Stream or Event: whatever it is made with, it belongs to one timeline."""

    class Made(kind):
        def __init__(self, *_: object, **__: object):
            super().__init__(timeline)

    return Made
