"""Clip parallelism: one window over several ranks, each with some of its clips.

Attention never leaves a clip, so a rank runs the backbone on its own clips alone. What crosses ranks is what crosses
clips: at every adapter the bottleneck's planes at a border, and their gradients back. The features of all clips are
gathered, and every rank of a group runs the whole detector on them.

A rank's loss is its part, 1 / size of the group, of the window's loss. The detector's gradients are the same on all of
them, so that the sum over ranks, which every engine takes, is right for it; features get their gradient back from all
ranks (which is `size` times this rank's own), so that the same sum is right for the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.memory.tiles import LEFT, RIGHT, PendingPlanes, Tile, cut_evenly
from adatad.models.backbone import PlainExecutor, VideoBackbone
from adatad.parallel.layout import Mesh
from adatad.parallel.processes import Processes
from adatad.spec.sizes import clip_share


@dataclass(frozen=True)
class Shares:
    """The distribution of the `clips` clips of a window over the ranks of a group."""

    mesh: Mesh
    clips: int

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return self.mesh.clip

    @property
    def all(self) -> list[range]:
        """The clips of every rank."""
        return [clip_share(self.clips, self.size, rank) for rank in range(self.size)]

    @property
    def own(self) -> range:
        """Clips of this rank."""
        return clip_share(self.clips, self.size, self.mesh.clip_rank)

    @property
    def first_clip(self) -> int:
        """Number of this rank's first clip in the window."""
        return self.own.start

    def pad(self, window: Tensor, reach: int) -> Tensor:
        """Return planes [b, tubelets, positions, hidden] between `reach` of each neighbour's; zeros at a window's
        ends."""
        return pad_from_ranks(self, window, reach)

    @property
    def backwards(self) -> bool:
        """True if waves start at the last tile: neighbours run towards each other, so that none waits at a border."""
        return self.mesh.clip_rank % 2 == 1

    def has_neighbour(self, side: int) -> bool:
        """Return whether another rank has the clips on that side; the window may end there."""
        return self.mesh.clip_rank > 0 if side == LEFT else self.mesh.clip_rank < self.size - 1

    def tiles(self, windows: int, clips: int, tile_clips: int) -> list[list[Tile]]:
        """Cut this rank's clips into tiles of at most `tile_clips`, or one more: no rank may have an empty tile."""
        # As many tiles on every rank: exchanges at a border are paired by their order.
        longest, shortest = len(self.all[0]), len(self.all[-1])
        return cut_evenly(windows, clips, min(-(-longest // tile_clips), shortest), self.backwards)


@dataclass(frozen=True)
class ClipGroup(Shares):
    """The ranks that share a window, and what they exchange; what `adatad.memory.tiles` says of it holds."""

    processes: dist.ProcessGroup

    def __deepcopy__(self, memo: dict) -> ClipGroup:
        # A copy of a model shares windows with the same ranks; process groups can't be copied.
        return self

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        """Send planes to the neighbour on a side, and begin to receive as many from it."""
        return self.exchange_sides({side: planes})[side]

    def exchange_sides(self, planes: dict[int, Tensor]) -> dict[int, PendingPlanes]:
        """Exchange at several sides at once. NCCL runs a rank's batches one after another, each when both of its ranks
        have come to it: as two batches, left and right, an exchange would go through all ranks in a row."""
        outgoing = {side: own.contiguous() for side, own in planes.items()}
        incoming = {side: torch.empty_like(own) for side, own in outgoing.items()}
        operations = []
        for side, own in outgoing.items():
            peer = self.mesh.group[self.mesh.clip_rank + (1 if side == RIGHT else -1)]
            operations.append(dist.P2POp(dist.isend, own, peer, self.processes))
            operations.append(dist.P2POp(dist.irecv, incoming[side], peer, self.processes))
        # One batch: sends and receives that wait for each other would stand still if issued one by one.
        works = dist.batch_isend_irecv(operations)
        # The planes must live until they are sent.
        return {side: partial(_arrived, works, outgoing, incoming[side]) for side in planes}

    def largest(self, value: Tensor) -> Tensor:
        """Replace a value, in place, by the largest of the group's; a collective."""
        dist.all_reduce(value, dist.ReduceOp.MAX, self.processes)
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """Return every rank's object, in rank order."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self.processes)
        return values

    def gather(self, own: Tensor) -> Tensor:
        """Join every rank's piece [b, tubelets of its clips, c] of windows in time."""
        longest, per_clip = len(self.all[0]), own.shape[1] // len(self.own)
        # Collectives want equal shapes: shorter shares are padded, and cut again.
        padded = F.pad(own, (0, 0, 0, longest * per_clip - own.shape[1])).contiguous()
        pieces = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(pieces, padded, self.processes)
        return torch.cat([piece[:, : len(share) * per_clip] for piece, share in zip(pieces, self.all, strict=True)], 1)


class FakeClipGroup(Shares):
    """A group whose other ranks don't exist, to count what one rank does: what comes from them has no meaning."""

    def exchange(self, side: int, planes: Tensor) -> PendingPlanes:
        """Return planes of the right shape."""
        return partial(torch.empty_like, planes)

    def exchange_sides(self, planes: dict[int, Tensor]) -> dict[int, PendingPlanes]:
        """Return planes of the right shape, by side."""
        return {side: self.exchange(side, own) for side, own in planes.items()}

    def largest(self, value: Tensor) -> Tensor:
        """Return this rank's own value."""
        return value

    def gather(self, own: Tensor) -> Tensor:
        """Return a timeline of whole windows in shape."""
        # A clip has as many tubelets on every rank.
        tubelets = self.clips * own.shape[1] // len(self.own)
        return own.new_empty(own.shape[0], tubelets, own.shape[2])


def _arrived(works: list[dist.Work], outgoing: dict[int, Tensor], incoming: Tensor) -> Tensor:
    # Whichever side is asked for first waits for both: gloo's can't be waited for twice.
    while works:
        works.pop().wait()
    return incoming


def clip_group(processes: Processes, mesh: Mesh, clips: int, hang_seconds: float) -> ClipGroup:
    """Return this rank's group. All ranks of the run call it."""
    limit = timedelta(seconds=hang_seconds)
    # Every rank makes all groups, in one order: new_group is a collective of the whole run.
    groups = [dist.new_group(list(range(first, first + mesh.clip)), timeout=limit)
              for first in range(0, processes.world, mesh.clip)]  # fmt: skip
    group = groups[mesh.data_rank]
    # Before the first exchange between two of them, all ranks of a group must have met on their devices: NCCL wants
    # that. A barrier would be gloo's, beside which NCCL is the group's second backend.
    dist.all_reduce(torch.zeros(1, device=processes.device), group=group)
    return ClipGroup(mesh, clips, group)


class ClipParallelExecutor:
    """An executor that runs another on this rank's clips, and gathers the timeline of whole windows."""

    def __init__(self, inner: PlainExecutor, group: ClipGroup | FakeClipGroup):
        self.inner, self.group = inner.with_exchange(group), group

    def __call__(self, backbone: VideoBackbone, frames: Any, keys: Tensor | None = None) -> Tensor:
        """Return the timeline of all clips, of the frames of this rank's clips."""
        return _Gathered.apply(self.inner(backbone, frames, keys), self.group)

    @property
    def passes(self) -> Sequence[Any]:
        """Wave passes of the inner executor."""
        return self.inner.passes

    def weight_modules(self) -> list[nn.Module]:
        """Return the weight modules of the inner executor."""
        return self.inner.weight_modules()

    def with_weights(self, provider: Any) -> ClipParallelExecutor:
        """Return this executor with another source of the blocks' weights."""
        return ClipParallelExecutor(self.inner.with_weights(provider), self.group)

    def __str__(self) -> str:
        own = self.group.own
        shared = f"clips {own.start} to {own.stop - 1} of {self.group.clips}: {self.group.size} ranks share a window"
        return f"{self.inner}\n{shared}"


def share_clips(backbone: VideoBackbone, group: ClipGroup | FakeClipGroup) -> None:
    """Make a backbone, under whatever memory policy, run on this rank's clips and give the whole window's features."""
    backbone.executor = ClipParallelExecutor(backbone.executor, group)


def pad_from_ranks(group: ClipGroup | FakeClipGroup, window: Tensor, reach: int) -> Tensor:
    """Return planes between those of both neighbours, as `Shares.pad` says; differentiable."""
    return _Padded.apply(window, reach, group) if reach else window


class _Gathered(torch.autograd.Function):
    """A rank's timeline gathered to that of whole windows."""

    @staticmethod
    def forward(ctx, own: Tensor, group: ClipGroup) -> Tensor:
        """Gather the timeline [b, tubelets, c]."""
        ctx.group, ctx.per_clip = group, own.shape[1] // len(group.own)
        return group.gather(own)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """Return this rank's part of the gradient, summed over the group."""
        # Every rank runs the same detector on the same features: the sum over ranks is this gradient, `size` times.
        share = ctx.group.own
        own = gradient[:, share.start * ctx.per_clip : share.stop * ctx.per_clip]
        return own * ctx.group.size, None


class _Padded(torch.autograd.Function):
    """Planes [b, t, p, h] between `reach` planes of each neighbour's; zeros at a window's ends."""

    @staticmethod
    def forward(ctx, window: Tensor, reach: int, group: ClipGroup) -> Tensor:
        """Exchange the planes at both borders at once."""
        ctx.reach, ctx.group = reach, group
        sides = [side for side in (LEFT, RIGHT) if group.has_neighbour(side)]
        ends = window[:, :reach], window[:, window.shape[1] - reach :]
        arrivals = group.exchange_sides({side: ends[side] for side in sides})
        # Zeros at a window's ends, as a convolution pads there.
        beside = [arrivals[side]() if side in sides else torch.zeros_like(ends[side]) for side in (LEFT, RIGHT)]
        return torch.cat([beside[LEFT], window, beside[RIGHT]], 1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """Send the gradients of the neighbours' planes back, and add those that come to the own ends."""
        reach, group = ctx.reach, ctx.group
        length = gradient.shape[1] - 2 * reach
        beyond = gradient[:, :reach], gradient[:, length + reach :]
        arrivals = group.exchange_sides({side: beyond[side] for side in (LEFT, RIGHT) if group.has_neighbour(side)})
        # A copy: autograd may give this gradient to others too.
        own = gradient[:, reach : length + reach].clone()
        for side, arrival in arrivals.items():
            end = own[:, :reach] if side == LEFT else own[:, length - reach :]
            end += arrival()
        return own, None, None
