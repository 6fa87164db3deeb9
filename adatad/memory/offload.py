"""Activation stores: what a training step saves but doesn't need for a while, on the device or in host memory.

Nothing is allocated while copies run: buffers in pinned memory, and those on the device that copies start from, are
made once and used again in every step. Where there are no streams (CPU) copies are made at once; on the meta device
there is nothing to copy, and only what the device holds is counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from adatad.errors import UserError
from adatad.memory.scopes import memory_scope

# Memory is named in GiB throughout; cards are sold in GB and mean the same.
GIB = 2**30
PIECE_BYTES = 64 * 2**20
"""Bytes of tensors that an optimizer updates together: their state is on the device meanwhile."""
STAGING_BUFFERS = 2
"""Buffers on the device that copies to the host start from: one fills while the other is on its way."""


class HostMemoryError(UserError):
    """Host memory that can't be allocated; the message says how much for what, and what to set."""


class Copies(Protocol):
    """Carries out copies between device and host, perhaps later."""

    def start(self, to: Tensor, source: Tensor, after: Any = None) -> Any:
        """Begin a copy of what `source` holds now, after the copy of ticket `after`. Return a ticket.

        Neither tensor may be changed or freed before `wait`.
        """

    def wait(self, ticket: Any) -> None:
        """Let all that the caller does from here on come after that copy."""


class CopiesAtOnce:
    """Copies where the device is the host, or where nothing exists at all (meta)."""

    def start(self, to: Tensor, source: Tensor, after: Any = None) -> None:
        """Copy at once; there is no ticket."""
        if not to.is_meta and not source.is_meta:
            to.copy_(source)

    def wait(self, ticket: None) -> None:
        """Do nothing: the copy is complete."""


class CopiesOnStreams:
    """Copies on CUDA streams of their own, one for each direction."""

    def __init__(self) -> None:
        # The bus carries both directions at once.
        self._streams = {"out": torch.cuda.Stream(), "in": torch.cuda.Stream()}

    def start(self, to: Tensor, source: Tensor, after: torch.cuda.Event | None = None) -> torch.cuda.Event:
        """Queue a copy on the stream of its direction; the ticket is its event."""
        # Read before the side stream becomes the current one: copies wait for what computed their source.
        computing = torch.cuda.current_stream()
        stream = self._streams["out" if source.is_cuda else "in"]
        stream.wait_stream(computing)
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            # Both tensors live until `wait`, so the allocator needn't be told of this stream (record_stream).
            to.copy_(source, non_blocking=True)
            return stream.record_event()

    def wait(self, ticket: torch.cuda.Event | None) -> None:
        """Let the current stream wait for a copy; the host goes on."""
        if ticket is not None:
            torch.cuda.current_stream().wait_event(ticket)


def copies_for(device: torch.device) -> Copies:
    """Return what carries out copies between the host and a device."""
    return CopiesOnStreams() if device.type == "cuda" else CopiesAtOnce()


