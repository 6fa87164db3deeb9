"""AdamW whose moments are bf16 between steps, rounded up or down at random so that no change is lost on average.

Rounding to the nearest would lose most of them: a step moves the mean of squares by at most 1 - beta2 of itself, 0.1 %,
and neighbouring bf16 numbers are 0.4 to 0.8 % apart (docs/decisions/moments-in-bf16.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adatad.memory.offload import pieces, pinned, settle, to_device, write_host
from adatad.memory.scopes import memory_scope
from adatad.models.keyed_dropout import mix
from adatad.parallel.piecewise_adamw import MOMENTS, PiecewiseAdamW


@dataclass
class Piece:
    """Parameters that are updated together, and both their moments, bf16 [2, numbers]. first: the number of random
    draws that the pieces before this one take in a step."""

    parameters: list[Tensor]
    moments: Tensor
    first: int

    def views(self, moments: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Each parameter with its own part of `moments`, [2, numbers]."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, moments.split(sizes, dim=1), strict=True):
            yield parameter, {name: row.view(parameter.shape) for name, row in zip(MOMENTS, part, strict=True)}


class RoundedAdamW(PiecewiseAdamW):
    """Computes what torch's AdamW computes of fp32 parameters, up to the rounding of moments.

    The random bits are a function of seed, step and place among all parameters: a run that goes on draws as one that
    was never interrupted. A piece is one tensor, so that the number of kernels doesn't grow with that of parameters.
    """

    piece_bytes = 16 * 2**20

    def __init__(self, groups: list[dict[str, Any]], *, seed: int, on_host: bool = False, **options: Any):
        """on_host: the moments wait in host memory."""
        super().__init__(groups, **options)
        self.seed, self.on_host = seed, on_host
        self._pieces: dict[Tensor, Piece] = {}
        first = 0
        for group in self.param_groups:
            for parameters in pieces(group["params"], self.piece_bytes):
                numbers = sum(parameter.numel() for parameter in parameters)
                moments = self._zeros(numbers, parameters[0].device)
                self._pieces[parameters[0]] = Piece(parameters, moments, first)
                first += draws_of(numbers)

    def _zeros(self, numbers: int, device: torch.device) -> Tensor:
        shape = torch.Size((len(MOMENTS), numbers))
        if not self.on_host:
            with memory_scope("optimizer state"):
                return torch.zeros(shape, dtype=torch.bfloat16, device=device)
        moments = pinned(shape, torch.bfloat16, device, "AdamW's moments")
        return moments if device.type == "meta" else moments.zero_()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        if self.on_host:
            settle(self.param_groups[0]["params"][0].device)

    def _fetch(self, parameters: Sequence[Tensor]) -> None:
        piece, device = self._pieces[parameters[0]], parameters[0].device
        with memory_scope("optimizer state"):
            moments = to_device(piece.moments, device) if self.on_host else piece.moments
            self._exact = moments.float()
        for parameter, views in piece.views(self._exact):
            if parameter in self.state:
                self.state[parameter].update(views)
            elif parameter.grad is not None:
                # As torch's own first step makes it.
                step = torch.zeros((), device=device if self.defaults["fused"] else None)
                self.state[parameter] = {"step": step, **views}

    def _put_away(self, parameters: Sequence[Tensor]) -> None:
        piece, exact = self._pieces[parameters[0]], self._exact
        del self._exact
        steps = [self.state[parameter]["step"] for parameter in parameters if parameter in self.state]
        if not steps:
            return
        with memory_scope("optimizer state"):
            out = torch.empty_like(exact, dtype=piece.moments.dtype) if self.on_host else piece.moments
            round_into(out, exact, piece.first, steps[0], self.seed)
            if self.on_host:
                write_host(piece.moments, out)
        # Between steps `state` has the bf16 numbers.
        for parameter, views in piece.views(piece.moments):
            if parameter in self.state:
                self.state[parameter].update(views)

    def store(self, parameters: Sequence[Tensor]) -> None:
        for piece in self._pieces.values():
            for parameter, views in piece.views(piece.moments):
                if any(parameter is one for one in parameters):
                    for name, view in views.items():
                        write_host(view, self.state[parameter][name])
                    self.state[parameter].update(views)
        settle(parameters[0].device)


def draws_of(numbers: int) -> int:
    """64-bit draws for so many pairs of moments: 16 bits for each moment."""
    return -(-numbers // 2)


def round_into(out: Tensor, moments: Tensor, first: int, step: Tensor, seed: int) -> None:
    """Write fp32 moments [2, numbers], whose memory is used up, to a bf16 tensor: the nearest number away from 0 with
    the probability that the distance to the one towards 0 gives, so that the mean is the number itself. What is a bf16
    number stays as it is.

    first: of the draws to use; step: how many there were, one number on any device.
    """
    numbers = moments.shape[1]
    step = step.to(moments.device, torch.int64)
    key = mix(torch.full_like(step, seed), step)
    draws = mix(key, torch.arange(first, first + draws_of(numbers), device=moments.device))
    noise = draws.view(torch.int32)[:numbers]
    # A bf16 number is the upper half of an fp32 one, and the bits below the sign count up as its size does.
    bits = moments.view(torch.int32)
    bits[1] += (noise >> 16).bitwise_and_(0xFFFF)
    bits[0] += noise.bitwise_and_(0xFFFF)
    out.view(torch.int16).copy_(bits.bitwise_right_shift_(16))
