"""Costs of the parts of a training step: the real code, run on the meta device over a few blocks and a few tiles.

Nothing here knows how a policy works. A backbone of two and one of four blocks under the same policy differ by two
blocks, so that the difference of what they take is the cost of a block; `adatad.memory.plan` adds such costs up.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from adatad.memory.arithmetic import autocast, forget_casts
from adatad.memory.flops import FlopCount
from adatad.memory.meta import gpu_like_meta
from adatad.memory.meter import Meter
from adatad.memory.policy import apply_policy
from adatad.models.actionformer import ActionFormer
from adatad.models.backbone import VideoBackbone, adapter_blocks, resize_timeline
from adatad.models.detector import freeze
from adatad.models.losses import Targets, assign_targets, detection_losses
from adatad.spec.schema import MemorySpec, Spec
from adatad.spec.sizes import clip_share, clips_of_window, resolve_backbone

META = torch.device("meta")
NO_DROP = 1e-9
"""Stochastic depth that takes its code path and drops nothing, which is what takes most memory."""


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


@dataclass(frozen=True)
class Measured:
    """A forward and a backward pass of a backbone, in bytes beside its weights, its frames and its features: most of
    all during forward, what is left for backward, and most of all during backward. forward, backward: what runs."""

    forward_peak: int = 0
    kept: int = 0
    backward_peak: int = 0
    forward: Run = Run()
    backward: Run = Run()


@dataclass(frozen=True)
class BlockCost:
    """A block over whole windows. kept: bytes that it keeps until its backward; work, back: bytes at most during its
    forward and during its backward, beside what is kept; forward, backward: what runs."""

    kept: int
    work: int
    back: int
    forward: Run
    backward: Run


@dataclass(frozen=True)
class TileCost:
    """Tiles of a few clips, in bytes. casts: kept for each block with an adapter; stream: of a tile on its way through
    each of them; work: forward beside that; back: backward of one block on one tile; segment: what every further block
    of a segment adds; graph: what a block holds of a tile until its turn; first, block: what runs for a tile in the
    first block (with the patch embedding) and in each other one; again: of that, one more run forward."""

    casts: int
    stream: int
    work: int
    back: int
    segment: int
    graph: int
    first: Run
    block: Run
    again: Run


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a block's weights; adapter: of its adapter in fp32."""

    frozen: int
    trained: int


@dataclass(frozen=True)
class OuterCost:
    """The step without its backbone, in bytes. between: most of all while the detector and the losses run forward and
    back; backward: what is left when the backbone's turn comes; timeline: of the backbone's features."""

    between: int
    backward: int
    timeline: int
    run: Run


