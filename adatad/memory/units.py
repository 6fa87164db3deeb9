"""The small pieces of a training step, weighed once each at their real sizes: one block on the whole window or on one
tile, under a policy; the detector with its losses; the model's weights."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.memory.adapter_tile import add_adapter_, squeeze
from adatad.memory.arithmetic import autocast, forget_casts, no_autocast
from adatad.memory.coded import coded_bytes
from adatad.memory.offload import HostMemory
from adatad.memory.policy import apply_policy
from adatad.memory.scale import META, SAMPLES, Cost, Kind, Scale, kinds, parameter_bytes, sample_model
from adatad.memory.scopes import memory_scope
from adatad.memory.segment_wave import OutputGradients, SegmentWave
from adatad.memory.side import SideExecutor, add_linear_, squeeze_before
from adatad.memory.tiles import NoExchange, Tile
from adatad.memory.unit_costs import BlockTile, Held, Layer, Outer
from adatad.memory.wave import Wave
from adatad.memory.wave_pass import WavePass
from adatad.memory.wave_state import WaveBatch, WaveContext, WaveWeights
from adatad.memory.weights import ResidentWeights
from adatad.models.adapter import Adapter
from adatad.models.backbone import VideoBackbone
from adatad.models.detector import TemporalActionDetector
from adatad.models.keyed_dropout import Drops
from adatad.models.losses import Targets, assign_targets, detection_losses
from adatad.spec.schema import MemorySpec, Spec
from adatad.spec.sizes import clip_share, clips_of_window, resolve_backbone

TILES = 3
"""Of the wave that tiles are weighed in: the middle one has both neighbours."""


@dataclass
class Units:
    """All that can be weighed of a spec on one rank. windows: of one micro-batch there."""

    spec: Spec
    windows: int
    arithmetic: torch.dtype
    num_classes: int
    scale: Scale = field(default_factory=Scale)
    _layers: dict = field(default_factory=dict)
    _tiles: dict = field(default_factory=dict)
    _embeddings: dict = field(default_factory=dict)
    _visits: dict = field(default_factory=dict)
    _models: dict = field(default_factory=dict)
    _held: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        data, backbone = self.spec.data, self.spec.model.backbone
        self.kinds = kinds(backbone)
        self.side = backbone.mode == "side"
        self.window_clips = clips_of_window(data, backbone.clip_frames)
        # Of ranks that share windows, the one with most.
        self.clips = len(clip_share(self.window_clips, self.spec.parallel.clip, 0))
        self.frames = self.clips * backbone.clip_frames
        self.sizes = resolve_backbone(backbone)
        self.tubelets = backbone.clip_frames // backbone.tubelet
        self.positions = (data.size_pixels // self.sizes.patch) ** 2
        self.frame_bytes = self.windows * 3 * self.frames * data.size_pixels**2
        self.side_adapters = len(self.model("none").backbone.adapter_blocks) if self.side else 0
        self.side_hidden = int(self.sizes.width * backbone.adapter.ratio)

    def model(self, policy: str) -> TemporalActionDetector:
        """The sample under a policy, on the meta device."""
        if policy not in self._models:
            # A copy comes sooner than a new one, and no policy touches the detector.
            model = copy.deepcopy(self._sample, {id(self._sample.detector): self._sample.detector})
            memory = MemorySpec(policy=policy, weight_dtype=self.weight_dtype(policy))
            if policy == "tile":
                asked = self.spec.memory
                dtypes = {
                    name: getattr(asked, name) for name in ("residual_dtype", "frozen_dtype", "saved_input_dtype")
                }
                memory = memory.model_copy(update=dtypes)
            apply_policy(model.backbone, memory, self.spec.data, self.arithmetic, clip_ranks=self.spec.parallel.clip)
            self.scale.meter.register([*model.parameters(), *model.buffers()], "weights")
            self._models[policy] = model
        return self._models[policy]

    @cached_property
    def _sample(self) -> TemporalActionDetector:
        return sample_model(self.spec.model, self.num_classes)

    def weight_dtype(self, policy: str) -> str:
        asked = self.spec.memory.weight_dtype
        return asked if policy == "tile" or asked in ("auto", "fp32") else "auto"

    def sample(self, kind: Kind) -> int:
        return min(SAMPLES[kind], len(self.model("none").backbone.blocks) - 1)

    # Weights

    def held(self, policy: str) -> Held:
        if policy not in self._held:
            self._held[policy] = self._hold(self.model(policy))
        return self._held[policy]

    def _hold(self, model: TemporalActionDetector) -> Held:
        backbone = model.backbone
        blocks = [backbone.blocks[self.sample(kind)] for kind in self.kinds]
        frozen = [parameter_bytes(block, trained=False) for block in blocks]
        trained = [parameter_bytes(block, trained=True) for block in blocks]
        in_sample = [sum(parameter_bytes(block, trained) for block in backbone.blocks) for trained in (False, True)]
        rest_of_backbone = parameter_bytes(backbone, trained=True) - in_sample[1]
        learning = [p for p in model.parameters() if p.requires_grad]
        adapters = [module for module in backbone.modules() if isinstance(module, Adapter)]
        return Held(
            frozen_blocks=sum(frozen),
            frozen_rest=parameter_bytes(model, trained=False) - in_sample[0],
            trained_blocks=sum(trained),
            trained_rest=parameter_bytes(model, trained=True) - in_sample[1],
            largest_frozen_block=max(frozen),
            largest_block=max(map(sum, zip(frozen, trained, strict=True))),
            largest_trained=max(p.nbytes for p in learning),
            largest_group=max(parameter_bytes(model.detector, trained=True), sum(trained) + rest_of_backbone),
            buffers=sum(buffer.nbytes for buffer in model.buffers()),
            adapter=sum(p.nbytes for p in adapters[-1].parameters()) if adapters else 0,
            trained_block=max(trained),
        )  # fmt: skip

    # The detector and what else is outside of the backbone

    @cached_property
    def outer(self) -> Outer:
        """With a timeline that computes nothing."""
        model, outer = self.model("none"), Outer()
        weights = torch.zeros(1, device=META, requires_grad=self.spec.model.backbone.mode != "frozen")

        def timeline(backbone: VideoBackbone, frames: Tensor, keys: Tensor | None = None) -> Tensor:
            return _Timeline.apply(weights, self, outer)

        return self._weigh_outer(model, timeline, outer)

    @cached_property
    def side_outer(self) -> Outer:
        """In mode side under policy tile: with all that is computed on means over space."""
        model, outer = self.model("tile"), Outer()
        side = model.backbone.executor

        def nothing(frames: Tensor) -> Iterator:
            if outer.forward:
                self._reach_backward(outer)
            else:
                outer.forward = self.scale.bytes - self._floor
            return iter(())

        return self._weigh_outer(model, _NoTiles(passes=side.passes, squeezing=side.squeezing, note=nothing), outer)

    def _weigh_outer(self, model: TemporalActionDetector, timeline: object, outer: Outer) -> Outer:
        own = model.backbone.executor
        model.backbone.executor = timeline
        targets = self._targets(model)
        with self.scale.on():
            frames = torch.empty(self._frames(self.windows, self.frames), dtype=torch.uint8, device=META)
            self._floor = self.scale.bytes
            with self.scale.weigh() as cost:
                self._detect(model, frames, targets)
            if not outer.backward:
                self._reach_backward(outer, cost.peak)
            outer.between = max(outer.between, cost.peak)
            for parameter in model.parameters():
                parameter.grad = None
        outer.flops, outer.kernels = cost.flops, cost.kernels
        model.backbone.executor = own
        return outer

    def _reach_backward(self, outer: Outer, peak: int = 0) -> None:
        outer.between = max(outer.between, self.scale.meter.peak.bytes - self._floor, peak)
        outer.backward = self.scale.bytes - self._floor

    def _detect(self, model: TemporalActionDetector, frames: Tensor, targets: Targets) -> None:
        """Forward and backward of a micro-batch, as in training; targets: on the host, where training makes them."""
        data, windows = self.spec.data, self.windows
        size = data.window.size_grid
        with autocast(META, self.arithmetic):
            mask = torch.ones(windows, size, dtype=torch.bool, device=META)
            keys = torch.zeros(windows, dtype=torch.int64)
            predictions = model(frames, mask, keys)
            targets = Targets(*(tensor.to(META) for tensor in targets))
            losses = detection_losses(predictions, targets, 100.0, self.spec.model.detector)
            del predictions, targets, mask, keys
            forget_casts(META)
            losses["cost"].backward()

    def _targets(self, model: TemporalActionDetector) -> Targets:
        detector, size, windows = model.detector, self.spec.data.window.size_grid, self.windows
        masks = detector.level_masks(torch.ones(windows, size, dtype=torch.bool))
        segments, labels = [torch.tensor([[1.0, 9.0]])] * windows, [torch.zeros(1, dtype=torch.int64)] * windows
        return assign_targets(
            detector.points(size), masks, segments, labels, self.num_classes, self.spec.model.detector
        )

    # Blocks over whole windows

    def embedding(self, policy: str) -> Layer:
        """The patch embedding of all clips."""
        return self._layer(("embedding", policy), policy, lambda model, x: model.backbone.embed(x))

    def layer(self, policy: str, kind: Kind) -> Layer:
        def run(model: TemporalActionDetector, x: Tensor) -> Tensor:
            index, clips = self.sample(kind), self.windows * self.clips
            drops = self._drops(clips)
            return model.backbone.blocks[index](x, self.windows, drops and drops.block(index, 0, clips))

        return self._layer((policy, kind), policy, run, kind)

    def side_layer(self, policy: str) -> Layer:
        """An adapter beside the backbone, and its sum."""

        def run(model: TemporalActionDetector, x: Tensor) -> Tensor:
            tokens = _Passed.apply(torch.empty(0, device=META, requires_grad=True), x)
            return tokens + model.backbone.side_adapters[-1](x, self.windows)

        return self._layer((policy, "side"), policy, run, "first")

    def _layer(self, name: tuple, policy: str, run: object, kind: Kind | None = None) -> Layer:
        if name not in self._layers:
            model = self.model(policy)
            with self.scale.on(), autocast(META, self.arithmetic), torch.set_grad_enabled(not self._no_graph(name)):
                self._layers[name] = self._weigh_layer(model, run, kind)
        return self._layers[name]

    def _no_graph(self, name: tuple) -> bool:
        mode = self.spec.model.backbone.mode
        return mode == "frozen" or (mode == "side" and name[-1] != "side")

    def _weigh_layer(self, model: TemporalActionDetector, run: object, kind: Kind | None) -> Layer:
        floor = self.scale.bytes
        if kind is None:
            shape = self._frames(self.windows * self.clips, self.spec.model.backbone.clip_frames)
            x = torch.empty(shape, dtype=torch.uint8, device=META)
        else:
            x = torch.empty(self._tokens(self.windows * self.clips), dtype=self.stream_dtype, device=META)
            if kind not in ("below", "first") and torch.is_grad_enabled():
                x.requires_grad_()
        with self.scale.weigh() as forward:
            y = run(model, x)
        input_storage = weakref.ref(x.untyped_storage())
        del x
        output = y.untyped_storage().nbytes()
        kept, holds = self.scale.bytes - floor - output, input_storage() is not None
        back, sums, casts = Cost(), 0, 0
        if y.requires_grad:
            pooled = model.backbone.pool(y)
            del y
            before = self.scale.bytes
            forget_casts(META)
            with self.scale.weigh() as back:
                pooled.backward(torch.empty_like(pooled))
            sums = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            back.peak = max(back.peak, 0) + before - floor - kept
            del pooled
            casts = self.scale.bytes - floor - sums
            for parameter in model.parameters():
                parameter.grad = None
        return Layer(kept, holds, casts, forward, back, output, sums)

    @cached_property
    def stream_dtype(self) -> torch.dtype:
        """Of tokens between blocks under autocast."""
        low = self.model("none").backbone.patch_embed.weight.dtype
        return torch.promote_types(low, torch.float32)

    # Blocks on a tile

    def tile_pass(self) -> WavePass:
        return self.model("tile").backbone.executor.passes[0]

    def embedding_tile(self, clips: int) -> tuple[Cost, Cost]:
        """The patch embedding of one tile, and (mode full) its gradients."""
        if clips not in self._embeddings:
            self._embeddings[clips] = self._weigh_embedding(clips)
        return self._embeddings[clips]

    def _weigh_embedding(self, clips: int) -> tuple[Cost, Cost]:
        stream = self.tile_pass()
        backbone, length = stream.backbone, clips * self.spec.model.backbone.clip_frames
        with self.scale.on():
            frames = torch.empty(self._frames(1, length), dtype=torch.uint8, device=META)
            with torch.no_grad(), self.scale.weigh() as cost:
                row = stream.embed(frames).to(stream.settings.residual)
                del row
            back = Cost()
            named = [p for p in backbone.patch_embed.parameters() if p.requires_grad]
            if named:
                with self.scale.weigh() as back:
                    tokens = stream.embed(frames)
                    parts = torch.autograd.grad(tokens, named, torch.empty_like(tokens))
                del tokens, parts
        return cost, back

    def tile(self, clips: int, kind: Kind, hold: bool) -> BlockTile:
        if (clips, kind) not in self._tiles:
            with self.scale.on(), no_autocast(META):
                self._tiles[clips, kind] = self._weigh_tile(clips, kind)
        unit = self._tiles[clips, kind]
        if hold or kind in ("below", "first"):
            return unit
        # A copy goes through the block in place.
        peak = max(unit.run.peak, unit.squeeze.peak, unit.squeeze.kept + unit.add.peak)
        costs = unit.run, unit.squeeze, unit.add
        again = Cost(unit.row, unit.row + peak, sum(cost.flops for cost in costs), sum(cost.kernels for cost in costs))
        return replace(unit, graph=again, low=unit.top)

    def _weigh_tile(self, clips: int, kind: Kind) -> BlockTile:
        index, stream = self.sample(kind), self.tile_pass()
        with self.scale.weigh() as made:
            wave = self._wave(stream, index, clips, kind)
        with self.scale.weigh() as copied:
            wave.transform.weights(index)
        tiles = wave.tiles[0]
        run, squeeze, add = self._forward_on(wave, index, tiles[1])
        row, nothing = self.row_bytes(clips), Cost()
        unit = BlockTile(row, 0, made.kept, copied.kept, run, squeeze, add, nothing, nothing, nothing)
        if kind == "below":
            return unit
        tokens, residual = self._tokens(clips), wave.settings.residual
        for _ in wave.forward((tile, torch.empty(tokens, dtype=residual, device=META)) for tile in tiles):
            pass
        adapter = wave.adapters.get(index)
        if adapter is not None:
            unit.halo = 2 * adapter.reach * self.positions * adapter.down.shape[0] * adapter.down.itemsize
        self._backward_on(unit, wave, index)
        return unit

    def side_visit(self, clips: int) -> tuple[Cost, Cost]:
        """An adapter beside the backbone reads a tile: going forward, and for the gradients of its first layer."""
        if clips not in self._visits:
            self._visits[clips] = self._weigh_visit(clips)
        return self._visits[clips]

    def _weigh_visit(self, clips: int) -> tuple[Cost, Cost]:
        stream = self.tile_pass()
        low = stream.settings.dtype
        with self.scale.on(), torch.no_grad():
            adapter = self.model("tile").backbone.side_adapters[-1]
            weight, bias = adapter.down.weight.to(low), adapter.down.bias.to(low)
            x = torch.empty(self._tokens(clips), dtype=stream.settings.residual, device=META)
            total, total_bias = (
                torch.zeros_like(weight, dtype=torch.float32),
                torch.zeros_like(bias, dtype=torch.float32),
            )
            with self.scale.weigh() as forward:
                z = F.gelu(squeeze_before(x, weight, bias))
                pooled = stream.backbone.pool(z.view(*x.shape[:2], -1))
                del z, pooled
            with self.scale.weigh() as back:
                before = squeeze_before(x, weight, bias)
                gz = torch.empty(clips * self.tubelets, 1, before.shape[-1], dtype=low, device=META)
                gz = gz.expand(-1, self.positions, -1).reshape(before.shape)
                gp = torch.ops.aten.gelu_backward(gz, before)
                add_linear_(total, total_bias, gp, x.flatten(0, 1).to(low))
                del before, gz, gp
        return forward, back

    def _wave(self, stream: WavePass, index: int, clips: int, kind: Kind) -> Wave:
        """Of the one block `index`, over a few tiles."""
        settings = replace(
            stream.settings, first=index, last=index, tile_clips=clips, segment_blocks=1, hold=True,
            block_by_block=False, saved_on_host=False, halos_on_host=False,
        )  # fmt: skip
        backbone = stream.backbone
        named = [(n, p) for n, p in backbone.named_parameters() if p.requires_grad and n.startswith(f"blocks.{index}.")]
        weights = WaveWeights(backbone, settings, [n for n, _ in named], tuple(p for _, p in named))
        keep, flows = kind != "below", kind not in ("below", "first")
        context = WaveContext(backbone, settings, ResidentWeights(), NoExchange(), HostMemory(META))
        batch = WaveBatch(1, TILES * clips, self.positions, self._drops(TILES * clips), keep, flows)
        return Wave(context, batch, weights)

    def _forward_on(self, wave: Wave, index: int, tile: Tile) -> tuple[Cost, Cost, Cost]:
        x = torch.empty(self._tokens(tile.stop - tile.start), dtype=wave.settings.residual, device=META)
        squeezed, added = Cost(), Cost()
        with torch.no_grad():
            with self.scale.weigh() as run:
                wave.transform.in_place(index, tile, x)
            adapter = wave.adapters.get(index)
            if adapter is not None:
                with self.scale.weigh() as squeezed:
                    z = squeeze(x, adapter, wave.planes(tile))[0]
                with self.scale.weigh() as added:
                    add_adapter_(x, z, z[: adapter.reach], z[: adapter.reach], adapter)
        return run, squeezed, added

    def _backward_on(self, unit: BlockTile, wave: Wave, index: int) -> None:
        """One tile first, which makes the sums; then the middle one, from its input and from a held graph."""
        tiles, tokens = wave.tiles[0], self._tokens(wave.settings.tile_clips)

        def row(_: Tile | None = None) -> Tensor:
            return torch.empty(tokens, dtype=wave.settings.residual, device=META)

        with torch.no_grad():
            segment = SegmentWave(wave, index, index + 1, tiles, OutputGradients(row), None)
            segment.fetch(0)
            for t in range(TILES - 1):
                segment.fetch(t + 1)
            for state in segment.tile_states:
                state.gradient = row()
            segment.recompute_block(index, 0, row(), False)
            segment.through_block(index, 0, segment.tile_states[0].pop_gradient())
            segment.recompute_block(index, 1, row(), False)
            with self.scale.weigh() as unit.top:
                following = segment.through_block(index, 1, segment.tile_states[1].pop_gradient())
            del following
            segment.tile_states[1].gradient = row()
            x = row()
            with self.scale.weigh() as unit.graph:
                following = segment.recompute_block(index, 1, x, True)
            del x, following
            if wave.differentiates(index):
                with self.scale.weigh() as unit.low:
                    segment.through_block(index, 1, segment.tile_states[1].pop_gradient())
            else:
                unit.low = unit.top

    # Shapes

    def _frames(self, count: int, length: int) -> tuple[int, ...]:
        return count, 3, length, self.spec.data.size_pixels, self.spec.data.size_pixels

    def row_bytes(self, clips: int) -> int:
        return clips * self.tubelets * self.positions * self.sizes.width * self.tile_pass().settings.residual.itemsize

    def coded_row_share(self) -> float:
        """What a row in 8 bits takes of one as it is in work."""
        width = self.sizes.width
        return coded_bytes(1, width) / (width * self.tile_pass().settings.residual.itemsize)

    def _tokens(self, clips: int) -> tuple[int, int, int]:
        return clips, self.tubelets * self.positions, self.sizes.width

    def _drops(self, clips: int) -> Drops | None:
        """Of clips that keep all branches, which is what takes most."""
        drops = self.model("none").backbone.draw_drops(torch.zeros(1, dtype=torch.int64), clips)
        if drops is not None:
            drops.kept = [[True] * clips for _ in drops.kept]
        return drops


@dataclass(frozen=True, eq=False, kw_only=True)
class _NoTiles(SideExecutor):
    """The side executor with no tile going through its blocks."""

    note: Callable[[Tensor], Iterator]

    def visits(self, frames: Tensor) -> Iterator:
        return self.note(frames)


class _Passed(torch.autograd.Function):
    """Tokens whose gradient goes on to what isn't weighed."""

    @staticmethod
    def forward(ctx, nothing: Tensor, like: Tensor) -> Tensor:
        return torch.empty_like(like)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return None, None


class _Timeline(torch.autograd.Function):
    """Features of no backbone; notes what else is there when its turns come."""

    @staticmethod
    def forward(ctx, weights: Tensor, units: Units, outer: Outer) -> Tensor:
        ctx.units, ctx.outer = units, outer
        outer.forward = units.scale.bytes - units._floor
        shape = units.windows, units.window_clips * units.tubelets, units.sizes.width
        with memory_scope("features"):
            out = torch.empty(shape, dtype=torch.float32, device=META)
        outer.timeline = out.nbytes
        units.scale.meter.reset_peak()
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.units._reach_backward(ctx.outer)
        return None, None, None
