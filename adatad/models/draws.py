"""Randomness inside the model as a pure function of a key: the same drops on any rank, in any order, when recomputed.

A key is an int64 that stands for (seed, epoch, sample); each module adds its own name and, where needed, the clip. No
generator state exists, so nothing has to be saved, restored or kept in step between processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MASK_31 = (1 << 31) - 1


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the int64 that torch can hold."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
_FACTOR_2 = _signed(0x94D049BB133111EB)


def mix(keys: Tensor, salt: int | Tensor) -> Tensor:
    """Hash int64 `keys` with `salt`, 0 <= salt < 2**32, to int64 (SplitMix64's finalizer, in wrapping arithmetic)."""
    # A number stays a number: a tensor made of it would be copied to the device, and the host would wait.
    return _finalize(keys + (_increment(salt) if isinstance(salt, int) else (salt + 1) * _GOLDEN))


def _increment(salt: int) -> int:
    return _signed((salt + 1) * _GOLDEN % (1 << 64))


def _finalize(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _FACTOR_1
    z = (z ^ _shift_right(z, 27)) * _FACTOR_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, name: str) -> Tensor:
    """One float32 in [0, 1) for each int64 key, different for each `name`."""
    return _fraction(mix(keys, _salt(name)))


def uniforms(keys: Tensor, names: Sequence[str]) -> Tensor:
    """`uniform` of several names at once, in some twenty operators: float32 [names, *keys.shape]."""
    table = keys.repeat(len(names), *[1] * keys.dim())
    torch._foreach_add_(list(table), [_increment(_salt(name)) for name in names])
    return _fraction(_finalize(table))


def _salt(name: str) -> int:
    return zlib.crc32(name.encode())


def _fraction(hashed: Tensor) -> Tensor:
    bits = _shift_right(mix(hashed, 0), 33) & _MASK_31
    return (bits >> 7).to(torch.float32) * 2.0**-24


def keep_factors(keys: Tensor, rate: float, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """What rows are multiplied by that stochastic depth of one rate drops in several places: 0 or 1 / (1 - rate), in
    `dtype`, [names, *keys.shape]; the draws of a `Dropout` of each name."""
    return (uniforms(keys, names) >= rate).to(dtype) / (1.0 - rate)


def clip_keys(keys: Tensor, clips: range) -> Tensor:
    """Keys of some clips of each sample, by their numbers in its window: int64 [batch] -> [batch x clips]."""
    return mix(keys[:, None], torch.arange(clips.start, clips.stop, device=keys.device)).flatten()


class HostKeys:
    """Keys of a batch's samples, int64 [b] in host memory.

    Not a tensor, so that no engine moves it to the device with a model's other inputs: what stochastic depth drops is
    decided on the host.
    """

    def __init__(self, keys: Tensor):
        self.keys = keys


class Dropout(nn.Module):
    """Dropout whose draws are a function of keys; what is kept is scaled by 1 / (1 - rate).

    axes: leading axes whose entries have draws of their own. 1: whole rows of the batch, such as residual branches of a
    sample or clip (DropPath); 2: channels of rows (torch's Dropout1d); 3: single numbers. `name` must be unique in the
    model. Without keys, or with rate 0, everything passes unchanged.
    """

    def __init__(self, rate: float, name: str, axes: int):
        super().__init__()
        self.rate, self.name, self.axes = rate, name, axes

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x: [rows, ...] of `axes` or more axes; keys: int64 [rows], or None."""
        if keys is None or self.rate == 0.0:
            return x
        for size in x.shape[1 : self.axes]:
            keys = mix(keys[..., None], torch.arange(size, device=keys.device))
        keep = (uniform(keys, self.name) >= self.rate).to(x.dtype) / (1.0 - self.rate)
        return x * keep.view(*keep.shape, *[1] * (x.dim() - self.axes))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, axes={self.axes}"
