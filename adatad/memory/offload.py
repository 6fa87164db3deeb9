"""Host memory for what a training step keeps but doesn't need for a while, and copies that run beside arithmetic.

Nothing is allocated while copies are wanted: slots in pinned memory and the buffers that copies leave from are made
once and used again in every step. Where there are no streams (CPU) copies are made at once; on the meta device there is
nothing to copy, and only what the device holds is counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from adatad.errors import UserError
from adatad.memory.labels import label

GIB = 2**30
PIECE_BYTES = 64 * 2**20
"""Of tensors that are updated together, whose state is on the device then."""
LEAVING = 2
"""Buffers that copies to the host leave from: one fills while the other is on its way."""


class HostMemoryError(UserError):
    """Host memory that can't be had; the message says how much of what, and what to set."""


class Copies(Protocol):
    """Carries out copies between device and host, perhaps later."""

    def start(self, to: Tensor, source: Tensor, after: Any = None) -> Any:
        """Begin a copy of what `source` holds now; it runs after the copy of ticket `after`. Returns a ticket.
        Neither tensor may be changed or freed before `wait`."""

    def wait(self, ticket: Any) -> None:
        """All that the caller does from here on comes after that copy."""


class CopiesAtOnce:
    """Where the device is the host, or nothing exists at all (meta)."""

    def start(self, to: Tensor, source: Tensor, after: Any = None) -> None:
        if not to.is_meta and not source.is_meta:
            to.copy_(source)

    def wait(self, ticket: None) -> None:
        pass


class CopiesOnStreams:
    """Copies on CUDA streams of their own, one for each direction."""

    def __init__(self) -> None:
        self._streams = {"out": torch.cuda.Stream(), "in": torch.cuda.Stream()}

    def start(self, to: Tensor, source: Tensor, after: torch.cuda.Event | None = None) -> torch.cuda.Event:
        # Read before the side stream becomes the current one: copies wait for what computed their source.
        computing = torch.cuda.current_stream()
        stream = self._streams["out" if source.is_cuda else "in"]
        stream.wait_stream(computing)
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            to.copy_(source, non_blocking=True)
            return stream.record_event()

    def wait(self, ticket: torch.cuda.Event | None) -> None:
        if ticket is not None:
            torch.cuda.current_stream().wait_event(ticket)


def copies_for(device: torch.device) -> Copies:
    return CopiesOnStreams() if device.type == "cuda" else CopiesAtOnce()


