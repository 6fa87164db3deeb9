"""Which clips of a window a rank has, where several ranks share one."""

from __future__ import annotations

from adatad.spec.schema import DataSpec


def clip_share(clips: int, ranks: int, rank: int) -> range:
    """Consecutive clips; shares differ by one at most, and the first ranks have the longer ones."""
    short, longer = divmod(clips, ranks)
    start = rank * short + min(rank, longer)
    return range(start, start + short + (rank < longer))


def clips_of_window(data: DataSpec, clip_frames: int) -> int:
    return data.window.size_grid * data.window.frames_per_position // clip_frames
