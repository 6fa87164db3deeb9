"""A range of blocks as one function that autograd knows: how frames go into a wave, and how means come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adatad.memory.arithmetic import no_autocast
from adatad.memory.exchange import HaloExchange, NoExchange
from adatad.memory.frames import HostFrames, tile_frames
from adatad.memory.labels import label
from adatad.memory.offload import HostMemory
from adatad.memory.tiles import Tile
from adatad.memory.wave import Rows, Wave, WaveSettings, Weights
from adatad.memory.weights import ResidentWeights, TrainedWeights, WeightProvider
from adatad.models.backbone import VideoBackbone
from adatad.models.drop_path import Drops

FP16_GRADIENT = 64.0
"""Where fp16 gradients start from: their largest value is brought near this before they enter the blocks."""


@dataclass(eq=False)
class WavePass:
    """One range of blocks as one differentiable function of frames (the first range) or tokens, and of the trained
    weights, to tokens or (the last range) to means over space [b, tubelets, c]."""

    backbone: VideoBackbone
    settings: WaveSettings
    trained_weights: TrainedWeights
    pooled: bool
    """Whether the range has the last block."""
    provider: WeightProvider = field(default_factory=ResidentWeights)
    halo_exchange: HaloExchange = field(default_factory=NoExchange)
    host_limit_bytes: int | None = None
    _host: HostMemory | None = field(default=None, init=False)

    def __call__(self, source: Tensor | HostFrames, windows: int, clips: int, drops: Drops | None) -> Tensor:
        """source: uint8 frames [b, 3, frames, height, width] or tokens [n, l, c]; drops: of all n clips."""
        weights = self.provider.trained(self.trained_weights)
        keep = torch.is_grad_enabled() and (bool(weights) or source.requires_grad)
        if keep:
            return _WaveFunction.apply(self, source, windows, clips, drops, *weights)
        with torch.no_grad(), no_autocast(source.device):
            return self.run(self.wave(source, windows, clips, drops, weights, keep), source)

    def __str__(self) -> str:
        at, per_clip = self.settings, "clips" if self.settings.tile_clips > 1 else "clip"
        parts = [
            f"blocks {at.first} to {at.last}: tile; {at.tile_clips} {per_clip} a tile",
            f"segments of {at.segment_blocks} blocks, {'block by block' if at.block_by_block else 'tile by tile'}",
            "graphs are held" if at.hold else "blocks run twice going back",
        ]
        named = {"saved inputs": at.rows_on_host, "halos": at.halos_on_host}
        if on_host := [name for name, is_there in named.items() if is_there]:
            parts.append(f"on the host: {', '.join(on_host)}")
        if not isinstance(self.provider, ResidentWeights):
            parts.append(f"weights: {type(self.provider).__name__}")
        return "; ".join(parts)

    def wave(
        self, source: Tensor, windows: int, clips: int, drops: Drops | None, tensors: tuple[Tensor, ...], keep: bool
    ) -> Wave:
        names = self.trained_weights.names
        below = source.requires_grad or any(name.startswith("patch_embed.") for name in names)
        weights = Weights(self.backbone, self.settings, names, tensors)
        return Wave(
            self.backbone, self.settings, windows, clips, drops, weights, self.provider, self.halo_exchange,
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
        # Only the patch embedding's gradients need frames again; else they go when the caller lets them go.
        ctx.frames = source if source.dtype == torch.uint8 and ctx.wave.input_gradient else None
        ctx.positions = wave_pass.positions(source)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        wave, wave_pass = ctx.wave, ctx.wave_pass
        with no_autocast(gradient.device):
            half = torch.float16 in wave_pass.dtypes()
            scale = fp16_scale(wave_pass.halo_exchange.largest(gradient.abs().amax()), ctx.positions) if half else None
            scaled = gradient if scale is None else gradient * scale
            rows = wave_pass.gradient_rows(scaled, wave, ctx.positions)
            below = wave.backward(rows)
            into = wave_pass.source_gradient(below, wave, ctx.frames)
            ctx.frames = None
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