@dataclass
class CostProbe:
    """Measures parts of one spec's step on one rank. windows: of a micro-batch there; arithmetic: dtype of the run."""

    spec: Spec
    windows: int
    arithmetic: torch.dtype
    num_classes: int
    counter: FlopCount = field(default_factory=FlopCount)
    _meter: Meter = field(default_factory=lambda: Meter("meta"))
    _measured: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        data, backbone = self.spec.data, self.spec.model.backbone
        self.mode, self.sizes = backbone.mode, resolve_backbone(backbone)
        self.depth = self.sizes.depth
        self.adapters = adapter_blocks(backbone, self.depth)
        self.run_depth = max(self.adapters) + 1 if self.mode == "side" else self.depth
        self.clips = len(clip_share(clips_of_window(data, backbone.clip_frames), self.spec.parallel.clip, 0))
        self.tubelets = backbone.clip_frames // backbone.tubelet
        self.clip_tokens = self.tubelets * (data.size_pixels // self.sizes.patch) ** 2
        self.clip_bytes = 3 * backbone.clip_frames * data.size_pixels**2
        self.frame_bytes = self.windows * self.clips * self.clip_bytes

    @property
    def first_trained(self) -> int:
        """The first block with anything to differentiate; the depth if there is none."""
        if self.mode == "full":
            return 0
        return self.adapters[0] if self.adapters and self.mode != "side" else self.depth

    # Weights

    def weights(self, memory: MemorySpec) -> tuple[WeightBytes, WeightBytes, WeightBytes, nn.Module]:
        """Weights of a block with an adapter (mode full: of any), of one without, of all that is outside of the blocks;
        and a model with one block of each to look at."""
        key = "weights", memory.frozen_dtype, memory.weight_dtype, memory.policy == "tile"
        if key not in self._measured:
            here = memory.model_copy(update={"frozen_weights": "device"})
            plain = here if memory.policy == "tile" else MemorySpec(weight_dtype=memory.weight_dtype)
            model = self._model(2, (1,) if self.mode == "side" else (0,), plain)
            listed, bare = (_bytes_of(block) for block in model.backbone.blocks)
            whole = _bytes_of(model)
            beside = len(self.adapters) - 1 if self.mode == "side" else 0
            side = _bytes_of(model.backbone.side_adapters) if beside else WeightBytes(0, 0)
            rest = WeightBytes(
                whole.frozen - listed.frozen - bare.frozen,
                whole.trained - listed.trained - bare.trained + beside * side.trained,
            )
            self._measured[key] = listed, bare, rest, model
        return self._measured[key]

    def _model(self, depth: int, adapters: tuple[int, ...], memory: MemorySpec, embedding: bool = True) -> nn.Module:
        """A model with few blocks under a policy, on the meta device, frozen as the spec's is. embedding: the patch
        embedding is, too."""
        spec = self.spec.model.backbone
        adapter = spec.adapter.model_copy(update={"blocks": adapters})
        drop = NO_DROP if spec.drop_path else 0.0
        small = spec.model_copy(update={"depth": depth, "adapter": adapter, "weights": None, "drop_path": drop})
        with META:
            backbone = VideoBackbone(small, drawn=False)
            model = nn.ModuleDict({"backbone": backbone, "detector": self._detector})
        freeze(model, small)
        if not embedding:
            backbone.patch_embed.requires_grad_(False)
        apply_policy(backbone, memory, self.spec.data, self.arithmetic)
        return model.train()

    @cached_property
    def _detector(self) -> ActionFormer:
        with META:
            return ActionFormer(self.spec.model.detector, self.sizes.width, self.num_classes)

    # Runs

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Garbage isn't collected inside: tensors of an earlier run would be taken off."""
        enabled = gc.isenabled()
        gc.disable()
        try:
            with ExitStack() as stack:
                for context in (gpu_like_meta(), self._meter, self.counter, autocast(META, self.arithmetic)):
                    stack.enter_context(context)
                yield
        finally:
            if enabled:
                gc.enable()

    def _counted(self) -> Run:
        return Run(self.counter.total, self.counter.kernels)

    def measure(
        self,
        depth: int,
        adapters: tuple[int, ...],
        memory: MemorySpec,
        windows: int,
        clips: int,
        embedding: bool = True,
    ) -> Measured:
        """Run a small backbone over `clips` clips of each window, forward and back.

        embedding: mode full trains the patch embedding too.
        """
        key = depth, adapters, memory, windows, clips, embedding
        if key not in self._measured:
            self._measured[key] = self._measure(*key)
        return self._measured[key]

    def _measure(
        self, depth: int, adapters: tuple[int, ...], memory: MemorySpec, windows: int, clips: int, embedding: bool
    ) -> Measured:
        backbone, meter = self._model(depth, adapters, memory, embedding).backbone, self._meter
        pixels, length = self.spec.data.size_pixels, clips * self.spec.model.backbone.clip_frames
        keys = torch.zeros(windows, dtype=torch.int64)
        with self._metered():
            meter.register([*backbone.parameters(), *backbone.buffers()], "weights")
            frames = torch.empty(windows, 3, length, pixels, pixels, dtype=torch.uint8, device=META)
            floor, before = meter.current_bytes, self._counted()
            meter.reset_peak()
            timeline = backbone.timeline(frames, keys)
            forward_peak = meter.peak.bytes - floor
            floor += timeline.nbytes
            forget_casts(META)
            kept, forward = meter.current_bytes - floor, self._counted() - before
            if not timeline.requires_grad:
                return Measured(forward_peak, 0, 0, forward)
            gradient = torch.empty_like(timeline)
            floor, before = floor + gradient.nbytes, self._counted()
            meter.reset_peak()
            timeline.backward(gradient)
            peak = meter.peak.bytes - floor
            for parameter in backbone.parameters():
                parameter.grad = None
            return Measured(forward_peak, kept, peak, forward, self._counted() - before)

    # Blocks over whole windows

    def block(self, policy: str, carries: bool) -> BlockCost:
        """A block above the first trained one. carries: it has an adapter."""
        inside = self.mode in ("adapter", "plain")
        less = self._plain_run(policy, 1, (0,) if inside else ())
        more = self._plain_run(policy, 2, (0, 1) if inside and carries else (0,) if inside else ())
        kept, back, work = more.kept - less.kept, more.backward_peak - more.kept, more.forward_peak - less.kept
        # Of narrow models the peak is the patch embedding's, which hides what a block takes.
        hidden = less.forward_peak == more.forward_peak and back > 0
        return BlockCost(
            kept, min(work, kept + back) if hidden else work, back,
            more.forward - less.forward, more.backward - less.backward,
        )  # fmt: skip

    def first_block(self, policy: str) -> BlockCost:
        """The first trained block, and the patch embedding of all clips."""
        run = self._plain_run(policy, 1, (0,) if self.mode in ("adapter", "plain") else ())
        return BlockCost(run.kept, run.forward_peak, run.backward_peak - run.kept, run.forward, run.backward)

    def _plain_run(self, policy: str, depth: int, adapters: tuple[int, ...]) -> Measured:
        memory = MemorySpec(policy=policy, weight_dtype=self._plain_dtype)
        return self.measure(depth, adapters, memory, self.windows, self.clips)

    @property
    def _plain_dtype(self) -> str:
        asked = self.spec.memory.weight_dtype
        return asked if asked in ("auto", "fp32") else "auto"

    # Blocks on tiles

    def tile(self, clips: int, memory: MemorySpec) -> TileCost:
        """Blocks on tiles of `clips` clips: every size is a constant and as much for each clip."""
        small, large = (self._tile(count, memory) for count in (1, 2))
        return TileCost(**{
            name: getattr(small, name) + (getattr(large, name) - getattr(small, name)) * (clips - 1)
            for name in TileCost.__dataclass_fields__
        })  # fmt: skip

    def _tile(self, clips: int, memory: MemorySpec) -> TileCost:
        """Measure backbones of two segments, with saved inputs in host memory: what is left on the device is in work.

        With k blocks in a segment, the block l below its top holds graphs of l + 1 tiles: (k - 1)(k + 2) / 2 in all.
        A graph has no constant part, so that two clips need no third segment.
        """
        one, two = (self._tiled_run(clips, memory, blocks) for blocks in (1, 2))
        working = [run.backward_peak - run.kept for run in (one, two)]
        if clips == 1:
            three = self._tiled_run(clips, memory, 3)
            graph = three.backward_peak - three.kept - 2 * working[1] + working[0]
        else:
            graph = clips * self._tile(1, memory).graph
        runs = (one.forward + one.backward) * (1 / 3), (two.forward + two.backward) * (1 / 4)
        block, stream = (runs[1] - runs[0]) * 0.5, (two.forward_peak - one.forward_peak) / 2
        return TileCost(
            casts=(two.kept - one.kept) / 2, stream=stream, work=one.forward_peak - 2 * stream, back=working[0],
            segment=working[1] - working[0] - 2 * graph, graph=graph, first=runs[0] - block, block=block,
            again=(two.forward * (1 / 4) - one.forward * (1 / 3)) * 0.5,
        )  # fmt: skip

    def _tiled_run(self, clips: int, memory: MemorySpec, blocks: int) -> Measured:
        """Run two segments of so many blocks, and two tiles more than that: all that the wave can have in work."""
        kept = {
            name: getattr(memory, name)
            for name in ("weight_dtype", "residual_dtype", "frozen_dtype", "saved_input_dtype")
        }
        tiled = MemorySpec(
            policy="tile", tile_clips=clips, segment_blocks=blocks, **kept, saved_inputs="host", halos="host"
        )
        carrying = tuple(range(2 * blocks)) if self.mode in ("adapter", "plain") else ()
        return self.measure(2 * blocks, carrying, tiled, 1, (blocks + 2) * clips, embedding=False)

    def embedding_back(self, clips: int) -> int:
        """Bytes of the patch embedding's backward on a tile (mode full)."""
        backbone = self.weights(MemorySpec(policy="tile"))[3].backbone
        length, pixels = clips * self.spec.model.backbone.clip_frames, self.spec.data.size_pixels
        with self._metered(), autocast(META, torch.float32):
            frames = torch.empty(1, 3, length, pixels, pixels, dtype=torch.uint8, device=META)
            floor = self._meter.current_bytes
            self._meter.reset_peak()
            tokens = backbone.embed(backbone.cut_clips(frames))
            parts = torch.autograd.grad(tokens, list(backbone.patch_embed.parameters()), torch.empty_like(tokens))
            del tokens, parts
            return self._meter.peak.bytes - floor

    # Everything else

    def beside(self, memory: MemorySpec) -> Measured:
        """All of the backbone in mode side, whose costs grow by each tile alike."""
        if memory.policy != "tile":
            plain = MemorySpec(policy=memory.policy, weight_dtype=self._plain_dtype)
            return self.measure(self.run_depth, self.adapters, plain, self.windows, self.clips)
        kept = {name: getattr(memory, name) for name in ("weight_dtype", "residual_dtype", "frozen_dtype", "order")}
        tiled = MemorySpec(policy="tile", tile_clips=memory.tile_clips, **kept)
        less, more = (
            self.measure(self.run_depth, self.adapters, tiled, 1, tiles * memory.tile_clips) for tiles in (2, 3)
        )
        further = self.windows * self.clips / memory.tile_clips - 2
        return Measured(**{
            name: getattr(less, name) + (getattr(more, name) - getattr(less, name)) * further
            for name in Measured.__dataclass_fields__
        })  # fmt: skip

    @cached_property
    def outer(self) -> OuterCost:
        """Cost of what isn't a block: patch embedding, detector and losses."""
        detector, size, windows = self._detector, self.spec.data.window.size_grid, self.windows
        tubelets = clips_of_window(self.spec.data, self.spec.model.backbone.clip_frames) * self.tubelets
        masks = detector.level_masks(torch.ones(windows, size, dtype=torch.bool))
        segments, labels = [torch.tensor([[1.0, 9.0]])] * windows, [torch.zeros(1, dtype=torch.int64)] * windows
        settings = self.spec.model.detector
        targets = assign_targets(detector.points(size), masks, segments, labels, self.num_classes, settings)
        with self._metered():
            self._meter.register(detector.parameters(), "weights")
            grad = self.mode != "frozen"
            timeline = torch.empty(windows, tubelets, self.sizes.width, device=META, requires_grad=grad)
            floor, before = self._meter.current_bytes, self._counted()
            self._meter.reset_peak()
            mask = torch.ones(windows, size, dtype=torch.bool, device=META)
            keys = torch.zeros(windows, dtype=torch.int64, device=META)
            predictions = detector(resize_timeline(timeline.transpose(1, 2), size), mask, keys)
            losses = detection_losses(predictions, Targets(*(x.to(META) for x in targets)), 100.0, settings)
            del predictions, mask, keys
            forget_casts(META)
            losses["cost"].backward()
            peak, left = self._meter.peak.bytes - floor, self._meter.current_bytes - floor
            for parameter in detector.parameters():
                parameter.grad = None
            return OuterCost(peak, left, timeline.nbytes, self._counted() - before)


def _bytes_of(module: nn.Module) -> WeightBytes:
    sizes = {trained: sum(p.nbytes for p in module.parameters() if p.requires_grad == trained) for trained in (0, 1)}
    return WeightBytes(sizes[False], sizes[True])
