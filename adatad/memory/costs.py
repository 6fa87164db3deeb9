"""Costs of the parts of a training step: the real code, run on the meta device over a few blocks and a few tiles.

Nothing here knows how a policy works. Backbones of one and of two blocks under the same policy differ by one block, so
that the difference of what they take is the cost of a block; `adatad.memory.peak_model` adds such costs up.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adatad.memory.arithmetic import autocast, forget_casts
from adatad.memory.flops import FlopCount
from adatad.memory.meta import gpu_like_meta
from adatad.memory.meter import Meter
from adatad.memory.policy import apply_policy
from adatad.models.actionformer import ActionFormer
from adatad.models.backbone import adapter_blocks, resize_timeline
from adatad.models.detector import freeze
from adatad.models.families import backbone_class, build_backbone
from adatad.models.keyed_dropout import Drops
from adatad.models.losses import Targets, assign_targets, detection_losses
from adatad.spec.schema import MemorySpec, Spec
from adatad.spec.sizes import clip_share, clips_of_window, resolve_backbone

META = torch.device("meta")
TILE_DTYPES = ("weight_dtype", "residual_dtype", "frozen_dtype", "saved_input_dtype")
"""Settings of section memory that change what a tile takes."""


@dataclass(frozen=True)
class Run:
    """FLOPs and kernels of something that runs; numbers of one tile or one block may be fractions."""

    flops: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Run) -> Run:
        return Run(self.flops + other.flops, self.kernels + other.kernels)

    def __mul__(self, factor: float) -> Run:
        return Run(self.flops * factor, self.kernels * factor)

    def __sub__(self, other: Run) -> Run:
        return self + other * -1


class Cost(NamedTuple):
    """A forward and a backward pass, in bytes beside weights, inputs and outputs. work: at most during forward; kept:
    from forward to backward; back: at most during backward, beside what is kept; left: after it (gradients). forward,
    backward: what runs; kept_by_label: what is kept, by the meter's labels."""

    work: float
    kept: float = 0
    back: float = 0
    left: float = 0
    forward: Run = Run()
    backward: Run = Run()
    kept_by_label: Mapping[str, int] = MappingProxyType({})

    @property
    def run(self) -> Run:
        """All that runs."""
        return self.forward + self.backward


class TileCost(NamedTuple):
    """Tiles of a few clips, in bytes. casts: kept for each block with an adapter; saved, halo: kept of a tile for each
    segment, and for each block with an adapter; stream: of a tile on its way through each of these; work: forward
    beside that; back: backward of one block on one tile; top: the same of the last block, with a norm behind it if the
    backbone has one; segment: what every further block of a segment adds; graph: what a block holds of a tile until its
    turn.

    What runs for a tile: embed: in the patch embedding; again, bare: forward in a block with an adapter, and in one
    without; lowest: in the lowest block that is differentiated; block: in one above it; adapter: of that, the adapter.
    """

    casts: float
    saved: float
    halo: float
    stream: float
    work: float
    back: float
    top: float
    segment: float
    graph: float
    embed: Run
    again: Run
    bare: Run
    lowest: Run
    block: Run
    adapter: Run


class WeightBytes(NamedTuple):
    """Bytes of a model's weights: frozen and trained ones of each block, of all blocks and everything else; of buffers,
    the largest trained tensor, and the larger of the trained parts, backbone and detector."""

    blocks: list[tuple[int, int]]
    frozen: int
    trained: int
    buffers: int
    largest: int
    largest_part: int


class NothingDropped(Drops):
    """Stochastic depth that scales every branch and drops none, which is what takes most."""

    def __init__(self, names: list[str], rates: list[float], keys: Tensor, clips: range):
        super().__init__(names, rates, keys, clips)
        self.kept = [[True] * len(kept) for kept in self.kept]


