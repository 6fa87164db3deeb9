"""Staging: videos are copied to a machine's own disk before training, if `data.stage_to` is set, once for all its
ranks."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adatad.errors import UserError
from adatad.spec.data_sections import DataSpec
from adatad.spec.text import PathError, cut, expand, file_name_problem, fill

# Local disks hold the temporary files of all jobs of a node.
RESERVE_BYTES = 1 << 30
"""Bytes that must stay free on the disk."""


def original_path(spec: DataSpec, name: str) -> Path:
    """Return the path of a video. Raises UserError for a name that leads out of the folder of videos."""
    return Path(spec.videos) / _file_name(spec, name)


def staged_path(spec: DataSpec, name: str) -> Path | None:
    """Return the path of a video's copy; None where the spec wants none. A copy that exists is complete.

    Raises UserError.
    """
    if spec.stage_to is None:
        return None
    return _stage_folder(spec.stage_to) / _file_name(spec, name)


def _stage_folder(stage_to: str) -> Path:
    try:
        return Path(expand(stage_to))
    except PathError as error:
        raise UserError(f"data.stage_to {cut(stage_to)}: on this machine, {error}") from error


def _file_name(spec: DataSpec, name: str) -> str:
    """Return the file name of a video, relative to a folder of videos. Raises UserError."""
    if problem := file_name_problem(spec.pattern, name):
        raise UserError(f"{cut(spec.annotations)}: video '{cut(name)}' {problem}")
    return fill(spec.pattern, name)


def stage(spec: DataSpec, names: Iterable[str], say: Callable[[str], None] = print) -> None:
    """Copy the videos that aren't there yet or have changed since.

    Other processes of this machine wait until all are there; an interrupted copy continues with the first missing
    video. Videos without an original are left to `check_videos`. Raises UserError if the disk has no room.
    """
    if spec.stage_to is None:
        return
    pairs = [(original_path(spec, name), staged_path(spec, name)) for name in names]
    folder = _stage_folder(spec.stage_to)
    try:
        # Inside the lock, also the look at what is there: another process may have copied it meanwhile.
        with _alone(folder):
            todo = [(source, copy) for source, copy in pairs if source.is_file() and not _is_copy(copy, source)]
            _check_room(folder, sum(source.stat().st_size for source, _ in todo))
            for source, copy in todo:
                copy.parent.mkdir(parents=True, exist_ok=True)
                # Renamed when complete: an interrupted copy is never taken for a video.
                unfinished = copy.with_name(f".{copy.name}.unfinished")
                shutil.copy2(source, unfinished)
                unfinished.replace(copy)
    except OSError as error:
        raise UserError(f"data.stage_to {folder}: {error}; name a folder that can be written to, or none") from error
    say(f"{folder}: {len(todo)} videos copied, {len(pairs) - len(todo)} left as they are")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine in at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        # flock is released by the system when its process dies, so that no stale lock remains.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_copy(copy: Path, source: Path) -> bool:
    if not copy.is_file():
        return False
    # copy2 keeps the time of change; whole seconds, as file systems round it differently.
    here, there = copy.stat(), source.stat()
    return here.st_size == there.st_size and int(here.st_mtime) == int(there.st_mtime)


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    # Nothing to copy is fine on a full disk.
    if needed_bytes and free < needed_bytes + RESERVE_BYTES:
        raise UserError(
            f"data.stage_to {folder}: {needed_bytes / 2**30:.1f} GiB of videos and {RESERVE_BYTES / 2**30:.0f} GiB to "
            f"spare don't fit into the {free / 2**30:.1f} GiB that are free; make room, or name another folder or none"
        )
