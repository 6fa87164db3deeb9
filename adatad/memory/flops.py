"""Counts the FLOPs, and the kernels, of whatever runs while it is active."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# torch's formulas know products alone; these would else count as kernels.
FREE = (
    "empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh", "promote_types",
    "_unsafe_view",
)  # fmt: skip
"""Operators that compute nothing, beside views."""


class FlopCount(TorchDispatchMode):
    """FLOPs of all products, convolutions and attention while it is active, by torch's own formulas; and how many
    operators compute something on a device, each about one kernel of a GPU. (torch's FlopCounterMode also follows
    modules, by hooks that `torch.autograd.grad` refuses.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.kernels = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # See `Meter`.
        return False

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        count = flop_registry.get(operator.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        self.kernels += _computes(operator) and not _on_host(result)
        return result


def _on_host(result: Any) -> bool:
    # The host's own few numbers, such as lengths, launch no kernel.
    return isinstance(result, Tensor) and result.device.type == "cpu"


@cache
def _computes(operator: Any) -> bool:
    name = operator.overloadpacket.__name__
    # By the schema: an output that aliases an input, and isn't written to, is a view.
    returns = operator._schema.returns
    is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    return not is_view and name not in FREE
