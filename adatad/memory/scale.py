"""A scale for small pieces of a training step: bytes, FLOPs and kernels of anything, on the meta device.

What a whole step takes is composed of these (`adatad.memory.moments`); the pieces themselves are never guessed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from adatad.memory.flops import FlopCount
from adatad.memory.meta import gpu_like_meta
from adatad.memory.meter import Meter
from adatad.models.backbone import adapter_blocks
from adatad.models.detector import TemporalActionDetector, build_model, freeze
from adatad.spec.schema import BackboneSpec, ModelSpec
from adatad.spec.sizes import resolve_backbone

META = torch.device("meta")

Kind = Literal["below", "first", "adapter", "bare", "full"]
"""Of a block. below: nothing to differentiate in it nor below it; first: the first with an adapter, nothing below it;
adapter: others with one; bare: frozen, above one with an adapter; full: all of it is trained."""

SAMPLE_DEPTH = 4
SAMPLES: dict[Kind, int] = {"below": 3, "first": 2, "adapter": 2, "bare": 3, "full": 2}
"""Blocks of the sample model that stand for those of a kind."""


@dataclass
class Cost:
    """Bytes that stay, bytes at most on the way (both beside what was there before), FLOPs, kernels."""

    kept: int = 0
    peak: int = 0
    flops: int = 0
    kernels: int = 0


class Scale:
    """Use as a context; inside, `weigh` gives the cost of a few lines. Kept results speed up the next ones."""

    def __init__(self, flops: FlopCount | None = None) -> None:
        """flops: what counts, if not FLOPs alone."""
        self.meter, self._flops = Meter("meta"), flops or FlopCount()

    @contextmanager
    def on(self) -> Iterator[None]:
        with ExitStack() as stack:
            for context in (no_collection(), gpu_like_meta(), self.meter, self._flops):
                stack.enter_context(context)
            yield

    @property
    def bytes(self) -> int:
        return self.meter.current_bytes

    @contextmanager
    def weigh(self) -> Iterator[Cost]:
        cost, before = Cost(), self.bytes
        flops, kernels = self._flops.total, self._flops.kernels
        self.meter.reset_peak()
        yield cost
        cost.kept, cost.peak = self.bytes - before, self.meter.peak.bytes - before
        cost.flops, cost.kernels = self._flops.total - flops, self._flops.kernels - kernels


@contextmanager
def no_collection() -> Iterator[None]:
    """Inside, garbage isn't collected: tensors of what was weighed before would be freed, and taken off."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def kinds(spec: BackboneSpec) -> list[Kind]:
    """Of all blocks of a backbone."""
    depth = resolve_backbone(spec).depth
    if spec.mode == "full":
        return ["full"] * depth
    if spec.mode in ("frozen", "side"):
        return ["below"] * depth
    carrying = adapter_blocks(spec, depth)

    def kind(index: int) -> Kind:
        if index in carrying:
            return "first" if index == carrying[0] else "adapter"
        return "below" if index < carrying[0] else "bare"

    return [kind(index) for index in range(depth)]


def sample_model(spec: ModelSpec, num_classes: int) -> TemporalActionDetector:
    """A model of the same widths with a few blocks, one of every kind; in mode side one for each adapter."""
    backbone = spec.backbone
    depth, carrying = SAMPLE_DEPTH, (1, 2)
    if backbone.mode == "side":
        carrying = tuple(range(len(adapter_blocks(backbone, resolve_backbone(backbone).depth))))
        depth = len(carrying)
    adapter = backbone.adapter.model_copy(update={"blocks": carrying})
    sample = backbone.model_copy(update={"depth": depth, "adapter": adapter, "weights": None})
    with META:
        model = build_model(spec.model_copy(update={"backbone": sample}), num_classes)
    freeze(model, sample)
    return model.train()


def parameter_bytes(module: nn.Module, trained: bool) -> int:
    return sum(p.nbytes for p in module.parameters() if p.requires_grad == trained)
