"""A backbone's timeline computed by waves: what autograd sees of them, and how frames go in and means come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adatad.memory.arithmetic import no_autocast
from adatad.memory.frames import HostFrames, tile_frames
from adatad.memory.labels import label
from adatad.memory.neighbours import Neighbours, Nobody
from adatad.memory.offload import HostMemory
from adatad.memory.residency import AlwaysThere, Residency
from adatad.memory.sharded import part_of, whole
from adatad.memory.tiles import Tile
from adatad.memory.wave import Rows, Wave, WaveSettings, Weights, read_from_block
from adatad.models.backbone import VideoBackbone
from adatad.models.drop_path import Drops

FP16_GRADIENT = 64.0
"""Where fp16 gradients start from: their largest value is brought near this before they enter the blocks."""


class TrainedWeights(nn.Module):
    """Called once a step: the trained parameters, whole and in their own dtype, as tensors that autograd knows.

    What calls a module before and after (gathers of sharded weights, gradient hooks) works on this one as on any other.
    Parameters are looked up by name in the module that owns them at every call: engines put others in their place.
    Those of `only_parts` are read from the blocks themselves, while these are whole; of these a rank's part is enough
    here, for the gradient to come back to.
    """

    def __init__(self, owner: nn.Module, names: list[str], only_parts: frozenset[str] = frozenset()):
        super().__init__()
        self.names, self.only_parts = names, only_parts
        # In a list, not registered: the owner's modules stay where they are in the model's tree.
        self._owner = [owner]

    def adopt(self) -> None:
        """Own the parameters too, for an engine that looks at a module's own ones (and puts no others in place)."""
        for number, parameter in enumerate(self.parameters_used()):
            self.register_parameter(str(number), parameter)

    def parameters_used(self) -> list[nn.Parameter]:
        return [self._owner[0].get_parameter(name) for name in self.names]

    def forward(self) -> tuple[Tensor, ...]:
        pairs = zip(self.names, self.parameters_used(), strict=True)
        return tuple(part_of(parameter) if name in self.only_parts else whole(parameter) for name, parameter in pairs)


@dataclass
class BlockRange:
    """Consecutive blocks under one policy; `wave` is None where they run as ordinary modules."""

    first: int
    last: int
    wave: WaveSettings | None


