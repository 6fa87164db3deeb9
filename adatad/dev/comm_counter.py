"""Bytes that this process hands to collectives, counted as they are called: by torch, an engine, or ourselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

SUMMED, COLLECTED, SCATTERED, ONE_TO_ALL, TO_ONE = "all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"
TO_NEIGHBOUR = "send"

KINDS = {
    "allreduce_": SUMMED,
    "allreduce_coalesced_": SUMMED,
    "all_reduce": SUMMED,
    "all_reduce_": SUMMED,
    "allgather_": COLLECTED,
    "_allgather_base_": COLLECTED,
    "allgather_into_tensor_coalesced_": COLLECTED,
    "all_gather_into_tensor": COLLECTED,
    "all_gather_into_tensor_out": COLLECTED,
    "all_gather_into_tensor_coalesced": COLLECTED,
    "reduce_scatter_": SCATTERED,
    "_reduce_scatter_base_": SCATTERED,
    "reduce_scatter_tensor_coalesced_": SCATTERED,
    "reduce_scatter_tensor": SCATTERED,
    "reduce_scatter_tensor_coalesced": SCATTERED,
    "broadcast_": ONE_TO_ALL,
    "broadcast": ONE_TO_ALL,
    "reduce_": TO_ONE,
    "send": TO_NEIGHBOUR,
}
"""Operators of the namespaces c10d (what process groups run) and _c10d_functional (what DTensor calls)."""

SHARES = {SUMMED: 2, COLLECTED: 1, SCATTERED: 1, ONE_TO_ALL: 1, TO_ONE: 1}
"""How often a rank sends the whole tensor's bytes, less its own share of them, in ring algorithms."""


class CommCounter(TorchDispatchMode):
    """`with CommCounter() as wire:` counts the collectives inside, those of backward and of C++ reducers too.

    `bytes_of` has, by kind, the bytes of the whole tensors concerned: what is summed, the collected result, what is
    summed and scattered, what is sent. Counting slows everything down: it is for tests and tables.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_of: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: tuple, arguments: tuple = (), keywords: dict | None = None):
        if any(issubclass(kind, DTensor) for kind in types):
            # It comes back as the collectives and local operators that it is made of.
            return NotImplemented
        result = operator(*arguments, **(keywords or {}))
        if operator.namespace in ("c10d", "_c10d_functional"):
            self._count(operator.overloadpacket.__name__, arguments, result)
        return result

    def _count(self, name: str, arguments: tuple, result: Any) -> None:
        kind = KINDS.get(name)
        if kind is None:
            return
        # The larger side of a gather is its result, that of a scatter its input.
        self.bytes_of[kind] += max(_bytes(_tensors((side,))) for side in (*arguments, result))
        self.calls[kind] += 1

    def sent_bytes(self, world: int) -> int:
        """What a rank sends for them by ring algorithms."""
        collectives = sum(SHARES[kind] * size for kind, size in self.bytes_of.items() if kind in SHARES)
        return round(collectives * (world - 1) / world) + self.bytes_of[TO_NEIGHBOUR]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
    return found


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
