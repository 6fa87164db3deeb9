"""Tensors of the pretended GPU, and the dispatch mode that runs operators on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adatad.dev.pretended.streams import Counts, StreamTimeline, place
from adatad.memory.flops import FREE
from adatad.memory.meta import MetaResults

GPU = torch.device("cuda", 0)
META = torch.device("meta")
VALUE = {torch.bool: True, torch.uint8: 1, torch.int8: 1, torch.int16: 1, torch.int32: 1, torch.int64: 1}
"""Value of any number that is read, by dtype; 1.0 for others. Tensors have no values here."""
SIZED_BY_CONTENT = ("nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount", "equal")
"""Operators that make the host wait for the size of their result, or for a value."""
NO_LAUNCH = (*FREE, "_unsafe_view", "promote_types")
"""Operators that compute nothing, beside views."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
COPIES_NUMBERS = (*INDEXING, "where")
"""Operators that copy a number of the host to the device, and wait; others pass it to the kernel."""


class DeviceMismatchError(RuntimeError):
    """An operator on tensors of both devices; the message names it, the tensors, and where."""


class OnGpu(Tensor):
    """A tensor of the pretended device: torch's C++ sees a meta tensor, Python one of a GPU."""

    # Python sees a GPU's tensor; properties of the subclass don't reach C++.
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Reached without the mode: within its own work, and on other threads.
        return active().__torch_dispatch__(operator, types, args, kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Convert or move the tensor, as Tensor.to does."""
        # torch's C++ compares with the meta device, and would copy a tensor that is on the GPU already.
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cuda":
            return super().to(*args, copy=copy, **kwargs)
        if dtype in (None, self.dtype) and memory_format is None and not copy:
            return self
        options = {} if memory_format is None else {"memory_format": memory_format}
        return super().to(dtype=dtype or self.dtype, non_blocking=non_blocking, copy=copy, **options)

    def tolist(self) -> Any:
        """Return nested lists of ones; the host waits."""
        return torch.ones_like(self.cpu()).tolist()

    def record_stream(self, stream: Any) -> None:
        """Have the allocator wait for a stream before it reuses this memory."""
        active().timeline.memory(self).recorded.add(stream.number)

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"


def on_gpu(meta: Tensor) -> Tensor:
    """Return a meta tensor as one of the pretended device, with the same storage."""
    return Tensor._make_subclass(OnGpu, meta)


@dataclass(frozen=True)
class Operator:
    """Facts of an operator, from its schema."""

    name: str
    is_view: bool
    launches: bool
    returns_argument: bool
    """True if it writes into its first argument or `out`, and returns that."""
    written: tuple[bool, ...]
    """True for each argument that is written."""
    names: tuple[str, ...]


@cache
def described(operator: Any) -> Operator:
    """Return the facts of an operator."""
    schema = operator._schema
    returns = schema.returns
    is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    name = operator.overloadpacket.__name__
    return Operator(
        name=name,
        is_view=is_view,
        launches=not (is_view or name in NO_LAUNCH or operator.namespace == "prim"),
        returns_argument=len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write,
        written=tuple(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments),
        names=tuple(a.name for a in schema.arguments),
    )  # fmt: skip


class PretendedGpu(TorchDispatchMode):
    """Dispatch mode that runs operators of the pretended device on meta tensors, and counts.

    A result whose size depends on values gets the largest possible size. Values that are read are 1; tensors copied to
    the host hold 0.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Without this, torch wraps every call for the sake of its compiler, which isn't used here.
        return False

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.timeline = StreamTimeline(self.counts)
        self._results = MetaResults()

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        # Neither an operand nor the result is on the pretended device.
        if to != "cuda" and not any(isinstance(x, OnGpu) for x in tensors):
            return self._on_host(operator, args, kwargs)
        known = described(operator)
        match known.name:
            case "_to_copy" if to == "cpu" or not isinstance(args[0], OnGpu):
                return self._moved(args[0], to, kwargs)
            case "_to_copy" if to == "cuda":
                # Already there: only the dtype or layout changes.
                kwargs = {name: value for name, value in kwargs.items() if name != "device"}
                to = None
            case "copy_" if isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
                return self._copied(*args[:2], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            case "_local_scalar_dense":
                self.timeline.use(args[0], False, self.timeline.stream)
                self._wait("value")
                return VALUE.get(args[0].dtype, 1.0)
        self._check_devices(known, args, tensors)
        if known.name in SIZED_BY_CONTENT:
            self._wait(known.name)
        result = self._result(operator, known, args, kwargs, to)
        self._note(known, args, kwargs, result)
        if known.returns_argument:
            return kwargs.get("out", args[0] if args else None)
        # Results of the meta device become the pretended one's; parts that the host computed stay.
        return _each(result, lambda x: on_gpu(x) if x.is_meta and not isinstance(x, OnGpu) else x)

    def _wait(self, why: str) -> None:
        self.timeline.wait(self.timeline.stream.clock, why)

    def _check_devices(self, known: Operator, args: tuple, tensors: list[Tensor]) -> None:
        """Raise DeviceMismatchError for operands on both devices. Scalars of the host are allowed, and its indices."""
        allowed = set(map(id, _tensors(args[1]))) if known.name in INDEXING else ()
        for x in tensors:
            if isinstance(x, OnGpu) or x.device.type != "cpu":
                continue
            if id(x) in allowed or (x.dim() == 0 and known.name in COPIES_NUMBERS):
                self._wait(f"{known.name} copies from the host")
            elif x.dim() or (known.returns_argument and x is args[0]):
                sides = [(str(t.device), tuple(t.shape)) for t in tensors]
                raise DeviceMismatchError(f"{known.name} of tensors on {sides}: {place()}")

    def _result(self, operator: Any, known: Operator, args: tuple, kwargs: dict, to: str | None) -> Any:
        """Run the operator on the meta device."""
        if known.name in INDEXING:
            masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            if masks:
                self._wait("index by a mask")
                if known.name == "index":
                    # As many as the mask has elements, the most that it may select.
                    return args[0].new_empty(masks[0].numel(), *args[0].shape[masks[0].dim() :])
                return _plain(args[0])
        if known.name == "nonzero":
            # All elements, the most that there may be.
            return _plain(args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64))
        if to == "cuda":
            kwargs = {**kwargs, "device": META}
        return self._results(operator, _each(args, _plain), {name: _each(x, _plain) for name, x in kwargs.items()})

    def _note(self, known: Operator, args: tuple, kwargs: dict, result: Any) -> None:
        """Count a launch, and record the uses of memory."""
        if known.is_view:
            # Shares its argument's memory, which is known already.
            return
        if not known.launches:
            # Only allocates, such as empty: the memory belongs to the current stream from here on.
            for x in _tensors(result):
                self.timeline.memory(x)
            return
        self.timeline.launch(known.name)
        stream = self.timeline.stream
        named = ((known.written[known.names.index(name)], value) for name, value in kwargs.items())
        for written, value in (*zip(known.written, args, strict=False), *named):
            for x in _tensors(value):
                if isinstance(x, OnGpu):
                    self.timeline.use(x, written, stream)
        for x in _tensors(result):
            if not known.returns_argument:
                self.timeline.use(x, True, stream)

    # Operators on the host, and copies from and to it

    def _on_host(self, operator: Any, args: tuple, kwargs: dict) -> Any:
        known, timeline = described(operator), self.timeline
        pin = kwargs.get("pin_memory", False)
        if pin:
            # torch would ask CUDA for the memory.
            kwargs = {**kwargs, "pin_memory": False}
        # Only pinned memory can race with the device; without any, operators on the host cost nothing.
        if timeline.pinned and known.launches:
            for written, value in zip(known.written, args, strict=False):
                for x in _tensors(value):
                    if x.device.type == "cpu" and self.is_pinned(x):
                        timeline.host.clock[timeline.host.number] += 1
                        timeline.use(x, written, timeline.host)
        result = operator(*args, **kwargs)
        return self.pin(result) if pin else result

    def pin(self, tensor: Tensor) -> Tensor:
        """Count a tensor's memory as pinned from now on, and return the tensor."""
        self.counts.pinnings[place()] += 1
        storage = tensor.untyped_storage()
        self.timeline.pinned[storage.data_ptr()] = storage
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in pinned memory."""
        return tensor.untyped_storage().data_ptr() in self.timeline.pinned

    def _moved(self, source: Tensor, to: str | None, kwargs: dict) -> Tensor:
        dtype = kwargs.get("dtype") or source.dtype
        if to == "cpu":
            return self._copied(torch.zeros(source.shape, dtype=dtype), source, kwargs.get("non_blocking", False))
        made = on_gpu(torch.empty_like(source, dtype=dtype, device=META))
        return self._copied(made, source, kwargs.get("non_blocking", False))

    def _copied(self, to: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        """Count a copy between host and device; the host gets zeros."""
        down = isinstance(source, OnGpu)
        on_host = to if down else source
        pinned, timeline = self.is_pinned(on_host), self.timeline
        if to.dtype != source.dtype:
            # torch casts on the device, in either direction.
            timeline.launch("_to_copy")
        timeline.launch("copy to the host" if down else "copy to the device")
        for tensor, writes in ((source, False), (to, True)):
            # Pageable memory is staged by the driver before the call returns.
            if tensor is not on_host or pinned:
                timeline.use(tensor, writes, timeline.stream)
        if down:
            to.zero_()
        # A copy to memory that isn't pinned blocks, even if it was asked not to.
        if not non_blocking or (down and not pinned):
            self._wait("copy to the host" if down else "copy to the device")
        elif not pinned:
            self.counts.unpinned[f"{tuple(source.shape)} {source.dtype}: {place()}"] += 1
        return to


def _plain(x: Tensor) -> Tensor:
    """Return the meta tensor to compute with in a tensor's place."""
    if isinstance(x, OnGpu):
        # Without dispatch: making a subclass's alias would come back to the mode.
        with torch._C._DisableTorchDispatch():
            return Tensor._make_subclass(Tensor, x)
    return x if x.is_meta else torch.empty(x.shape, dtype=x.dtype, device=META)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    # By name: kwargs.values() is no tuple or list, and its type has no public name.
    elif isinstance(value, (tuple, list)) or type(value).__name__ == "dict_values":
        for part in value:
            yield from _tensors(part)


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to every tensor in nested lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_each(part, function) for part in value)
    return value


_active: list[PretendedGpu] = []


def active() -> PretendedGpu:
    """Return the active pretended GPU. Raises RuntimeError outside of `pretended_gpu`."""
    if not _active:
        raise RuntimeError("a tensor of the pretended GPU outlived it: leave pretended_gpu() last")
    return _active[-1]


@contextmanager
def activated(gpu: PretendedGpu) -> Iterator[None]:
    """Make a pretended GPU the active one. Raises RuntimeError inside of another."""
    if _active:
        raise RuntimeError("there is a pretended GPU already, and only one at a time")
    _active.append(gpu)
    try:
        yield
    finally:
        _active.clear()