class TiledTimeline:
    """Takes the place of `VideoBackbone.timeline` where a policy says `tile`."""

    def __init__(self, backbone: VideoBackbone, ranges: list[BlockRange]):
        self.backbone, self.ranges = backbone, ranges
        depth = len(backbone.blocks)
        self.passes = []
        for blocks in ranges:
            prefixes = tuple(f"blocks.{index}." for index in range(blocks.first, blocks.last + 1))
            if blocks.first == 0:
                prefixes += ("patch_embed.",)
            names = [n for n, p in backbone.named_parameters() if p.requires_grad and n.startswith(prefixes)]
            trained = TrainedWeights(backbone, names, frozenset(name for name in names if read_from_block(name)))
            pooled = blocks.last == depth - 1
            self.passes.append(blocks.wave and WavePass(backbone, blocks.wave, trained, pooled))

    def __call__(self, frames: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `VideoBackbone.timeline`."""
        batch, backbone = len(frames), self.backbone
        clip_count = frames.shape[2] // backbone.clip_frames
        drops = backbone.draw_drops(keys, clip_count)
        tokens = None
        for blocks, wave_pass in zip(self.ranges, self.passes, strict=True):
            if wave_pass is not None:
                tokens = wave_pass(frames if tokens is None else tokens, batch, clip_count, drops)
                continue
            tokens = backbone.embed(backbone.cut_clips(frames)) if tokens is None else tokens
            for index in range(blocks.first, blocks.last + 1):
                tokens = backbone.blocks[index](tokens, batch, drops and drops.block(index, 0, batch * clip_count))
        if self.passes[-1] is not None:
            return tokens
        return backbone.pool(tokens).unflatten(0, (batch, -1)).flatten(1, 2)


@dataclass
class WavePass:
    """One range of blocks as one differentiable function of frames (the first range) or tokens, and of the trained
    weights, to tokens or (the last range) to means over space [b, tubelets, c]."""

    backbone: VideoBackbone
    settings: WaveSettings
    trained_weights: TrainedWeights
    pooled: bool
    residency: Residency = field(default_factory=AlwaysThere)
    neighbours: Neighbours = field(default_factory=Nobody)
    host_limit_bytes: int | None = None
    _host: HostMemory | None = None

    def __call__(self, source: Tensor | HostFrames, windows: int, clips: int, drops: Drops | None) -> Tensor:
        """source: uint8 frames [b, 3, frames, height, width] or tokens [n, l, c]; drops: of all n clips."""
        weights = self.trained_weights()
        keep = torch.is_grad_enabled() and (bool(weights) or source.requires_grad)
        if keep:
            return _WaveFunction.apply(self, source, windows, clips, drops, *weights)
        with torch.no_grad(), no_autocast(source.device):
            return self.run(self.wave(source, windows, clips, drops, weights, keep), source)

    def wave(
        self, source: Tensor, windows: int, clips: int, drops: Drops | None, tensors: tuple[Tensor, ...], keep: bool
    ) -> Wave:
        names = self.trained_weights.names
        below = source.requires_grad or any(name.startswith("patch_embed.") for name in names)
        weights = Weights(self.backbone, self.settings, names, tensors)
        return Wave(
            self.backbone, self.settings, windows, clips, drops, weights, self.residency, self.neighbours,
            self.host(source.device), self.positions(source), keep, keep and below,
        )  # fmt: skip

    def host(self, device: torch.device) -> HostMemory:
        """The host memory of this pass, the same in every step."""
        if self._host is None:
            self._host = HostMemory(device, self.host_limit_bytes)
        return self._host

    def positions(self, source: Tensor) -> int:
        """Spatial positions of a tubelet."""
        if source.dtype != torch.uint8:
            return source.shape[1] // self.backbone.clip_tubelets
        return (source.shape[-2] // self.backbone.patch) * (source.shape[-1] // self.backbone.patch)

    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        return self.settings.dtype, self.settings.residual

    def run(self, wave: Wave, source: Tensor) -> Tensor:
        rows = wave.forward(self.rows_of(source, wave.tiles))
        with label("features"):
            return self.pool(rows, wave, source) if self.pooled else self.join(rows, wave)

    # Ends of the stream

    def rows_of(self, source: Tensor | HostFrames, tiles: list[list[Tile]]) -> Rows:
        """Tokens of each tile: from its frames, which stay uint8 outside of it, or copied."""
        flat = [tile for window in tiles for tile in window]
        if source.dtype != torch.uint8:
            for tile in flat:
                with label("tile"):
                    row = tile.of(source).to(self.settings.residual, copy=True)
                yield tile, row
                del row
            return
        for tile, clips in self.frames_of(source, flat):
            with label("tile"):
                row = self.embed(clips).to(self.settings.residual)
            del clips
            yield tile, row
            del row

    def frames_of(self, frames: Tensor | HostFrames, tiles: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        return tile_frames(frames, tiles, self.backbone.clip_frames, self.host(frames.device).copies)

    def embed(self, clips: Tensor) -> Tensor:
        return self.backbone.embed(self.backbone.cut_clips(clips))

    def pool(self, rows: Rows, wave: Wave, source: Tensor | HostFrames) -> Tensor:
        """Every tile's mean over space as soon as it comes: no token of the last block outlives its tile."""
        dtype = torch.promote_types(self.settings.residual, torch.float32)
        clips = max(tile.stop for tile in wave.tiles[-1])
        shape = clips, self.backbone.clip_tubelets, self.backbone.width
        timeline = torch.empty(shape, dtype=dtype, device=source.device)
        for tile, x in rows:
            tile.of(timeline).copy_(self.backbone.pool(x))
        return timeline.view(len(wave.tiles), -1, timeline.shape[-1])

    def join(self, rows: Rows, wave: Wave) -> Tensor:
        return _in_order(rows)

    # Gradients

    def gradient_rows(self, gradient: Tensor, wave: Wave, positions: int) -> Callable[[Tile], Tensor]:
        """Of the output's gradient, a tile's share as tokens. A mean's gradient is spread over its positions."""
        residual = self.settings.residual
        if not self.pooled:
            return lambda tile: tile.of(gradient).to(residual)
        per_clip = (gradient / positions).to(residual).reshape(-1, self.backbone.clip_tubelets, 1, gradient.shape[-1])
        return lambda tile: tile.of(per_clip).expand(-1, -1, positions, -1).flatten(1, 2)

    def source_gradient(
        self, below: dict[Tile, Tensor], wave: Wave, frames: Tensor | HostFrames | None
    ) -> Tensor | None:
        """The gradient of tokens that came in; where frames did, the patch embedding's gradients are summed instead."""
        if frames is None:
            return _in_order((tile, below.pop(tile)) for tile in list(below)) if below else None
        named = {n: p for n, p in self.backbone.named_parameters() if n.startswith("patch_embed.") and p.requires_grad}
        for tile, clips in self.frames_of(frames, list(below)):
            with label("tile"):
                with torch.enable_grad():
                    tokens = self.embed(clips)
                parts = torch.autograd.grad(tokens, list(named.values()), below.pop(tile).to(tokens.dtype))
            for name, part in zip(named, parts, strict=True):
                wave.weights.add(name, part)
        return None


def _in_order(rows: Rows) -> Tensor:
    """All tiles' rows, whichever came first."""
    return torch.cat([x for _, x in sorted(rows, key=lambda row: row[0].start)])


class _WaveFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wave_pass: WavePass, source: Tensor, windows: int, clips: int, drops: Drops | None, *weights):
        with no_autocast(source.device):
            ctx.wave = wave_pass.wave(source, windows, clips, drops, weights, keep=True)
            out = wave_pass.run(ctx.wave, source)
        ctx.wave_pass = wave_pass
        ctx.frames = source if source.dtype == torch.uint8 else None
        ctx.positions = wave_pass.positions(source)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        wave, wave_pass = ctx.wave, ctx.wave_pass
        with no_autocast(gradient.device):
            half = torch.float16 in wave_pass.dtypes()
            scale = fp16_scale(wave_pass.neighbours.largest(gradient.abs().amax()), ctx.positions) if half else None
            scaled = gradient if scale is None else gradient * scale
            rows = wave_pass.gradient_rows(scaled, wave, ctx.positions)
            below = wave.backward(rows)
            into = wave_pass.source_gradient(below, wave, ctx.frames)
            sums = wave.weights.sums
            if scale is not None:
                torch._foreach_div_(list(sums.values()), scale)
                into = None if into is None else into / scale
        # The wave lives as long as the loss does; its gradients must go when the optimizer lets them go.
        return None, into, None, None, None, *(sums.pop(name, None) for name in wave.weights.names)


def fp16_scale(largest: Tensor, divisor: int) -> Tensor:
    """A power of two, on the gradient's device, that brings `largest`, its largest value, / divisor near FP16_GRADIENT:
    gradients of pooled features are far below fp16's smallest numbers."""
    power = torch.floor(torch.log2(FP16_GRADIENT / (largest / divisor).float()))
    # Of gradients that are all 0 none would be high enough.
    return torch.exp2(power.clamp(max=100))