@dataclass
class PinnedBuffer:
    """A piece of memory, as bytes, and the last copy into or out of it. For the meta device it is only a size."""

    size_bytes: int
    memory: Tensor
    ticket: Any = None

    def view(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return the first bytes as a tensor."""
        if not len(self.memory):
            return self.memory
        # The last tile of a window may be smaller than its buffer.
        return self.memory[: shape.numel() * dtype.itemsize].view(dtype).view(shape)


@dataclass
class HostMemory:
    """The host memory of a run's saved tensors: buffers by size, made once, and a bound on them all."""

    device: torch.device
    limit_bytes: int | None = None
    copies: Copies = None
    bytes: int = 0
    """Bytes of all host buffers made so far; they are never freed, but used again in every step."""
    _free: dict[int, list[PinnedBuffer]] = field(default_factory=dict)
    _staging: dict[int, list[PinnedBuffer]] = field(default_factory=dict)
    """Buffers on the device, by size, the one used longest ago first."""

    def __post_init__(self) -> None:
        self.copies = self.copies or copies_for(self.device)

    def __reduce__(self) -> tuple:
        # A copy of a model makes its own: streams can't be copied, and what waits here belongs to one step.
        return HostMemory, (self.device, self.limit_bytes)

    def reserve(self, count: int, size_bytes: int, what: str) -> None:
        """Have `count` free buffers of a size. Raises HostMemoryError, which names `what` they are for."""
        missing = count - len(self._free.setdefault(size_bytes, []))
        if missing <= 0:
            return
        wanted = self.bytes + missing * size_bytes
        if self.limit_bytes is not None and wanted > self.limit_bytes:
            raise HostMemoryError(
                f"{what} on the host take {wanted / GIB:.2f} GiB there, memory.host_limit_gib allows "
                f"{self.limit_bytes / GIB:.2f}: raise it, raise memory.segment_blocks, or leave some on the device"
            )
        # Counting alone: no memory is taken, but the bound above is checked.
        if self.device.type == "meta":
            rows = iter([torch.empty(0, dtype=torch.uint8)] * missing)
        else:
            rows = pinned_rows(missing, size_bytes, self.device, what)
        for row in rows:
            self._free[size_bytes].append(PinnedBuffer(size_bytes, row))
            self.bytes += size_bytes

    def take_buffer(self, size_bytes: int) -> PinnedBuffer:
        """Take a free buffer, which was reserved before."""
        return self._free[size_bytes].pop()

    def give_back(self, buffer: PinnedBuffer) -> None:
        """Make a buffer free again."""
        self._free[buffer.size_bytes].append(buffer)

    def copy_out(self, buffer: PinnedBuffer, tensor: Tensor) -> None:
        """Copy a tensor of the device to a host buffer; the tensor may be changed or freed at once."""
        size = buffer.size_bytes
        if size not in self._staging:
            with memory_scope("offload buffers"):
                rows = torch.empty(STAGING_BUFFERS, size, dtype=torch.uint8, device=self.device)
            self._staging[size] = [PinnedBuffer(size, row) for row in rows]
        # The one used longest ago; its last copy may still be on its way.
        staging = self._staging[size].pop(0)
        self._staging[size].append(staging)
        self.copies.wait(staging.ticket)
        source = staging.view(tensor.shape, tensor.dtype)
        source.copy_(tensor)
        to = buffer.view(tensor.shape, tensor.dtype)
        # Whoever took the buffer's last content has waited for it, so this copy needn't.
        staging.ticket = buffer.ticket = self.copies.start(to, source)


def pinned_rows(count: int, size_bytes: int, device: torch.device, what: str) -> Iterator[Tensor]:
    """Yield pieces of pinned memory of one size, made many at a time.

    torch rounds whatever it pins up to a power of two, so that a single slab could take twice what was asked for: each
    slab here is just below a power of two.
    """
    # 11 pieces of 100 MiB: 10 in a slab (1,000 of 1,024 MiB), then 1 (of 128). One slab of all would take 2,048.
    while count > 0:
        below = 2 ** ((count * size_bytes).bit_length() - 1)
        # At least one, where a single piece is already above the power of two.
        together = max(1, below // size_bytes)
        yield from pinned(torch.Size((together, size_bytes)), torch.uint8, device, what)
        count -= together


def pinned(shape: torch.Size, dtype: torch.dtype, device: torch.device, what: str) -> Tensor:
    """Allocate host memory that a GPU can copy from and to by itself; ordinary memory for other devices.

    Raises HostMemoryError.
    """
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    except RuntimeError as error:
        size = shape.numel() * dtype.itemsize / GIB
        raise HostMemoryError(
            f"{size:.2f} GiB more of pinned host memory for {what} can't be had ({error}): leave it on the device "
            "(memory.saved_inputs, memory.halos, ...), or allow the process more locked memory (ulimit -l, the job's "
            "memory)"
        ) from error


class ActivationStore(Protocol):
    """A place for tensors of one kind, by key, from forward to backward."""

    def save(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, which is the store's from now on."""

    def save_copy(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor's values. It stays the caller's, who may change it at once."""

    def prefetch(self, key: Hashable) -> None:
        """Say that `pop` will come soon. A key that isn't there, or was prefetched before, is passed over."""

    def pop(self, key: Hashable) -> Tensor:
        """Take a tensor out."""


class DeviceStore:
    """Keeps tensors on the device: nothing moves. name: the scope that a meter counts copies under."""

    def __init__(self, name: str):
        self.name = name
        self._there: dict[Hashable, Tensor] = {}

    def save(self, key: Hashable, tensor: Tensor) -> None:
        """Keep the tensor itself."""
        self._there[key] = tensor

    def save_copy(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a copy, which is counted under the store's name."""
        with memory_scope(self.name):
            self._there[key] = tensor.clone()

    def prefetch(self, key: Hashable) -> None:
        """Do nothing: it is there."""

    def pop(self, key: Hashable) -> Tensor:
        """Take a tensor out."""
        return self._there.pop(key)


class HostStore:
    """Keeps tensors in host buffers of one size. Belongs to one forward and backward pass; the buffers outlive it."""

    def __init__(self, name: str, memory: HostMemory, buffer_bytes: int):
        self.name, self.memory, self.buffer_bytes = name, memory, buffer_bytes
        self._there: dict[Hashable, tuple[PinnedBuffer, torch.Size, torch.dtype]] = {}
        self._coming: dict[Hashable, tuple[Tensor, Any]] = {}
        """Tensors on their way back to the device, with the tickets of their copies."""

    def save(self, key: Hashable, tensor: Tensor) -> None:
        """Begin to copy a tensor to a host buffer; it isn't held here."""
        # A no-op where buffers were reserved; gradients between segments may be the first to need one more.
        self.memory.reserve(1, self.buffer_bytes, self.name)
        buffer = self.memory.take_buffer(self.buffer_bytes)
        self.memory.copy_out(buffer, tensor)
        self._there[key] = buffer, tensor.shape, tensor.dtype

    # The tensor is copied to a staging buffer at once, so the caller may change it after either.
    save_copy = save

    def prefetch(self, key: Hashable) -> None:
        """Begin to copy a tensor back to the device, into memory of its own."""
        if key not in self._there or key in self._coming:
            return
        buffer, shape, dtype = self._there[key]
        # Allocated by the computing stream, and freed there after `pop` has waited: no stream is ahead of the other.
        with memory_scope(self.name):
            tensor = torch.empty(shape, dtype=dtype, device=self.memory.device)
        buffer.ticket = self.memory.copies.start(tensor, buffer.view(shape, dtype), buffer.ticket)
        self._coming[key] = tensor, buffer.ticket

    def pop(self, key: Hashable) -> Tensor:
        """Take a tensor out; what is computed with it waits for its copy."""
        self.prefetch(key)
        tensor, ticket = self._coming.pop(key)
        self.memory.copies.wait(ticket)
        self.memory.give_back(self._there.pop(key)[0])
        return tensor

    def __del__(self) -> None:
        # A pass that was given up before its backward leaves its buffers behind.
        for buffer, *_ in self._there.values():
            self.memory.give_back(buffer)


def activation_store(name: str, memory: HostMemory | None, buffer_bytes: int, count: int) -> ActivationStore:
    """Return a store on the device, or one in `count` buffers of host memory. name: of what is kept."""
    if memory is None:
        return DeviceStore(name)
    memory.reserve(count, buffer_bytes, name)
    return HostStore(name, memory, buffer_bytes)


# What is updated once a step, on the device, some tensors at a time


def pieces(tensors: Sequence[Tensor], most_bytes: int | None = None) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, at most `most_bytes` (None: `PIECE_BYTES`) together or one alone."""
    most_bytes = most_bytes or PIECE_BYTES
    piece, size = [], 0
    # A tensor that is larger than a piece comes alone.
    for tensor in tensors:
        if piece and size + tensor.nbytes > most_bytes:
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.nbytes
    if piece:
        yield piece


def host_like(tensor: Tensor, what: str) -> Tensor:
    """Allocate host memory for a tensor of the device."""
    return pinned(tensor.shape, tensor.dtype, tensor.device, what)


def write_host(host: Tensor, tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory; its values are there once the device has come so far."""
    # Without a wait: `settle`, or reading a value of the device later, makes sure of it.
    return host if tensor.is_meta else host.copy_(tensor, non_blocking=True)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device of a tensor in host memory."""
    if device.type == "meta":
        return torch.empty(host.shape, dtype=host.dtype, device=device)
    # A copy also on a CPU: what is done to it must not reach the host's tensor before `write_host`.
    return host.to(device, copy=True, non_blocking=True)


def settle(device: torch.device) -> None:
    """Wait until copies to the host are complete."""
    if device.type == "cuda":
        # The stream that `write_host` queued them on.
        torch.cuda.current_stream(device).synchronize()
