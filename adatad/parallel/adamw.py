"""Torch's AdamW with its moments in host memory, or in bf16, between steps; and the choice among these.

The arithmetic is torch's own. A subclass brings the moments of some parameters at a time (a piece) into the form that
torch wants, and puts them away again, so that only a piece of them is in fp32 on the device at any moment.

`RoundedAdamW` rounds moments to bf16 up or down at random, so that no change is lost on average. Rounding to the
nearest would lose most of them: a step moves the mean of squares by at most 1 - beta2 of itself, 0.1 %, and
neighbouring bf16 numbers are 0.4 to 0.8 % apart (docs/decisions/moments-in-bf16.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adatad.memory.offload import host_like, pieces, pinned, settle, to_device, write_host
from adatad.memory.scopes import memory_scope
from adatad.models.keyed_dropout import mix
from adatad.spec.schema import Spec

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adamw(groups: list[dict[str, Any]], spec: Spec, on_gpu: bool) -> torch.optim.AdamW:
    """Return the optimizer that the spec asks for.

    on_gpu: whether the parameters lie on one, where one fused kernel needs no temporary copies of the moments.
    """
    on_host = spec.memory.optimizer_state == "host"
    options = {"betas": spec.optimizer.betas, "eps": spec.optimizer.eps, "fused": on_gpu or None}
    if spec.memory.moment_dtype == "bf16":
        return RoundedAdamW(groups, seed=spec.train.seed, on_host=on_host, **options)
    return (HostStateAdamW if on_host else torch.optim.AdamW)(groups, **options)


class PiecewiseAdamW(torch.optim.AdamW):
    """AdamW whose moments are elsewhere, or in another form, between steps; a subclass says where and how."""

    piece_bytes: int | None = None
    """Size limit of the parameters that are updated together; None: the default of `pieces`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all parameters, one piece after the other."""
        groups = self.param_groups
        try:
            for group in groups:
                for parameters in pieces(group["params"], self.piece_bytes):
                    # torch steps what `param_groups` holds: for the moment, this piece alone.
                    self.param_groups = [{**group, "params": parameters}]
                    self._fetch(parameters)
                    super().step(closure)
                    self._put_away(parameters)
        finally:
            # The same list object: the engine and its schedule hold it.
            self.param_groups = groups

    def store(self, parameters: Sequence[Tensor]) -> None:
        """Store moments that were loaded into `state`, where they can be read as soon as this returns."""
        raise NotImplementedError

    def _fetch(self, parameters: Sequence[Tensor]) -> None:
        """Put the moments of a piece into `state`, as torch's AdamW wants them."""
        raise NotImplementedError

    def _put_away(self, parameters: Sequence[Tensor]) -> None:
        """Take the moments of a piece out of `state` again."""
        raise NotImplementedError


