"""Dropout and stochastic depth as pure functions of keys: the same on any rank, in any order, when recomputed.

A key is an int64 that stands for (seed, epoch, sample); each module adds its own name and, where needed, the clip. No
generator state exists, so nothing has to be saved, restored or kept in step between processes.

Stochastic depth of the backbone is drawn once for a whole batch (`Drops`), on the host, from keys that are there: a
branch that all clips at hand drop isn't computed, and nobody waits for the device to learn it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

_MASK_31 = (1 << 31) - 1


def _signed(value: int) -> int:
    """Return an unsigned 64-bit constant as the int64 that torch can hold."""
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
    # int64 shifts copy the sign bit; the hash is defined on unsigned numbers.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, name: str) -> Tensor:
    """Return one float32 in [0, 1) for each int64 key, different for each `name`."""
    return _fraction(mix(keys, _salt(name)))


def uniforms(keys: Tensor, names: Sequence[str]) -> Tensor:
    """Return `uniform` of several names at once, in some twenty operators: float32 [names, *keys.shape]."""
    table = keys.repeat(len(names), *[1] * keys.dim())
    torch._foreach_add_(list(table), [_increment(_salt(name)) for name in names])
    return _fraction(_finalize(table))


def _salt(name: str) -> int:
    return zlib.crc32(name.encode())


def _fraction(hashed: Tensor) -> Tensor:
    # 24 bits are what a float32 holds exactly in [0, 1).
    bits = _shift_right(mix(hashed, 0), 33) & _MASK_31
    return (bits >> 7).to(torch.float32) * 2.0**-24


def keep_factors(keys: Tensor, rate: float, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Return the factors of stochastic depth of one rate in several places: 0 or 1 / (1 - rate).

    They are what a `Dropout` of each name would multiply by: `dtype` [names, *keys.shape].
    """
    return (uniforms(keys, names) >= rate).to(dtype) / (1.0 - rate)


def clip_keys(keys: Tensor, clips: range) -> Tensor:
    """Return keys of some clips of each sample, by their numbers in its window: int64 [batch] -> [batch x clips]."""
    # By its number in the window, wherever the clip lies in a batch: a rank that has some of the clips draws the same.
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
        """Return x with dropped entries zero. x: [rows, ...] of `axes` or more axes; keys: int64 [rows], or None."""
        if keys is None or self.rate == 0.0:
            return x
        # A key for every entry of the further axes, from that of its row and its number.
        for size in x.shape[1 : self.axes]:
            keys = mix(keys[..., None], torch.arange(size, device=keys.device))
        keep = (uniform(keys, self.name) >= self.rate).to(x.dtype) / (1.0 - self.rate)
        return x * keep.view(*keep.shape, *[1] * (x.dim() - self.axes))

    def extra_repr(self) -> str:
        """Return what `print` shows of the module."""
        return f"rate={self.rate:g}, axes={self.axes}"


# Stochastic depth of the backbone


class Drops:
    """The draws of all branches (two a block, attention first) for all clips of a batch."""

    def __init__(self, names: list[str], rates: list[float], keys: Tensor, clips: range):
        """names and rates: of branches; keys: int64 [b] of windows, in host memory; clips: their numbers in each
        window."""
        self.names, self.rates, self.keys, self.clips = names, rates, keys, clips
        # On the host, which has the keys: no branch is launched only to be multiplied by zero.
        self.kept: list[list[bool]] = self._is_kept(keys).tolist()
        """True where a branch is kept, by branch and clip, those of a window next to each other."""
        self._factors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def block(self, index: int, start: int, stop: int) -> BlockDrops:
        """Return the draws of a block's branches for clips `start` to `stop` - 1."""
        return BranchDrop(self, 2 * index, start, stop), BranchDrop(self, 2 * index + 1, start, stop)

    def factors(self, branch: int, like: Tensor) -> Tensor:
        """Return the factors of each clip's branch: [clips], of `like`'s dtype and on its device."""
        place = like.device, like.dtype
        if place not in self._factors:
            # Drawn again there: the keys of a batch lie in pinned memory, a table made just now doesn't.
            table = self._is_kept(self.keys.to(like.device, non_blocking=True)).to(like.dtype)
            torch._foreach_mul_(list(table), [scale_of_kept(rate, like.dtype) for rate in self.rates])
            self._factors[place] = table
        return self._factors[place][branch]

    def _is_kept(self, keys: Tensor) -> Tensor:
        """Return which branches are kept, bool [branches, clips], on the device of the keys."""
        table = uniforms(clip_keys(keys, self.clips), self.names)
        # A difference has the sign that a comparison finds, and this takes the rates as numbers of the host.
        torch._foreach_sub_(list(table), self.rates)
        return table >= 0


@dataclass(frozen=True)
class BranchDrop:
    """The draws of one branch for some clips."""

    drops: Drops
    branch: int
    start: int
    stop: int

    @property
    def kept(self) -> list[bool]:
        """True for each clip that keeps the branch."""
        return self.drops.kept[self.branch][self.start : self.stop]

    @property
    def drops_all(self) -> bool:
        """True if the branch adds nothing to any of these clips."""
        return not any(self.kept)

    def factors(self, like: Tensor) -> Tensor:
        """Return the factors of the branch's output: [clips, 1, 1], of `like`'s dtype and on its device."""
        return self.drops.factors(self.branch, like)[self.start : self.stop, None, None]

    def scale(self, x: Tensor) -> Tensor:
        """Return a branch's output [clips, l, c] with its dropped clips zero and the others scaled."""
        factor = self._factor(x)
        return x if factor is None else x * factor

    def scale_(self, x: Tensor) -> Tensor:
        """Do the same in place."""
        factor = self._factor(x)
        return x if factor is None else x.mul_(factor)

    def _factor(self, x: Tensor) -> float | Tensor | None:
        if not all(self.kept):
            return self.factors(x)
        # A number needs neither a table nor a copy.
        scale = scale_of_kept(self.drops.rates[self.branch], x.dtype)
        return None if scale == 1.0 else scale


BlockDrops = tuple[BranchDrop, BranchDrop]
"""The draws of attention and of the MLP."""


@cache
def scale_of_kept(rate: float, dtype: torch.dtype) -> float:
    """Return 1 / (1 - rate) as a number of `dtype`."""
    # By a tensor of that dtype, so that the host's number and a table on the device are equal to the last bit.
    return float(torch.ones((), dtype=dtype) / (1.0 - rate))
