"""Autocast, on and off, for every device; also for meta tensors, which torch's own doesn't know.

`adatad.memory.meta` does on meta tensors what torch's autocast does on a GPU; it asks here whether it is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class MetaAutocast:
    """An autocast region: its dtype (None: off), and the casts of trained weights, which live as long as it does."""

    dtype: torch.dtype | None
    casts: dict[int, Tensor] = field(default_factory=dict)


# A stack, as regions nest; the outermost is "off".
_meta_regions = [MetaAutocast(None)]


def meta_autocast() -> MetaAutocast:
    """Return the innermost autocast region of meta tensors."""
    return _meta_regions[-1]


def autocast(device: torch.device, dtype: torch.dtype, cache: bool = True) -> AbstractContextManager:
    """Return autocast to a 16-bit dtype; fp32 and fp64 mean none."""
    # fp64 comes from tests, which compare policies without rounding in the way.
    low = dtype if dtype in (torch.bfloat16, torch.float16) else None
    # torch.autocast knows no meta device.
    if device.type == "meta":
        return _meta_region(low)
    # Disabled, not left out: a region without autocast may lie inside one with it.
    return torch.autocast(device.type, low, enabled=low is not None, cache_enabled=cache)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of autocast for `train.precision`; float32 means none."""
    match precision:
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if has_bf16() else torch.float16
        # A GPU of today is what memory is counted for.
        case "auto" if device.type == "meta":
            return torch.bfloat16
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case _:
            return torch.float32


def has_bf16() -> bool:
    """Return whether the current GPU computes in bf16 itself (from Ampere on); torch counts emulation in by default."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Return a region without autocast, also inside one with it."""
    return autocast(device, torch.float32)


def forget_casts(device: torch.device) -> None:
    """Free autocast's copies of weights, which else live as long as its region.

    A graph keeps those that it needs; all others would only take memory during backward.
    """
    if device.type == "meta":
        meta_autocast().casts.clear()
    else:
        torch.clear_autocast_cache()


@contextmanager
def _meta_region(dtype: torch.dtype | None) -> Iterator[None]:
    _meta_regions.append(MetaAutocast(dtype))
    try:
        yield
    finally:
        _meta_regions.pop()
