"""A range of blocks as one function that autograd knows: how frames go into a wave, and how means come out.

Shapes: b windows, n clips of a tile (of all windows in tensors that aren't tiles), l tokens of a clip, c width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.memory.arithmetic import no_autocast
from adatad.memory.inputs import HostFrames, tile_frames
from adatad.memory.offload import HostMemory
from adatad.memory.scopes import memory_scope, timed_part
from adatad.memory.tiles import HaloExchange, NoExchange, Tile
from adatad.memory.transform import normalized
from adatad.memory.wave import Wave
from adatad.memory.wave_state import GradientOf, TileStream, WaveBatch, WaveContext, WaveSettings, WaveWeights
from adatad.memory.weights import ResidentWeights, TrainedWeights, WeightProvider
from adatad.models.backbone import VideoBackbone
from adatad.models.keyed_dropout import Drops
from adatad.models.vit import ClipTables

FP16_GRADIENT = 64.0
"""Largest value of fp16 gradients, about, when they enter the blocks."""


@dataclass(eq=False)
class WavePass:
    """One range of blocks as one differentiable function.

    It takes frames (the first range) or tokens, and the trained weights, and gives tokens or (the last range) means
    over space [b, tubelets, c].
    """

    backbone: VideoBackbone
    settings: WaveSettings
    trained_weights: TrainedWeights
    pooled: bool
    """The range has the last block, and so gives means over space instead of tokens."""
    provider: WeightProvider = field(default_factory=ResidentWeights)
    halo_exchange: HaloExchange = field(default_factory=NoExchange)
    host_limit_bytes: int | None = None
    _host: HostMemory | None = field(default=None, init=False)

    def __call__(
        self, source: Tensor | HostFrames, windows: int, clips: int, drops: Drops | None, tables: ClipTables = ()
    ) -> Tensor:
        """Run it. source: uint8 frames [b, 3, frames, height, width] or tokens [n, l, c]; drops: of all clips; tables:
        the backbone's `clip_tables`."""
        weights = self.provider.trained(self.trained_weights)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (source, *weights))
        if keep:
            # The weights are arguments so that autograd asks for their gradients.
            return _WaveFunction.apply(self, source, windows, clips, drops, tables, *weights)
        with torch.no_grad(), no_autocast(source.device):
            return self.run(self.wave(source, windows, clips, drops, tables, weights, keep), source)

    def __str__(self) -> str:
        at, per_clip = self.settings, "clips" if self.settings.tile_clips > 1 else "clip"
        parts = [
            f"blocks {at.first} to {at.last}: tile; {at.tile_clips} {per_clip} a tile",
            f"segments of {at.segment_blocks} blocks, {'block by block' if at.block_by_block else 'tile by tile'}",
            "graphs are held" if at.hold else "blocks run twice going back",
        ]
        named = {"saved inputs": at.saved_on_host, "halos": at.halos_on_host}
        if on_host := [name for name, is_there in named.items() if is_there]:
            parts.append(f"on the host: {', '.join(on_host)}")
        if not isinstance(self.provider, ResidentWeights):
            parts.append(f"weights: {type(self.provider).__name__}")
        return "; ".join(parts)

    def wave(
        self,
        source: Tensor | HostFrames,
        windows: int,
        clips: int,
        drops: Drops | None,
        tables: ClipTables,
        tensors: tuple[Tensor, ...],
        keep: bool,
    ) -> Wave:
        """Prepare a wave. tensors: the trained weights; keep: a backward will follow."""
        names = self.trained_weights.names
        # In mode full the wave goes back to the frames: the patch embedding is trained too.
        below = source.requires_grad or any(name.startswith("patch_embed.") for name in names)
        weights = WaveWeights(self.backbone, self.settings, names, tensors)
        host = self.host(source.device)
        context = WaveContext(self.backbone, self.settings, self.provider, self.halo_exchange, host)
        positions = self.positions(source)
        batch = WaveBatch(windows, clips, positions, drops, tables, keep, input_gradient=keep and below)
        return Wave(context, batch, weights)

    def host(self, device: torch.device) -> HostMemory:
        """Return the host memory of this pass, the same in every step."""
        if self._host is None:
            self._host = HostMemory(device, self.host_limit_bytes)
        return self._host

    def positions(self, source: Tensor | HostFrames) -> int:
        """Return the spatial positions of a tubelet."""
        if source.dtype != torch.uint8:
            return (source.shape[1] - self.backbone.class_tokens) // self.backbone.clip_tubelets
        return (source.shape[-2] // self.backbone.patch) * (source.shape[-1] // self.backbone.patch)

    def run(self, wave: Wave, source: Tensor | HostFrames) -> Tensor:
        """Draw all tiles through the blocks; return tokens [n, l, c], or means over space [b, tubelets, c]."""
        stream = wave.forward(self.tiles_of(source, wave.tiles))
        with memory_scope("features"):
            return self.pool(stream, wave, source.device) if self.pooled else _in_order(stream)

    def tiles_of(self, source: Tensor | HostFrames, tiles: list[list[Tile]]) -> TileStream:
        """Yield the tokens of each tile: from its frames, which stay uint8 outside of it, or copied."""
        # Windows one after another: tiles never cross from one into the next.
        flat = [tile for window in tiles for tile in window]
        if source.dtype != torch.uint8:
            for tile in flat:
                with memory_scope("tile"):
                    x_nlc = tile.of(source).to(self.settings.residual, copy=True)
                yield tile, x_nlc
                # No name here may hold a tile while the next one is made.
                del x_nlc
            return
        for tile, clips in self.frames_of(source, flat):
            with memory_scope("tile"):
                x_nlc = self.embed(clips).to(self.settings.residual)
            del clips
            yield tile, x_nlc
            del x_nlc

    def frames_of(self, frames: Tensor | HostFrames, tiles: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        """Yield tiles with their frames on the device, uint8 [1, 3, frames of the tile, height, width]."""
        return tile_frames(frames, tiles, self.backbone.clip_frames, self.host(frames.device).copies)

    def embed(self, frames: Tensor) -> Tensor:
        """Return the tokens of a tile's frames: [n, l, c]."""
        with timed_part("embedding"):
            return self.backbone.embed(self.backbone.cut_clips(frames))

    def pool(self, stream: TileStream, wave: Wave, device: torch.device) -> Tensor:
        """Average every tile over space as soon as it comes: no token of the last block outlives its tile."""
        dtype = torch.promote_types(self.settings.residual, torch.float32)
        clips = max(tile.stop for tile in wave.tiles[-1])
        shape = clips, self.backbone.clip_tubelets, self.backbone.width
        # fp32 at least: a mean over hundreds of positions has more digits than 16 bits hold.
        timeline = torch.empty(shape, dtype=dtype, device=device)
        for tile, x_nlc in stream:
            tile.of(timeline).copy_(self.backbone.pool(self.backbone.patch_tokens(normalized(self.backbone, x_nlc))))
        return timeline.view(len(wave.tiles), -1, timeline.shape[-1])

    def gradient_of_tiles(self, gradient: Tensor, positions: int) -> GradientOf:
        """Return what makes a tile's gradient [n, l, c] of the output's; a mean's is spread over its positions, and
        class tokens, which are in no mean, get zeros."""
        residual = self.settings.residual
        # Tokens that go on to a range of other blocks: their gradients come one each.
        if not self.pooled:
            return lambda tile: tile.of(gradient).to(residual)
        # One number for all positions of a tubelet, which is spread out tile by tile.
        per_clip = (gradient / positions).to(residual).reshape(-1, self.backbone.clip_tubelets, 1, gradient.shape[-1])
        class_tokens = self.backbone.class_tokens

        def gradient_of(tile: Tile) -> Tensor:
            """Return the gradient of a tile's tokens."""
            patches = tile.of(per_clip).expand(-1, -1, positions, -1).flatten(1, 2)
            return F.pad(patches, (0, 0, class_tokens, 0)) if class_tokens else patches

        return gradient_of

    def source_gradient(
        self, below: dict[Tile, Tensor], wave: Wave, frames: Tensor | HostFrames | None
    ) -> Tensor | None:
        """Return the gradient of tokens that came in; where frames did, add up the patch embedding's gradients."""
        if frames is None:
            return _in_order((tile, below.pop(tile)) for tile in list(below)) if below else None
        named = {n: p for n, p in self.backbone.named_parameters() if n.startswith("patch_embed.") and p.requires_grad}
        for tile, clips in self.frames_of(frames, list(below)):
            with memory_scope("tile"):
                with torch.enable_grad():
                    tokens = self.embed(clips)
                # Computed again from the frames of the tile, which is cheaper than keeping a graph of all of them.
                parts = torch.autograd.grad(tokens, list(named.values()), below.pop(tile).to(tokens.dtype))
            for name, part in zip(named, parts, strict=True):
                wave.weights.add(name, part)
        return None


def _in_order(stream: TileStream) -> Tensor:
    """Join the tokens of all tiles, whichever came first."""
    # A rank may run its tiles backwards, from the last to the first.
    return torch.cat([x_nlc for _, x_nlc in sorted(stream, key=lambda item: item[0].start)])


class _WaveFunction(torch.autograd.Function):
    """A wave as autograd sees it: a function of frames or tokens, and of all trained weights of its blocks."""

    @staticmethod
    def forward(
        ctx,
        wave_pass: WavePass,
        source: Tensor,
        windows: int,
        clips: int,
        drops: Drops | None,
        tables: ClipTables,
        *weights: Tensor,
    ):
        """Run a wave that saves what its backward needs."""
        with no_autocast(source.device):
            # Inside autocast's region, but out of its reach: tiles have dtypes of their own.
            ctx.wave = wave_pass.wave(source, windows, clips, drops, tables, weights, keep=True)
            out = wave_pass.run(ctx.wave, source)
        ctx.wave_pass = wave_pass
        # Only the patch embedding's gradients need frames again; else they go when the caller lets them go.
        ctx.frames = source if source.dtype == torch.uint8 and ctx.wave.input_gradient else None
        ctx.positions = wave_pass.positions(source)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """Run the wave back; return the gradients of the source and of all weights."""
        wave, wave_pass = ctx.wave, ctx.wave_pass
        with no_autocast(gradient.device):
            half = torch.float16 in (wave_pass.settings.dtype, wave_pass.settings.residual)
            scale = fp16_scale(wave_pass.halo_exchange.largest(gradient.abs().amax()), ctx.positions) if half else None
            scaled = gradient if scale is None else gradient * scale
            # In fp16 everything below is scaled; weights' gradients are brought back at the end, in fp32.
            below = wave.backward(wave_pass.gradient_of_tiles(scaled, ctx.positions))
            into = wave_pass.source_gradient(below, wave, ctx.frames)
            # Freed by hand, as everything that a function keeps outside of save_for_backward.
            ctx.frames = None
            sums = wave.weights.sums
            if scale is not None:
                torch._foreach_div_(list(sums.values()), scale)
                into = None if into is None else into / scale
        # The wave lives as long as the loss does; its gradients must go when the optimizer lets them go.
        return None, into, None, None, None, None, *(sums.pop(name, None) for name in wave.weights.names)


def fp16_scale(largest: Tensor, divisor: int) -> Tensor:
    """Return a power of two, on the device, that brings a gradient's `largest` value / divisor near FP16_GRADIENT.

    Gradients of pooled features are far below fp16's smallest numbers.
    """
    power = torch.floor(torch.log2(FP16_GRADIENT / (largest / divisor).float()))
    # If all gradients are 0, the power would be infinite.
    return torch.exp2(power.clamp(max=100))
