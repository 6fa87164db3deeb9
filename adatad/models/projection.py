"""ActionFormer's projection: embedding convolutions, a transformer stem, and branches that halve the length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.draws import Dropout, keep_factors
from adatad.models.sequence import ConvUnit, SequenceBlock
from adatad.models.vit import sine_table
from adatad.spec.schema import DetectorSpec


class Projection(nn.Module):
    """Features of a window to a pyramid of levels: level 0 at full length, each further one half as long."""

    def __init__(self, spec: DetectorSpec, in_widths: tuple[int, ...]):
        super().__init__()
        self.in_widths = in_widths
        self.drop_path = spec.drop_path
        self.drop_input = Dropout(spec.input_dropout, "detector/input", axes=2)
        split = spec.split_width or ()
        self.proj = nn.ModuleList(ConvUnit(i, o, 1) for i, o in zip(in_widths, split, strict=True)) if split else None
        width = sum(split) if split else sum(in_widths)
        self.embed = nn.ModuleList()
        for _ in range(spec.embed_convs):
            self.embed.append(ConvUnit(width, spec.width, spec.embed_kernel, norm=True, relu=True))
            width = spec.width
        windows = level_windows(spec)
        self.stem = nn.ModuleList(self._block(spec, 1, windows[0], f"stem/{i}") for i in range(spec.stem_blocks))
        self.branch = nn.ModuleList(
            self._block(spec, 2, windows[i + 1], f"branch/{i}") for i in range(spec.branch_blocks)
        )
        self.reset_biases()
        table = sine_table(spec.max_length, spec.width) / spec.width**0.5 if spec.absolute_positions else None
        positions = None if table is None else table.transpose(1, 2)
        self.register_buffer("positions", positions, persistent=False)

    def _block(self, spec: DetectorSpec, stride: int, window: int, name: str) -> SequenceBlock:
        name = f"detector/{name}"
        rest = spec.layer_scale, spec.drop_path, name, spec.dropout
        return SequenceBlock(spec.width, spec.heads, stride, window, *rest)

    def reset_biases(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """x: [b, in, t], mask: bool [b, t]; returns the levels [b, c, t / 2^l] and their masks."""
        x = self.drop_input(x, keys)
        if self.proj is not None:
            streams = x.split(self.in_widths, dim=1)
            x = torch.cat([unit(stream, mask)[0] for unit, stream in zip(self.proj, streams, strict=True)], dim=1)
        for unit in self.embed:
            x, mask = unit(x, mask)
        if self.positions is not None:
            x = x + self._positions(x.shape[-1]) * mask[:, None]
        kept = iter(self._kept(keys, x.dtype))
        for block in self.stem:
            x, mask = block(x, mask, keys, next(kept))
        levels, masks = [x], [mask]
        for block in self.branch:
            x, mask = block(x, mask, keys, next(kept))
            levels.append(x)
            masks.append(mask)
        return levels, masks

    def _kept(self, keys: Tensor | None, dtype: torch.dtype) -> Sequence[Tensor | None]:
        """What each block, in order, multiplies its two residual branches by: [2, b]; drawn for all in one go."""
        blocks = [*self.stem, *self.branch]
        if keys is None or not self.drop_path or not blocks:
            return [None] * len(blocks)
        names = [name for block in blocks for name in block.branch_names]
        return keep_factors(keys, self.drop_path, names, dtype).unflatten(0, (-1, 2)).unbind()

    def _positions(self, length: int) -> Tensor:
        """The table cut to a length; in evaluation stretched to one that is longer."""
        longest = self.positions.shape[-1]
        if not self.training and length >= longest:
            return F.interpolate(self.positions, size=length, mode="linear", align_corners=False)
        if length > longest:
            raise ValueError(f"{length} positions in training, but model.detector.max_length is {longest}")
        return self.positions[..., :length]


def level_windows(spec: DetectorSpec) -> tuple[int, ...]:
    """The attention window of each level."""
    if isinstance(spec.attention_window, int):
        return (spec.attention_window,) * (spec.branch_blocks + 1)
    return spec.attention_window
