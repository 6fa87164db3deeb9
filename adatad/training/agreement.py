"""The same videos on all ranks that share windows, also where some rank can't read its part of one."""

from __future__ import annotations

from collections.abc import Iterator

from adatad.data.dataset import Batch, Skipped, collate
from adatad.data.loader import Loader
from adatad.parallel.clip import ClipGroup


def same_videos(loader: Loader, group: ClipGroup) -> Iterator[Batch]:
    """A training loader's batches. Where one rank has another video in place of one that it couldn't read, all others
    leave that out too, and the reason says which rank it was."""
    unread: dict[str, Skipped] = {}
    for batch, addresses in zip(loader, loader.batches, strict=True):
        while not _same_everywhere(batch, group, unread):
            loader.dataset.leave_out(unread.values())
            batch = collate([loader.dataset[address] for address in addresses])
        yield batch


def _same_everywhere(batch: Batch, group: ClipGroup, unread: dict[str, Skipped]) -> bool:
    """Whether all ranks have the same videos; what any of them couldn't read is added to `unread`."""
    names = [window.video.name for window in batch.windows]
    everyone = group.gather_objects((names, batch.skipped))
    for rank, (_, skipped) in zip(group.mesh.group, everyone, strict=True):
        for video, reason in skipped:
            unread.setdefault(video, Skipped(video, f"{reason} (rank {rank})"))
    return all(others == names for others, _ in everyone)
