"""The backbone over a video of any length, forward only, every frame once and in constant memory.

The wave's forward is one stream of tiles already. Here the tiles come from outside, a group of clips at a time, and
nobody says how many there will be. An adapter that sees its neighbours is one tile late, as in the wave: it sees zeros
at the video's own ends alone, as in one window that is as long as the whole video.

Mode side joins clips behind the backbone, on means over space: rows of those means are what is streamed, and every
window of rows is finished by itself (`FeatureStream.features`). It equals the backbone on that window.

Shapes: n clips of a group, l tokens of a clip, c width; t tubelets, w numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.errors import UserError
from adatad.memory.arithmetic import no_autocast
from adatad.memory.offload import HostMemory
from adatad.memory.side import squeeze_before
from adatad.memory.tiles import NoExchange, Tile
from adatad.memory.transform import Transform, normalized
from adatad.memory.wave import Wave
from adatad.memory.wave_state import TileStream, WaveBatch, WaveContext, WaveSettings, WaveWeights
from adatad.memory.weights import ResidentWeights, WeightProvider
from adatad.models.backbone import VideoBackbone
from adatad.models.vit import ClipTables

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FeatureStream:
    """A backbone that is run over videos of any length; made by `feature_stream`."""

    backbone: VideoBackbone
    settings: WaveSettings
    """Of all blocks that are run; their tiles are the groups that come."""
    providers: Mapping[int, WeightProvider]
    """Who brings the weights of a block for each group, where they aren't on the device all the time."""

    def rows(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield rows of features of each group of clips, in order, as soon as the groups behind it allow.

        groups: uint8 [n, 3, clip_frames, height, width] each, on any device, consecutive clips of one video, of one
        size. Rows are float32 [n x clip tubelets, w] (float64 of float64), on the backbone's device.
        """
        wave_or_side = self._side_rows if self.backbone.mode == "side" else self._wave_rows
        device = self.backbone.patch_embed.weight.device
        # Not around the generator: what draws from it would run without autocast too.
        return drawn_within(lambda: _forward_only(device), wave_or_side(groups))

    def features(self, rows_btw: Tensor) -> Tensor:
        """Return the features of windows of rows, whole clips long: [b, t, w] -> [b, t, c]."""
        if self.backbone.mode != "side":
            return rows_btw
        adapters, batch = self.backbone.side_adapters, len(rows_btw)
        widths = [self.backbone.width, *(adapter.down.out_features for adapter in adapters)]
        timeline, *means = rows_btw.split(widths, -1)
        # As in the side executor: means are fp32 and tiny, in 16 bits they would only lose digits.
        with torch.no_grad(), no_autocast(rows_btw.device):
            for adapter, mean in zip(adapters, means, strict=True):
                clips = mean.reshape(-1, self.backbone.clip_tubelets, mean.shape[-1])
                timeline = timeline + adapter.expand(clips, batch).view(batch, -1, timeline.shape[-1])
        return timeline

    def _wave_rows(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        groups, tables = self._first_look(groups)
        wave = self._wave(tables)
        for _, x_nlc in wave.forward(self._tokens(groups)):
            pooled = self._pooled(x_nlc)
            del x_nlc
            yield pooled

    def _side_rows(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        groups, tables = self._first_look(groups)
        transform, listed = self._transform(tables), self.backbone.adapter_blocks
        squeezing = [
            (adapter.down.weight.to(self.settings.dtype), adapter.down.bias.to(self.settings.dtype))
            for adapter in self.backbone.side_adapters
        ]
        for tile, x_nlc in self._tokens(groups):
            means = []
            for index in range(self.settings.last + 1):
                transform.in_place(index, tile, x_nlc)
                if index in listed:
                    patches = self.backbone.patch_tokens(x_nlc)
                    z = F.gelu(squeeze_before(patches, *squeezing[listed.index(index)]))
                    means.append(self.backbone.pool(z.view(*patches.shape[:2], -1)).flatten(0, 1))
                    del patches
            # The last listed block's tokens are what adapters are added to.
            rows = torch.cat([self._pooled(x_nlc), *means], -1)
            del x_nlc
            yield rows

    def _pooled(self, x_nlc: Tensor) -> Tensor:
        """Return the rows of features of a group's last tokens."""
        return self.backbone.pool(self.backbone.patch_tokens(normalized(self.backbone, x_nlc))).flatten(0, 1)

    def _first_look(self, groups: Iterable[Tensor]) -> tuple[Iterator[Tensor], ClipTables]:
        """Return the groups, and the tables of clips of their size, which is that of the first one."""
        groups = iter(groups)
        first = next(groups, None)
        if first is None:
            return groups, ()
        device = self.backbone.patch_embed.weight.device
        return chain([first], groups), self.backbone.clip_tables(*first.shape[-2:], device)

    def _tokens(self, groups: Iterable[Tensor]) -> TileStream:
        """Yield the tokens of each group, as tiles of one window without an end."""
        device, start = self.backbone.patch_embed.weight.device, 0
        for index, clips in enumerate(groups):
            tile = Tile(0, index, start, start + len(clips))
            x_nlc = self.backbone.embed(clips.to(device, non_blocking=True)).to(self.settings.residual)
            start = tile.stop
            # No name here may hold a group while the next one is made.
            del clips
            yield tile, x_nlc
            del x_nlc

    def _wave(self, tables: ClipTables) -> _StreamedWave:
        """Return a wave that saves nothing, with the casts of adapters, which are made once a video."""
        named = dict(self.backbone.named_parameters())
        names = [name for name in named if ".adapter." in name]
        weights = WaveWeights(self.backbone, self.settings, names, tuple(named[name] for name in names))
        device = self.backbone.patch_embed.weight.device
        context = WaveContext(self.backbone, self.settings, ResidentWeights(), NoExchange(), HostMemory(device))
        # Of one clip: the wave is told of no tile before it comes, and makes no store that depends on their number.
        batch = WaveBatch(1, 1, positions=1, drops=None, tables=tables, keep=False, input_gradient=False)
        return _StreamedWave(context, batch, weights, self._transform(tables))

    def _transform(self, tables: ClipTables) -> Transform:
        arguments = self.backbone, self.settings.dtype, None, self.settings.branch_type, tables
        return _ProvidedTransform(*arguments, providers=self.providers) if self.providers else Transform(*arguments)


class _StreamedWave(Wave):
    """A wave with a transform of its own."""

    def __init__(self, context: WaveContext, batch: WaveBatch, weights: WaveWeights, transform: Transform):
        super().__init__(context, batch, weights)
        self.transform = transform


@dataclass(frozen=True)
class _ProvidedTransform(Transform):
    """A transform whose blocks have their weights for the time of one tile: they come and go with every group."""

    providers: Mapping[int, WeightProvider] = field(default_factory=dict)

    def in_place(self, index: int, tile: Tile, x_nlc: Tensor) -> None:
        """Bring the weights of a block, and begin with those of the next; then run the block on a tile's tokens."""
        if index not in self.providers:
            return super().in_place(index, tile, x_nlc)
        same = self.providers.get(index + 1) is self.providers[index]
        with self.providers[index].materialized(range(index, index + 1), range(index + 1, index + 1 + same)):
            super().in_place(index, tile, x_nlc)
            # Casts are of weights that are about to go.
            self.release(range(index, index + 1))


def feature_stream(backbone: VideoBackbone, arithmetic: torch.dtype) -> FeatureStream:
    """Return a stream through a backbone, in the dtypes and with the weights that its executor has.

    arithmetic: dtype of the run (autocast's), for blocks that no wave runs. Stochastic depth is off. Raises UserError
    for adapters that reach further than a clip.
    """
    passes = backbone.executor.passes
    last = max(backbone.adapter_blocks) if backbone.mode == "side" else len(backbone.blocks) - 1
    # A last group may be one clip, and the ends of its z come from the two groups beside it alone.
    reaches = [block.adapter.reach for block in backbone.blocks if block.adapter is not None]
    if max(reaches, default=0) > backbone.clip_tubelets:
        raise UserError(
            f"model.backbone.adapter: the adapters reach {max(reaches)} tubelets to each side, further than one clip "
            f"of {backbone.clip_tubelets}: a stream can't do that; run the model on windows instead"
        )
    if passes:
        settings = replace(passes[0].settings, first=0, last=last, block_by_block=False)
    else:
        # As modules run under autocast: products in its dtype, the residual stream in fp32.
        residual = torch.promote_types(arithmetic, torch.float32)
        settings = WaveSettings(
            first=0, last=last, tile_clips=1, segment_blocks=1, hold=False, block_by_block=False, dtype=arithmetic,
            residual=residual,
        )  # fmt: skip
    # Weights that come one block at a time come once a group; such that wait in 8 bits are decoded once a group too.
    providers = {
        index: wave_pass.provider
        for wave_pass in passes
        if wave_pass.settings.block_by_block
        for index in range(wave_pass.settings.first, wave_pass.settings.last + 1)
    }
    return FeatureStream(backbone, settings, providers)


def drawn_within(context: Callable[[], AbstractContextManager], items: Iterator[T]) -> Iterator[T]:
    """Yield items that are drawn, each, inside of a new context, which the caller's own work between them isn't."""
    try:
        while True:
            with context():
                item = next(items, _END)
            if item is _END:
                return
            yield item
            # The next one is made while this name would still hold the last one.
            del item
    finally:
        items.close()


_END = object()


def _forward_only(device: torch.device) -> ExitStack:
    """Return a context without gradients and without autocast: groups have dtypes of their own."""
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(no_autocast(device))
    return stack
