"""Frames of tiles, from the device's memory or from the host's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adatad.memory.labels import label
from adatad.memory.offload import Copies
from adatad.memory.tiles import Tile
from adatad.spec.schema import MemorySpec


class HostFrames:
    """uint8 [b, 3, frames, height, width] in host memory, on the way to `device` tile by tile.

    Not a tensor, so that no engine moves it to the device with a model's other inputs.
    """

    requires_grad = False

    def __init__(self, frames: Tensor, device: torch.device):
        self.frames, self.device = frames, device
        self.shape, self.dtype = frames.shape, frames.dtype

    def __len__(self) -> int:
        return len(self.frames)


def placed(frames: Tensor, memory: MemorySpec, device: torch.device) -> Tensor | HostFrames:
    """A batch's frames where the spec wants them."""
    return HostFrames(frames, device) if memory.frames == "host" else frames.to(device, non_blocking=True)


def tile_frames(
    frames: Tensor | HostFrames, tiles: Sequence[Tile], clip_frames: int, copies: Copies
) -> Iterator[tuple[Tile, Tensor]]:
    """Tiles with their frames, uint8 [1, 3, frames of the tile, height, width]; of those on the host, the next tile's
    are on their way meanwhile."""
    if isinstance(frames, Tensor):
        for tile in tiles:
            first, last = _span(frames, tile, clip_frames)
            yield tile, frames[tile.window : tile.window + 1, :, first:last]
        return
    coming = [_start(frames, tile, clip_frames, copies) for tile in tiles[:1]]
    for number, tile in enumerate(tiles):
        clips, tickets = coming.pop()
        coming += [_start(frames, following, clip_frames, copies) for following in tiles[number + 1 : number + 2]]
        for ticket in tickets:
            copies.wait(ticket)
        yield tile, clips
        del clips


def _start(source: HostFrames, tile: Tile, clip_frames: int, copies: Copies) -> tuple[Tensor, list[Any]]:
    """Begin to copy a tile's frames, a channel at a time: each is one piece of memory on both sides."""
    first, last = _span(source, tile, clip_frames)
    with label("frames"):
        clips = torch.empty(1, 3, last - first, *source.shape[-2:], dtype=source.dtype, device=source.device)
    pieces = zip(clips[0], source.frames[tile.window, :, first:last], strict=True)
    return clips, [copies.start(to, piece) for to, piece in pieces]


def _span(frames: Tensor | HostFrames, tile: Tile, clip_frames: int) -> tuple[int, int]:
    """First frame of a tile in its window, and the one after its last."""
    first = tile.start * clip_frames - tile.window * frames.shape[2]
    return first, first + (tile.stop - tile.start) * clip_frames