@dataclass
class Slot:
    """A piece of host memory, as bytes, and the last copy into or out of it. For the meta device it is only a size."""

    size_bytes: int
    memory: Tensor
    ticket: Any = None

    def view(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if not len(self.memory):
            return self.memory
        return self.memory[: shape.numel() * dtype.itemsize].view(dtype).view(shape)


@dataclass
class HostMemory:
    """The host memory of a run's saved tensors: slots by size, made once, and a bound on them all."""

    device: torch.device
    limit_bytes: int | None = None
    copies: Copies = None
    bytes: int = 0
    """Of all slots."""
    _free: dict[int, list[Slot]] = field(default_factory=dict)
    _leaving: dict[int, list[Slot]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.copies = self.copies or copies_for(self.device)

    def __reduce__(self) -> tuple:
        # A copy of a model makes its own: streams can't be copied, and what waits here belongs to one step.
        return HostMemory, (self.device, self.limit_bytes)

    def reserve(self, count: int, slot_bytes: int, what: str) -> None:
        """Have `count` free slots of a size. Raises HostMemoryError, which names `what` they are for."""
        missing = count - len(self._free.setdefault(slot_bytes, []))
        if missing <= 0:
            return
        wanted = self.bytes + missing * slot_bytes
        if self.limit_bytes is not None and wanted > self.limit_bytes:
            raise HostMemoryError(
                f"{what} on the host take {wanted / GIB:.2f} GiB there, memory.host_limit_gib allows "
                f"{self.limit_bytes / GIB:.2f}: raise it, raise memory.segment_blocks, or leave some on the device"
            )
        if self.device.type == "meta":
            rows = iter([torch.empty(0, dtype=torch.uint8)] * missing)
        else:
            rows = pinned_rows(missing, slot_bytes, self.device, what)
        for row in rows:
            self._free[slot_bytes].append(Slot(slot_bytes, row))
            self.bytes += slot_bytes

    def take_slot(self, slot_bytes: int) -> Slot:
        return self._free[slot_bytes].pop()

    def give_back(self, slot: Slot) -> None:
        self._free[slot.size_bytes].append(slot)

    def leave(self, slot: Slot, tensor: Tensor) -> None:
        """Copy a tensor to a slot; the tensor may be changed or freed at once."""
        size = slot.size_bytes
        if size not in self._leaving:
            with label("offload buffers"):
                buffers = torch.empty(LEAVING, size, dtype=torch.uint8, device=self.device)
            self._leaving[size] = [Slot(size, row) for row in buffers]
        buffer = self._leaving[size].pop(0)
        self._leaving[size].append(buffer)
        self.copies.wait(buffer.ticket)
        source = buffer.view(tensor.shape, tensor.dtype)
        source.copy_(tensor)
        to = slot.view(tensor.shape, tensor.dtype)
        # Who took the slot's last content has waited for it.
        buffer.ticket = slot.ticket = self.copies.start(to, source)


def pinned_rows(count: int, size_bytes: int, device: torch.device, what: str) -> Iterator[Tensor]:
    """Pieces of one size, made many at a time.

    torch rounds whatever it pins up to a power of two, so that a single slab could take twice what was asked for: each
    slab here is just below a power of two.
    """
    while count > 0:
        below = 2 ** ((count * size_bytes).bit_length() - 1)
        together = max(1, below // size_bytes)
        yield from pinned(torch.Size((together, size_bytes)), torch.uint8, device, what)
        count -= together


def pinned(shape: torch.Size, dtype: torch.dtype, device: torch.device, what: str) -> Tensor:
    """Host memory that a GPU can copy from and to without help of the CPU; ordinary memory for other devices."""
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    except RuntimeError as error:
        size = shape.numel() * dtype.itemsize / GIB
        raise HostMemoryError(
            f"{size:.2f} GiB more of pinned host memory for {what} can't be had ({error}): leave it on the device "
            "(memory.saved_inputs, memory.halos, ...), or allow the process more locked memory (ulimit -l, the job's "
            "memory)"
        ) from error


class Shelf(Protocol):
    """Where tensors of one kind wait, by key, until they are taken back."""

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """The tensor is the shelf's from now on."""

    def put_copy(self, key: Hashable, tensor: Tensor) -> None:
        """The tensor stays the caller's, who may change it at once."""

    def want(self, key: Hashable) -> None:
        """`take` will come soon. A key that isn't there, or was wanted before, is passed over."""

    def take(self, key: Hashable) -> Tensor: ...


class DeviceShelf:
    """On the device: nothing moves. name: the label that a meter counts copies under."""

    def __init__(self, name: str):
        self.name = name
        self._there: dict[Hashable, Tensor] = {}

    def put(self, key: Hashable, tensor: Tensor) -> None:
        self._there[key] = tensor

    def put_copy(self, key: Hashable, tensor: Tensor) -> None:
        with label(self.name):
            self._there[key] = tensor.clone()

    def want(self, key: Hashable) -> None:
        pass

    def take(self, key: Hashable) -> Tensor:
        return self._there.pop(key)


class HostShelf:
    """In slots of host memory of one size. State belongs to one forward and backward pass; slots outlive it."""

    def __init__(self, name: str, memory: HostMemory, slot_bytes: int):
        self.name, self.memory, self.slot_bytes = name, memory, slot_bytes
        self._there: dict[Hashable, tuple[Slot, torch.Size, torch.dtype]] = {}
        self._coming: dict[Hashable, tuple[Tensor, Any]] = {}

    def put(self, key: Hashable, tensor: Tensor) -> None:
        self.memory.reserve(1, self.slot_bytes, self.name)
        slot = self.memory.take_slot(self.slot_bytes)
        self.memory.leave(slot, tensor)
        self._there[key] = slot, tensor.shape, tensor.dtype

    put_copy = put

    def want(self, key: Hashable) -> None:
        if key not in self._there or key in self._coming:
            return
        slot, shape, dtype = self._there[key]
        with label(self.name):
            tensor = torch.empty(shape, dtype=dtype, device=self.memory.device)
        slot.ticket = self.memory.copies.start(tensor, slot.view(shape, dtype), slot.ticket)
        self._coming[key] = tensor, slot.ticket

    def take(self, key: Hashable) -> Tensor:
        self.want(key)
        tensor, ticket = self._coming.pop(key)
        self.memory.copies.wait(ticket)
        self.memory.give_back(self._there.pop(key)[0])
        return tensor

    def __del__(self) -> None:
        # A pass that was given up before its backward leaves its slots behind.
        for slot, *_ in self._there.values():
            self.memory.give_back(slot)


def shelf(name: str, memory: HostMemory | None, slot_bytes: int, count: int) -> Shelf:
    """On the device without host memory, else in `count` slots there."""
    if memory is None:
        return DeviceShelf(name)
    memory.reserve(count, slot_bytes, name)
    return HostShelf(name, memory, slot_bytes)


# What is updated once a step, on the device, some tensors at a time


def pieces(tensors: Sequence[Tensor], most_bytes: int | None = None) -> Iterator[list[Tensor]]:
    """The tensors in order, at most `most_bytes` (None: `PIECE_BYTES`) together or one alone."""
    most_bytes = most_bytes or PIECE_BYTES
    piece, size = [], 0
    for tensor in tensors:
        if piece and size + tensor.nbytes > most_bytes:
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.nbytes
    if piece:
        yield piece


def host_like(tensor: Tensor, what: str) -> Tensor:
    """Host memory for a tensor of the device."""
    return pinned(tensor.shape, tensor.dtype, tensor.device, what)


def write_host(host: Tensor, tensor: Tensor) -> Tensor:
    """The tensor's values, once the device has come so far."""
    return host if tensor.is_meta else host.copy_(tensor, non_blocking=True)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    if device.type == "meta":
        return torch.empty(host.shape, dtype=host.dtype, device=device)
    return host.to(device, copy=True, non_blocking=True)


def settle(device: torch.device) -> None:
    """Wait until copies to the host are complete."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
