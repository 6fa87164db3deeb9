"""The side variant in two streams, with nothing kept of either.

Its output is the last listed block's tokens plus, of every adapter, gamma (U (z + convolution of z) + c), averaged
over space; and the mean over space commutes with all that follows the activation z = GELU(x D + d). So the first stream
keeps z's mean over space alone, [tubelets, hidden] of each adapter, and everything behind it is ordinary autograd on
that. The second stream computes the tokens again, for the gradients of D and d.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.memory.adapter_tile import product
from adatad.memory.arithmetic import no_autocast
from adatad.memory.labels import label
from adatad.memory.tiles import Tile, cut_tiles
from adatad.memory.transform import Transform
from adatad.memory.wave import WaveSettings
from adatad.memory.wave_pass import WavePass, fp16_scale
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
        with no_autocast(frames.device):
            for adapter, mean in zip(backbone.side_adapters, means, strict=True):
                mean = mean.view(-1, backbone.clip_tubelets, mean.shape[-1])
                timeline = timeline + adapter.expand(mean, batch, self.halo_exchange.pad).flatten(0, 1)
        return timeline.view(batch, -1, timeline.shape[-1])

    @property
    def stream(self) -> WavePass:
        return self.passes[0]

    @property
    def backbone(self) -> VideoBackbone:
        return self.stream.backbone

    @property
    def settings(self) -> WaveSettings:
        return self.stream.settings

    def weight_modules(self) -> list[nn.Module]:
        return [self.squeezing]

    def __str__(self) -> str:
        return f"{self.stream}\nbeside them: means over space alone are kept, and the blocks run again going back"

    def visits(self, frames: Tensor) -> Iterator[tuple[int, Tile, Tensor]]:
        """Adapter number, tile, and the tokens it reads, as the tiles come through the backbone."""
        clips = frames.shape[2] // self.backbone.clip_frames
        transform = Transform(self.backbone, self.settings.dtype, None, self.settings.branch_type)
        tiles = cut_tiles(len(frames), clips, self.settings.tile_clips)
        blocks = range(self.settings.last + 1)
        if self.settings.block_by_block:
            rows = list(self.stream.rows_of(frames, tiles))
            for index in blocks:
                with self.stream.provider.materialized(blocks[index : index + 1], blocks[index + 1 : index + 2]):
                    yield from self.through(transform, index, rows)
                    transform.let_go(range(index, index + 1))
            return
        for row in self.stream.rows_of(frames, tiles):
            for index in blocks:
                yield from self.through(transform, index, [row])

    def through(
        self, transform: Transform, index: int, rows: list[tuple[Tile, Tensor]]
    ) -> Iterator[tuple[int, Tile, Tensor]]:
        """Rows through one block, in place; those that an adapter reads, with its number."""
        for tile, x in rows:
            with label("tile"):
                transform.in_place(index, tile, x)
            if index in self.backbone.adapter_blocks:
                yield self.backbone.adapter_blocks.index(index), tile, x


def squeeze_before(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The value before GELU: [clips, l, c] -> [clips x l, hidden], in the arithmetic of the tiles."""
    return F.linear(x.flatten(0, 1).to(weight.dtype), weight, bias)


class _SideFunction(torch.autograd.Function):
    """Frames and all D and d to the tokens' means [b, tubelets, c] and z's [b, tubelets, hidden], ..."""

    @staticmethod
    def forward(ctx, side: SideExecutor, frames: Tensor, *weights: Tensor):
        ctx.side, ctx.frames = side, frames
        low = side.settings.dtype
        with label("adapter casts"):
            ctx.casts = [weight.to(low) for weight in weights]
        exact = torch.promote_types(side.settings.residual, torch.float32)
        backbone, clips = side.backbone, len(frames) * frames.shape[2] // side.backbone.clip_frames
        widths = [backbone.width, *(len(bias) for bias in ctx.casts[1::2])]
        with label("features"):
            shapes = [(clips, backbone.clip_tubelets, width) for width in widths]
            outputs = [torch.empty(shape, dtype=exact, device=frames.device) for shape in shapes]
        with no_autocast(frames.device):
            for number, tile, x in side.visits(frames):
                with label("tile"):
                    z = F.gelu(squeeze_before(x, *ctx.casts[2 * number : 2 * number + 2]))
                    tile.of(outputs[1 + number]).copy_(backbone.pool(z.view(*x.shape[:2], -1)))
                    if number == len(backbone.adapter_blocks) - 1:
                        tile.of(outputs[0]).copy_(backbone.pool(x))
        return tuple(out.view(len(frames), -1, out.shape[-1]) for out in outputs)

    @staticmethod
    def backward(ctx, _, *gradients: Tensor):
        side, frames, tubelets = ctx.side, ctx.frames, ctx.side.backbone.clip_tubelets
        low, positions = side.settings.dtype, side.stream.positions(frames)
        exact = torch.promote_types(low, torch.float32)
        with label("gradients"):
            sums = [torch.zeros_like(cast, dtype=exact) for cast in ctx.casts]
        scales = [fp16_scale(g.abs().amax(), positions) if low == torch.float16 else g.new_ones(()) for g in gradients]
        per_clip = [(g * scale / positions).to(low).reshape(-1, tubelets, 1, g.shape[-1])
                    for g, scale in zip(gradients, scales, strict=True)]  # fmt: skip
        with no_autocast(frames.device):
            for number, tile, x in side.visits(frames):
                with label("tile"):
                    before = squeeze_before(x, *ctx.casts[2 * number : 2 * number + 2])
                    gz = tile.of(per_clip[number]).expand(-1, -1, positions, -1).reshape(before.shape)
                    gp = torch.ops.aten.gelu_backward(gz, before)
                    add_linear_(sums[2 * number], sums[2 * number + 1], gp, x.flatten(0, 1).to(low))
        ctx.frames = None
        for number, scale in enumerate(scales):
            torch._foreach_div_(sums[2 * number : 2 * number + 2], scale)
        return None, None, *sums


def add_linear_(weight_sum: Tensor, bias_sum: Tensor, gradient: Tensor, x: Tensor) -> None:
    """Add a linear layer's weight gradients, from its output's gradient and its input."""
    weight_sum.add_(product(gradient.t(), x, weight_sum.dtype))
    bias_sum.add_(gradient.sum(0, dtype=bias_sum.dtype))


def side_executor(
    backbone: VideoBackbone, settings: WaveSettings, provider: WeightProvider, host_limit_bytes: int | None
) -> SideExecutor:
    """Build the executor of mode side under policy tile."""
    names = [f"{n}.{name}" for n in range(len(backbone.side_adapters)) for name in ("down.weight", "down.bias")]
    nothing = TrainedWeights(backbone, [])
    stream = WavePass(backbone, settings, nothing, True, provider, host_limit_bytes=host_limit_bytes)
    return SideExecutor(passes=(stream,), squeezing=TrainedWeights(backbone.side_adapters, names))