class HostStateAdamW(PiecewiseAdamW):
    """AdamW whose moments wait in host memory between steps; it computes what torch's computes, to the same bits."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._on_host: dict[Tensor, dict[str, Tensor]] = {}
        # Devices whose copies to the host may not be complete.
        self._copied_from: set[torch.device] = set()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all parameters. The copies of moments to the host are queued then, not done."""
        super().step(closure)
        self._copied_from.add(self.param_groups[0]["params"][0].device)

    def complete_copies(self) -> None:
        """Wait until the host can read the moments. Steps need no wait: the next one's copies come after these."""
        while self._copied_from:
            settle(self._copied_from.pop())

    def _fetch(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            # Before the first step there are none: torch makes them on the device, as zeros.
            for name, host in self._on_host.get(parameter, {}).items():
                with memory_scope("optimizer state"):
                    self.state[parameter][name] = to_device(host, parameter.device)

    def store(self, parameters: Sequence[Tensor]) -> None:
        """Copy loaded moments to the host, and wait for the copies."""
        self._put_away(parameters)
        settle(parameters[0].device)

    def _put_away(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            state, hosts = self.state.get(parameter, {}), self._on_host.setdefault(parameter, {})
            for name in MOMENTS:
                if name in state:
                    # Host buffers are allocated once, pinned, and written over in every step.
                    if name not in hosts:
                        hosts[name] = host_like(state[name], "AdamW's moments")
                    state[name] = write_host(hosts[name], state[name])


@dataclass
class MomentsPiece:
    """Parameters that are updated together, with both their moments, bf16 [2, numbers].

    first: how many random draws the pieces before this one take in a step.
    """

    parameters: list[Tensor]
    moments: Tensor
    first: int

    def views(self, moments: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield each parameter with its own part of `moments`, [2, numbers]."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, moments.split(sizes, dim=1), strict=True):
            yield parameter, {name: row.view(parameter.shape) for name, row in zip(MOMENTS, part, strict=True)}


class RoundedAdamW(PiecewiseAdamW):
    """AdamW whose moments are bf16 between steps; it computes what torch's does of fp32 parameters, but for that.

    The random bits are a function of seed, step and place among all parameters: a resumed run draws as one that was
    never interrupted. A piece is one tensor, so that the number of kernels doesn't grow with that of parameters.
    """

    piece_bytes = 16 * 2**20

    def __init__(self, groups: list[dict[str, Any]], *, seed: int, on_host: bool = False, **options: Any):
        """Allocate all moments, zeros. on_host: whether they wait in host memory."""
        super().__init__(groups, **options)
        self.seed, self.on_host = seed, on_host
        self._pieces: dict[Tensor, MomentsPiece] = {}
        first = 0
        # All at once, so that a memory that is too small shows now and not in the first step.
        for group in self.param_groups:
            for parameters in pieces(group["params"], self.piece_bytes):
                numbers = sum(parameter.numel() for parameter in parameters)
                moments = self._zeros(numbers, parameters[0].device)
                self._pieces[parameters[0]] = MomentsPiece(parameters, moments, first)
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
        """Update all parameters; on the host, wait for the moments' copies, since their views are in `state`."""
        super().step(closure)
        if self.on_host:
            settle(self.param_groups[0]["params"][0].device)

    def _fetch(self, parameters: Sequence[Tensor]) -> None:
        piece, device = self._pieces[parameters[0]], parameters[0].device
        with memory_scope("optimizer state"):
            moments = to_device(piece.moments, device) if self.on_host else piece.moments
            # One fp32 copy of the piece, of which torch's `state` gets views: its update writes to them in place.
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
            # No gradient reached the piece: its moments are as they were.
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
        """Write loaded moments into their pieces, as bf16, and wait for the copies."""
        for piece in self._pieces.values():
            for parameter, views in piece.views(piece.moments):
                # By identity: == of tensors compares values.
                if any(parameter is one for one in parameters):
                    for name, view in views.items():
                        write_host(view, self.state[parameter][name])
                    self.state[parameter].update(views)
        settle(parameters[0].device)


def draws_of(numbers: int) -> int:
    """Return how many 64-bit draws so many pairs of moments take: 16 bits for each moment."""
    return -(-numbers // 2)


def round_into(out: Tensor, moments: Tensor, first: int, step: Tensor, seed: int) -> None:
    """Round fp32 moments [2, numbers] into a bf16 tensor at random; overwrites `moments`.

    A number goes away from 0 with the probability that its distance to the bf16 number towards 0 gives, so that the
    mean is the number itself. What is a bf16 number stays as it is. first: the first of the draws to use; step: the
    number of steps so far, one value on any device.
    """
    numbers = moments.shape[1]
    step = step.to(moments.device, torch.int64)
    key = mix(torch.full_like(step, seed), step)
    draws = mix(key, torch.arange(first, first + draws_of(numbers), device=moments.device))
    noise = draws.view(torch.int32)[:numbers]
    # A bf16 number is the upper half of an fp32 one, and the bits below the sign count up as its size does: adding 16
    # random bits to the lower half and cutting that off rounds by chance.
    bits = moments.view(torch.int32)
    # Of each pair's 32 random bits the second moment gets the upper half, the first moment the lower.
    bits[1] += (noise >> 16).bitwise_and_(0xFFFF)
    bits[0] += noise.bitwise_and_(0xFFFF)
    out.view(torch.int16).copy_(bits.bitwise_right_shift_(16))
