"""Counter of the bytes that this process hands to collectives, whoever calls them: torch, an engine, or we."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

SUMMED, COLLECTED, SCATTERED, ONE_TO_ALL, TO_ONE = "all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"
TO_NEIGHBOUR = "send"

# c10d names an operator for each overload and for coalesced calls; an unknown one isn't counted.
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
"""Times that a rank sends a tensor's bytes, less its own share of them, in ring algorithms."""


class CommCounter(TorchDispatchMode):
    """Counts the collectives inside of `with CommCounter() as counter:`, those of backward and of C++ reducers too.

    bytes_of: by kind, the bytes of full tensors: the tensor that is reduced, the result of a gather, the input of a
    scatter, the tensor that is sent. Counting is slow, for tests and tables.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_of: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: tuple, arguments: tuple = (), keywords: dict | None = None):
        if any(issubclass(kind, DTensor) for kind in types):
            # DTensor runs it then, as collectives and local operators, which come here one by one.
            return NotImplemented
        result = operator(*arguments, **(keywords or {}))
        if operator.namespace in ("c10d", "_c10d_functional"):
            kind = KINDS.get(operator.overloadpacket.__name__)
            if kind is not None:
                # The larger side of a gather is its result, that of a scatter its input.
                sides = (_tensors((side,)) for side in (*arguments, result))
                self.bytes_of[kind] += max(sum(tensor.nbytes for tensor in side) for side in sides)
                self.calls[kind] += 1
        return result

    def sent_bytes(self, world: int) -> int:
        """Return the bytes that a rank sends by ring algorithms. world: number of ranks."""
        # A rank keeps 1 / world of every tensor; planes for a neighbour are sent in full.
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
