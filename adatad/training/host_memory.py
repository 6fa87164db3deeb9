"""RAM that this process may still take: the machine's, within the bounds of the job or container that it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
"""Folder of all control groups: of version 2, and of version 1 with a folder for each controller."""
OWN_GROUPS = Path("/proc/self/cgroup")
"""File with the groups of this process: a line NUMBER:CONTROLLERS:PATH each, without controllers in version 2."""


def available_bytes() -> int:
    """Return the bytes of RAM that this process may still take."""
    # The tightest bound counts: in a container the machine's free memory is mostly somebody else's.
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield the bytes left in each control group with a bound that this process is in, Slurm's and containers' too."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, files = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, files = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        # Bounds of all groups around this one hold as well.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _left_in(folder, *files)


def _left_in(folder: Path, limit: str, used: str, cache: str) -> Iterator[int]:
    """Yield the bytes left in one group; nothing where it has no bound. The cache of files counts as free."""
    # A group without a bound has no such file, or says "max" in it.
    with suppress(OSError, ValueError):
        bound, taken = (int((folder / name).read_text()) for name in (limit, used))
        lines = (folder / "memory.stat").read_text().splitlines()
        yield bound - taken + sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
