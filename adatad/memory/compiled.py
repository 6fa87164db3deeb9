"""A block's branches compiled by torch.compile (`memory.compile`): one compiled function serves all blocks.

Weights are arguments, never constants of what is compiled; shapes are fixed. What differs is compiled once each: the
branch, in place or with a graph, the tile's clips (the last tile of a window may have fewer), whether stochastic depth
is on. Which branches are dropped is known on the host, so none of this depends on draws (docs/decisions/compile.md).

Shapes: n clips of a tile, l tokens of a clip, c width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatad.errors import UserError
from adatad.memory.transform import CastBranch
from adatad.models.keyed_dropout import BranchDrop
from adatad.models.vit import BranchFunction, BranchWeights, ClipTables, residual

# CUDA graphs off whatever the environment says: their memory would hold what tiles need at other places.
SETTINGS: dict[str, Any] = {"backend": "inductor", "options": {"triton.cudagraphs": False}}
"""Arguments of torch.compile."""

logger = logging.getLogger("adatad")


class CompileError(UserError):
    """torch.compile can't compile a tile's functions here; the message says which and why."""


Factors = Tensor | None
"""Factors of stochastic depth, [n, 1, 1]; None: off."""


class CompiledBranch(CastBranch):
    """A branch whose sum with the tokens is compiled; on the meta device, where memory is counted, it isn't."""

    def add(self, x_nlc: Tensor, drop: BranchDrop | None, in_place: bool) -> Tensor:
        """Return the sum of tokens and branch, from one compiled function."""
        # Memory is counted with PyTorch's own kernels; compiled code needs no more than they do.
        if x_nlc.is_meta:
            return super().add(x_nlc, drop, in_place)
        functions = ((add_attention, add_attention_), (add_mlp, add_mlp_))[self.number]
        # Always from the table: a number would be compiled into the function, and each block has its own.
        factors = None if drop is None else drop.factors(self.weights[-2])
        constants = Constants(self.form.function, self.heads, self.tables, self.dtype)
        out = compiled(functions[in_place])(x_nlc, factors, self.weights, constants)
        return x_nlc if in_place else out


class Constants(NamedTuple):
    """Arguments of a branch that are alike for all blocks and tiles: function: of the backbone's family; tables: of its
    attention; dtype: of arithmetic."""

    function: BranchFunction
    heads: int
    tables: ClipTables
    dtype: torch.dtype


# Four functions, not one with two more arguments: torch counts what it compiles by function, and stops at a limit.


def add_attention_(x_nlc: Tensor, factors: Factors, weights: BranchWeights, constants: Constants) -> None:
    """Add attention to the tokens in their own memory, without a graph."""
    residual(x_nlc, _added(x_nlc, weights, constants), _scale(factors), in_place=True)


def add_mlp_(x_nlc: Tensor, factors: Factors, weights: BranchWeights, constants: Constants) -> None:
    """Add the MLP to the tokens in their own memory, without a graph."""
    residual(x_nlc, _added(x_nlc, weights, constants), _scale(factors), in_place=True)


def add_attention(x_nlc: Tensor, factors: Factors, weights: BranchWeights, constants: Constants) -> Tensor:
    """Return the tokens plus attention, with a graph where gradients are on."""
    return residual(x_nlc, _added(x_nlc, weights, constants), _scale(factors), in_place=False)


def add_mlp(x_nlc: Tensor, factors: Factors, weights: BranchWeights, constants: Constants) -> Tensor:
    """Return the tokens plus the MLP, with a graph where gradients are on."""
    return residual(x_nlc, _added(x_nlc, weights, constants), _scale(factors), in_place=False)


def _added(x_nlc: Tensor, weights: BranchWeights, constants: Constants) -> Tensor:
    function, heads, tables, dtype = constants
    return function(x_nlc.to(dtype), weights, heads, tables)


# Four functions share one formula with policy tile as it is: what they compute can't drift apart.
def _scale(factors: Factors) -> Callable[[Tensor], Tensor] | None:
    return None if factors is None else lambda added: added * factors


@cache
def compiled(function: Callable) -> CompiledFunction:
    """Return the compiled form of one of the functions above, the same for all blocks."""
    return CompiledFunction(function)


class CompiledFunction:
    """One of the functions above; says in the log what was compiled when, at its first use, it is."""

    def __init__(self, function: Callable):
        self.name = function.__name__.replace("_", " ").strip() + (" in place" if function.__name__[-1] == "_" else "")
        # fullgraph: what can't be compiled is an error, and not slow in silence.
        self._run = torch.compile(function, dynamic=False, fullgraph=True, **SETTINGS)
        self._used: set[tuple] = set()

    def __call__(
        self, x_nlc: Tensor, factors: Tensor | None, weights: BranchWeights, constants: Constants
    ) -> Tensor | None:
        """Raises CompileError."""
        # torch recompiles when one of these changes; the log then says so once for each.
        variant = x_nlc.shape, x_nlc.dtype, constants.dtype, constants.function, factors is None
        if variant in self._used:
            return self._run(x_nlc, factors, weights, constants)
        started = time.monotonic()
        try:
            out = self._run(x_nlc, factors, weights, constants)
        except torch._dynamo.exc.TorchDynamoException as error:
            # What the compiler said; torch's own first line says only which one it was.
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            raise CompileError(f"memory.compile: can't compile {self.name}: {reason}; set it to false") from error
        self._used.add(variant)
        what = f"{self.name}, {list(x_nlc.shape)} {x_nlc.dtype}".replace("torch.", "")
        drops = "" if factors is None else ", with stochastic depth"
        logger.info("memory.compile: %s%s: first use took %.1f s", what, drops, time.monotonic() - started)
        return out


def compile_report(passes: Iterable[Any]) -> list[str]:
    """Say what of these waves (`adatad.memory.wave_pass`) is compiled, in lines for the log."""
    lines = []
    for settings in (wave_pass.settings for wave_pass in passes if wave_pass.settings.compiled):
        dtype = str(settings.dtype).removeprefix("torch.")
        lines.append(
            f"memory.compile: attention and MLP of blocks {settings.first} to {settings.last} are compiled by "
            f"{SETTINGS['backend']} at their first use, in {dtype}, for tiles of {settings.tile_clips} clips and the "
            "shorter last one of a window: once each for all blocks, at most 8 functions in training, 4 in evaluation"
        )
    return lines