@dataclass
class CostProbe:
    """Measures parts of one spec's step on one rank. windows: of a micro-batch there; arithmetic: dtype of the run."""

    spec: Spec
    windows: int
    arithmetic: torch.dtype
    num_classes: int
    counter: FlopCount = field(default_factory=FlopCount)
    _meter: Meter = field(default_factory=lambda: Meter("meta"))
    _measured: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data, backbone = self.spec.data, self.spec.model.backbone
        self.mode, self.sizes = backbone.mode, resolve_backbone(backbone)
        self.depth = self.sizes.depth
        self.has_norm = backbone_class(backbone.preset).has_final_norm
        """Whether a norm follows the last block, and is one more stage of a wave's way back."""
        self.adapters = adapter_blocks(backbone, self.depth)
        self.carrying = self.adapters if self.mode in ("adapter", "plain") else ()
        """Blocks with an adapter inside."""
        self.run_depth = max(self.adapters) + 1 if self.mode == "side" else self.depth
        self.first_trained = 0 if self.mode == "full" else min(self.carrying, default=self.depth)
        """The first block with anything to differentiate; the depth if there is none."""
        self.clips = len(clip_share(clips_of_window(data, backbone.clip_frames), self.spec.parallel.clip, 0))
        patches = backbone.clip_frames // backbone.tubelet * (data.size_pixels // self.sizes.patch) ** 2
        self.clip_tokens = backbone_class(backbone.preset).class_tokens + patches
        self.clip_bytes = 3 * backbone.clip_frames * data.size_pixels**2
        self.frame_bytes = self.windows * self.clips * self.clip_bytes

    def weights(self, memory: MemorySpec) -> WeightBytes:
        """Return the bytes of the whole model's weights under a policy."""
        memory = memory.model_copy(update={"frozen_weights": "device"})
        if memory.policy != "tile":
            memory = MemorySpec(weight_dtype=memory.weight_dtype)
        key = "weights", memory.policy, memory.frozen_dtype, memory.weight_dtype
        if key not in self._measured:
            # Blocks with an adapter are alike, and those without; adapters beside the backbone are counted all.
            side = self.mode == "side"
            model = self._model(self.depth if side else 2, self.adapters if side else (0,), memory)
            few = [_bytes_of(block) for block in model.backbone.blocks]
            blocks = few if side else [few[index not in self.carrying] for index in range(self.depth)]
            whole, few, all_blocks = _bytes_of(model), zip(*few, strict=True), zip(*blocks, strict=True)
            frozen, trained = (w - sum(f) + sum(a) for w, f, a in zip(whole, few, all_blocks, strict=True))
            detector = _bytes_of(model.detector)[1]
            self._measured[key] = WeightBytes(
                blocks, frozen, trained, sum(buffer.nbytes for buffer in model.buffers()),
                max(p.nbytes for p in model.parameters() if p.requires_grad), max(detector, trained - detector),
            )  # fmt: skip
        return self._measured[key]

    def _model(
        self, depth: int, adapters: tuple[int, ...], memory: MemorySpec, embedding: bool = True, norm: bool = True
    ) -> nn.ModuleDict:
        """Return a model with so many blocks under a policy, on the meta device, frozen as the spec's is. embedding:
        mode full trains the patch embedding, too; norm: with the one behind the last block, if there is one."""
        spec = self.spec.model.backbone
        adapter = spec.adapter.model_copy(update={"blocks": adapters})
        small = spec.model_copy(update={"depth": depth, "adapter": adapter, "weights": None})
        with META:
            backbone = build_backbone(small, drawn=False)
            model = nn.ModuleDict({"backbone": backbone, "detector": self._detector})
        backbone.drops_type = NothingDropped
        if not norm:
            backbone.final_norm = None
        freeze(model, small)
        if not embedding:
            backbone.patch_embed.requires_grad_(False)
        apply_policy(backbone, memory, self.spec.data, self.arithmetic)
        return model.train()

    @cached_property
    def _detector(self) -> ActionFormer:
        with META:
            return ActionFormer(self.spec.model.detector, self.sizes.width, self.num_classes)

    def _run(self, module: nn.Module, given: Tensor, forward: Callable[[Tensor], Tensor]) -> Cost:
        """Measure a forward and a backward pass of a module. given: what goes in."""
        meter, counter, enabled = self._meter, self.counter, gc.isenabled()

        def counted() -> Run:
            return Run(counter.total, counter.kernels)

        with ExitStack() as stack:
            # Garbage isn't collected inside: tensors of an earlier run would be taken off.
            gc.disable()
            stack.callback(gc.enable if enabled else gc.disable)
            for context in (gpu_like_meta(), meter, counter, autocast(META, self.arithmetic)):
                stack.enter_context(context)
            meter.register([*module.parameters(), *module.buffers(), given], "given")
            floor, before, labels = meter.current_bytes, counted(), Counter(meter.by_label)
            meter.reset_peak()
            output = forward(given)
            work = meter.peak.bytes - floor
            forget_casts(META)
            floor += output.nbytes
            kept, ran = meter.current_bytes - floor, counted() - before
            if not output.requires_grad:
                return Cost(work, forward=ran)
            labels = Counter(meter.by_label) - labels
            gradient = torch.empty_like(output)
            floor += gradient.nbytes
            meter.reset_peak()
            output.backward(gradient)
            back, left = meter.peak.bytes - floor - kept, meter.current_bytes - floor
            for parameter in module.parameters():
                parameter.grad = None
            return Cost(work, kept, back, left, ran, counted() - before - ran, labels)

    def measure(
        self, depth: int, adapters: tuple[int, ...], memory: MemorySpec, windows: int, clips: int, norm: bool = True
    ) -> Cost:
        """Measure a backbone of so many blocks, adapters in some of them, over `clips` clips of each window. norm: see
        `_model`."""
        norm = norm and self.has_norm
        key = depth, adapters, memory, windows, clips, norm
        if key not in self._measured:
            # Tiles are measured without the gradients of the patch embedding, which isn't a block.
            backbone = self._model(depth, adapters, memory, memory.policy != "tile", norm).backbone
            pixels, length = self.spec.data.size_pixels, clips * self.spec.model.backbone.clip_frames
            frames = torch.empty(windows, 3, length, pixels, pixels, dtype=torch.uint8, device=META)
            keys = torch.zeros(windows, dtype=torch.int64)
            self._measured[key] = self._run(backbone, frames, lambda frames: backbone.timeline(frames, keys))
        return self._measured[key]

    # Blocks over whole windows

    def lowest(self, policy: str) -> Cost:
        """Return the cost of the first trained block, with the patch embedding of all clips."""
        return self._plain(policy, 1, (0,) if self.carrying else ())

    def block(self, policy: str, carries: bool) -> Cost:
        """Return the cost of a block above the first trained one. carries: it has an adapter."""
        less = self.lowest(policy)
        more = self._plain(policy, 2, ((0, 1) if carries else (0,)) if self.carrying else ())
        kept, work = more.kept - less.kept, more.work - less.kept
        return Cost(
            # Of narrow models the peak is the patch embedding's, which hides what a block takes.
            min(work, kept + more.back) if more.back else work, kept, more.back,
            forward=more.forward - less.forward, backward=more.backward - less.backward,
        )  # fmt: skip

    def _plain(self, policy: str, depth: int, adapters: tuple[int, ...]) -> Cost:
        asked = self.spec.memory.weight_dtype
        memory = MemorySpec(policy=policy, weight_dtype=asked if asked in ("auto", "fp32") else "auto")
        return self.measure(depth, adapters, memory, self.windows, self.clips)

    def beside(self, memory: MemorySpec) -> Cost:
        """Return the cost of all of the backbone in mode side; under tile it grows by each tile alike."""
        if memory.policy != "tile":
            return self._plain(memory.policy, self.run_depth, self.adapters)
        kept = {name: getattr(memory, name) for name in (*TILE_DTYPES[:3], "order", "tile_clips")}
        tiled = MemorySpec(policy="tile", **kept)
        two, three = (self.measure(self.run_depth, self.adapters, tiled, 1, n * memory.tile_clips) for n in (2, 3))
        further = self.windows * self.clips / memory.tile_clips - 2
        # All but the labels.
        return Cost(*(less + (more - less) * further for less, more in zip(two[:-1], three[:-1], strict=True)))

    # Blocks on tiles

    def tile(self, clips: int, memory: MemorySpec) -> TileCost:
        """Measure backbones of two segments of one to three blocks on tiles of `clips` clips.

        With k blocks in a segment, the block l below its top holds graphs of l + 1 tiles: (k - 1)(k + 2) / 2 in all.
        """
        # Saved inputs are in host memory: what is left on the device is in work.
        one, two, three = (self._tiled(clips, memory, blocks, blocks + 2, "host", norm=False) for blocks in (1, 2, 3))
        top = self._tiled(clips, memory, 1, 3, "host") if self.has_norm else one
        graph, stream = three.back - 2 * two.back + one.back, (two.work - one.work) / 2
        kept = self._tiled(clips, memory, 1, 3, "device").kept_by_label
        low, high, bare = (self._one_tile(clips, memory, *shape) for shape in ((1, None), (2, None), (1, 1)))
        again, block = (high.forward - low.forward) * 0.5, (high.run - low.run) * 0.5
        embed = low.forward - again * 2
        return TileCost(
            casts=kept.get("adapter casts", 0) / 2, saved=kept.get("saved inputs", 0) / 6,
            halo=kept.get("halos", 0) / 6, stream=stream, work=one.work - 2 * stream,
            back=one.back, top=top.back, segment=two.back - one.back - 2 * graph, graph=graph,
            embed=embed, again=again, bare=again - (low.forward - bare.forward),
            lowest=low.run - block - embed, block=block, adapter=low.run - bare.run,
        )  # fmt: skip

    def _one_tile(self, clips: int, memory: MemorySpec, blocks: int, adapters: int | None) -> Cost:
        """Return what runs for one tile more, between two others."""
        less, more = (self._tiled(clips, memory, blocks, tiles, "device", adapters) for tiles in (2, 3))
        return Cost(0, forward=more.forward - less.forward, backward=more.backward - less.backward)

    def _tiled(
        self,
        clips: int,
        memory: MemorySpec,
        blocks: int,
        tiles: int,
        place: str,
        adapters: int | None = None,
        norm: bool = True,
    ) -> Cost:
        """Run two segments of so many blocks; `blocks` + 2 tiles are all that the wave can have in work. adapters:
        blocks that have one; None: all. norm: see `_model`."""
        shape = {"tile_clips": clips, "segment_blocks": blocks, "saved_inputs": place, "halos": place}
        tiled = MemorySpec(policy="tile", **shape, **{name: getattr(memory, name) for name in TILE_DTYPES})
        carrying = tuple(range(2 * blocks))[:adapters] if self.carrying else ()
        return self.measure(2 * blocks, carrying, tiled, 1, tiles * clips, norm)

    # Everything else

    @cached_property
    def outer(self) -> Cost:
        """Cost of what isn't in the backbone: detector and losses."""
        detector, backbone, windows = self._detector, self.spec.model.backbone, self.windows
        size, settings = self.spec.data.window.size_grid, self.spec.model.detector
        tubelets = clips_of_window(self.spec.data, backbone.clip_frames) * backbone.clip_frames // backbone.tubelet
        masks = detector.level_masks(torch.ones(windows, size, dtype=torch.bool))
        segments, labels = [torch.tensor([[1.0, 9.0]])] * windows, [torch.zeros(1, dtype=torch.int64)] * windows
        targets = assign_targets(detector.points(size), masks, segments, labels, self.num_classes, settings)
        timeline = torch.empty(windows, tubelets, self.sizes.width, device=META, requires_grad=self.mode != "frozen")

        def losses(timeline: Tensor) -> Tensor:
            mask = torch.ones(windows, size, dtype=torch.bool, device=META)
            keys = torch.zeros(windows, dtype=torch.int64, device=META)
            predictions = detector(resize_timeline(timeline.transpose(1, 2), size), mask, keys)
            on_device = Targets(*(tensor.to(META) for tensor in targets))
            return detection_losses(predictions, on_device, 100.0, settings)["cost"]

        return self._run(detector, timeline, losses)


def _bytes_of(module: nn.Module) -> tuple[int, int]:
    """Return the bytes of frozen and of trained weights."""
    frozen, trained = (sum(p.nbytes for p in module.parameters() if p.requires_grad == learns) for learns in (0, 1))
    return frozen, trained
