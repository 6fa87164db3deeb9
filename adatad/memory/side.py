"""The side variant in two streams, with nothing saved of either.

Its output is the last listed block's tokens plus, of every adapter, gamma (U (z + convolution of z) + c), averaged
over space; and the mean over space commutes with all that follows the activation z = GELU(x D + d). So the first stream
keeps z's mean over space alone, [tubelets, hidden] of each adapter, and everything behind it is ordinary autograd on
that. The second stream computes the tokens again, for the gradients of D and d.

Shapes: b windows, n clips of a tile, l tokens of a clip, c width; each adapter has a hidden width of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.memory.adapter_tile import product
from adatad.memory.arithmetic import no_autocast
from adatad.memory.scopes import memory_scope
from adatad.memory.tiles import Tile, cut_tiles
from adatad.memory.transform import Transform, normalized
from adatad.memory.wave_pass import WavePass, fp16_scale
from adatad.memory.wave_state import WaveSettings
from adatad.memory.weights import TrainedWeights, WeightProvider
from adatad.models.backbone import PlainExecutor, VideoBackbone


@dataclass(frozen=True, eq=False, kw_only=True)
class SideExecutor(PlainExecutor):
    """Runs the backbone of mode side tile by tile, without a graph, and again for the gradients of its adapters.

    Its one pass gives tiles of tokens, and the weights of blocks.
    """

    squeezing: TrainedWeights
    """The adapters' first layers, which read tokens; all that comes after them is ordinary autograd."""

    def __call__(self, backbone: VideoBackbone, frames: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `VideoBackbone.timeline`; stochastic depth is off in mode side."""
        batch = len(frames)
        base, *means = _SideFunction.apply(self, frames, *self.squeezing())
        timeline = base.flatten(0, 1)
        # Means are fp32 and tiny; in 16 bits they would only lose digits.
        with no_autocast(frames.device):
            for adapter, mean in zip(backbone.side_adapters, means, strict=True):
                mean = mean.view(-1, backbone.clip_tubelets, mean.shape[-1])
                timeline = timeline + adapter.expand(mean, batch, self.halo_exchange.pad).flatten(0, 1)
        return timeline.view(batch, -1, timeline.shape[-1])

    @property
    def stream(self) -> WavePass:
        """The only pass."""
        return self.passes[0]

    @property
    def backbone(self) -> VideoBackbone:
        """The backbone of that pass."""
        return self.stream.backbone

    @property
    def settings(self) -> WaveSettings:
        """The settings of that pass."""
        return self.stream.settings

    def weight_modules(self) -> list[nn.Module]:
        """Return the module of the adapters' first layers; the other ones are called as modules."""
        return [self.squeezing]

    def __str__(self) -> str:
        return f"{self.stream}\nbeside them: means over space alone are kept, and the blocks run again going back"

    def visits(self, frames: Tensor) -> Iterator[tuple[int, Tile, Tensor]]:
        """Yield adapter number, tile, and the tokens [n, l, c] it reads, as the tiles come through the backbone."""
        clips = frames.shape[2] // self.backbone.clip_frames
        tables = self.backbone.clip_tables(*frames.shape[-2:], frames.device)
        transform = Transform(self.backbone, self.settings.dtype, None, self.settings.branch_type, tables)
        tiles = cut_tiles(len(frames), clips, self.settings.tile_clips)
        blocks = range(self.settings.last + 1)
        if self.settings.block_by_block:
            # The tokens of all tiles wait together, so that each block's weights are wanted once.
            stream = list(self.stream.tiles_of(frames, tiles))
            for index in blocks:
                with self.stream.provider.materialized(blocks[index : index + 1], blocks[index + 1 : index + 2]):
                    yield from self.forward_block(transform, index, stream)
                    transform.release(range(index, index + 1))
            return
        # Tile by tile, all blocks run on one before the next is made.
        for item in self.stream.tiles_of(frames, tiles):
            for index in blocks:
                yield from self.forward_block(transform, index, [item])

    def forward_block(
        self, transform: Transform, index: int, stream: list[tuple[Tile, Tensor]]
    ) -> Iterator[tuple[int, Tile, Tensor]]:
        """Run tiles through one block, in place; yield those that an adapter reads, with its number."""
        for tile, x_nlc in stream:
            with memory_scope("tile"):
                transform.in_place(index, tile, x_nlc)
            if index in self.backbone.adapter_blocks:
                yield self.backbone.adapter_blocks.index(index), tile, x_nlc


def squeeze_before(x_nlc: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the value before GELU: tokens of patches [n, l, c] -> [n x l, hidden], in the arithmetic of the tiles."""
    return F.linear(x_nlc.flatten(0, 1).to(weight.dtype), weight, bias)


class _SideFunction(torch.autograd.Function):
    """A function of frames and all D and d: the tokens' means [b, tubelets, c] and every z's [b, tubelets, hidden]."""

    @staticmethod
    def forward(ctx, side: SideExecutor, frames: Tensor, *weights: Tensor):
        """Stream the tiles through once; keep the frames alone."""
        # Frames are all that is kept for backward: tokens are computed again from them.
        ctx.side, ctx.frames = side, frames
        low = side.settings.dtype
        with memory_scope("adapter casts"):
            # Once for all tiles, and for backward.
            ctx.casts = [weight.to(low) for weight in weights]
        exact = torch.promote_types(side.settings.residual, torch.float32)
        backbone, clips = side.backbone, len(frames) * frames.shape[2] // side.backbone.clip_frames
        widths = [backbone.width, *(len(bias) for bias in ctx.casts[1::2])]
        with memory_scope("features"):
            shapes = [(clips, backbone.clip_tubelets, width) for width in widths]
            outputs = [torch.empty(shape, dtype=exact, device=frames.device) for shape in shapes]
        with no_autocast(frames.device):
            for number, tile, x_nlc in side.visits(frames):
                with memory_scope("tile"):
                    patches = backbone.patch_tokens(x_nlc)
                    z = F.gelu(squeeze_before(patches, *ctx.casts[2 * number : 2 * number + 2]))
                    tile.of(outputs[1 + number]).copy_(backbone.pool(z.view(*patches.shape[:2], -1)))
                    # The last listed block's tokens are what adapters are added to.
                    if number == len(backbone.adapter_blocks) - 1:
                        tile.of(outputs[0]).copy_(backbone.pool(backbone.patch_tokens(normalized(backbone, x_nlc))))
        return tuple(out.view(len(frames), -1, out.shape[-1]) for out in outputs)

    @staticmethod
    def backward(ctx, _, *gradients: Tensor):
        """Stream the tiles through again, for the gradients of all D and d."""
        side, frames, tubelets = ctx.side, ctx.frames, ctx.side.backbone.clip_tubelets
        low, positions = side.settings.dtype, side.stream.positions(frames)
        exact = torch.promote_types(low, torch.float32)
        with memory_scope("gradients"):
            sums = [torch.zeros_like(cast, dtype=exact) for cast in ctx.casts]
        # Each adapter's gradient has its own scale: between adapters they differ by orders of magnitude.
        scales = [fp16_scale(g.abs().amax(), positions) if low == torch.float16 else g.new_ones(()) for g in gradients]
        per_clip = [(g * scale / positions).to(low).reshape(-1, tubelets, 1, g.shape[-1])
                    for g, scale in zip(gradients, scales, strict=True)]  # fmt: skip
        with no_autocast(frames.device):
            for number, tile, x_nlc in side.visits(frames):
                with memory_scope("tile"):
                    patches = side.backbone.patch_tokens(x_nlc)
                    before = squeeze_before(patches, *ctx.casts[2 * number : 2 * number + 2])
                    gz = tile.of(per_clip[number]).expand(-1, -1, positions, -1).reshape(before.shape)
                    # A private operator of PyTorch: what autograd calls for F.gelu.
                    gp = torch.ops.aten.gelu_backward(gz, before)
                    add_linear_(sums[2 * number], sums[2 * number + 1], gp, patches.flatten(0, 1).to(low))
        # Saved by hand and so freed by hand: a loss that lives longer must not hold the frames.
        ctx.frames = None
        for number, scale in enumerate(scales):
            torch._foreach_div_(sums[2 * number : 2 * number + 2], scale)
        return None, None, *sums


def add_linear_(weight_sum: Tensor, bias_sum: Tensor, gradient: Tensor, x_nlc: Tensor) -> None:
    """Add a linear layer's weight gradients, from its output's gradient and its input."""
    # In fp32, and the product too: sums over hundreds of tiles would lose digits in 16 bits.
    weight_sum.add_(product(gradient.t(), x_nlc, weight_sum.dtype))
    bias_sum.add_(gradient.sum(0, dtype=bias_sum.dtype))


def side_executor(
    backbone: VideoBackbone, settings: WaveSettings, provider: WeightProvider, host_limit_bytes: int | None
) -> SideExecutor:
    """Build the executor of mode side under policy tile."""
    names = [f"{n}.{name}" for n in range(len(backbone.side_adapters)) for name in ("down.weight", "down.bias")]
    # The pass itself learns nothing: gradients stop at the adapters' first layers.
    nothing = TrainedWeights(backbone, [])
    stream = WavePass(backbone, settings, nothing, True, provider, host_limit_bytes=host_limit_bytes)
    return SideExecutor(passes=(stream,), squeezing=TrainedWeights(backbone.side_adapters, names))
