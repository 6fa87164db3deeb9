"""The directory of a run: its place, its files, that none is overwritten by accident, and that its disk has room."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatad.errors import UserError
from adatad.files import FileError, check_output_folder, reason, shown, write_json, write_text
from adatad.spec import Spec
from adatad.training.ownership import FILE as OWNER
from adatad.training.ownership import Opening, Owner, claim, last_opening

RUN_FILES = re.compile(
    r"owner\.txt|spec\.yaml|trained\.txt|log\.txt|metrics\.jsonl|tensorboard|checkpoints|detections\.json|result\.json"
    r"|report\.html|reproduction\.\w+|timelines|stacks|slurm|out_of_memory_rank\d+\.\w+|\..*"
)
"""What a run leaves in its directory; names that begin with a point are files that weren't finished."""
CHECKPOINT_FILES = re.compile(r"step-\d+|best|\..*")
MADE_BY_TRAINING = (OWNER, "spec.yaml", "metrics.jsonl", "log.txt")
"""One of these tells a run from any other folder."""
MAX_NAMED = 5
APPENDED = ("log.txt", "metrics.jsonl")


class RunDirectoryError(UserError):
    """A run that can't be started here; the message says what to do."""


@dataclass(frozen=True)
class RunDirectory:
    """owner: of one that was opened to train."""

    path: Path
    owner: Owner | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def detections(self) -> Path:
        return self.path / "detections.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def is_run(self) -> bool:
        """Whether something has been trained here, or is about to be."""
        return self.metrics.exists() or self.checkpoints.exists()

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the run whole. Raises FileError."""
        write_text(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        write_json(self.path / name, content)


def run_directory(spec: Spec) -> RunDirectory:
    return RunDirectory(Path(spec.run.root) / spec.name / f"id{spec.run.id}")


def with_id(spec: Spec, number: int) -> Spec:
    """Return the spec of another run of the same experiment."""
    return spec.model_copy(update={"run": spec.run.model_copy(update={"id": number})})


def names_its_id(spec: Spec) -> bool:
    """Return whether the user has said which run this is, by --id or run.id; else it is the next one that is free."""
    return "id" in spec.run.model_fields_set


def ids_of(spec: Spec) -> list[int]:
    """Numbers of the runs of this experiment that there are."""
    names = (path.name.removeprefix("id") for path in run_directory(spec).path.parent.glob("id*"))
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    return [number for number in numbers if run_directory(with_id(spec, number)).is_run]


@contextmanager
def reserved(spec: Spec) -> Iterator[Spec]:
    """The spec with the first id from its own on that no run has, whose checkpoints/ folder is made: of two processes
    that begin at once each gets its own. Left with an error before the run was opened it is removed again.

    Raises RunDirectoryError, FileError.
    """
    number = spec.run.id
    while True:
        run = run_directory(with_id(spec, number))
        made = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
        if not run.is_run:
            check_output_folder(run.path)
            try:
                run.checkpoints.mkdir()
                break
            except FileExistsError:
                pass
            except OSError as error:
                raise RunDirectoryError(
                    f"{run.checkpoints}: can't be made: {reason(error)}; run.root names another place for runs"
                ) from error
        number += 1
    try:
        yield with_id(spec, number)
    finally:
        if not (run.path / OWNER).exists():
            with suppress(OSError):
                for folder in (run.checkpoints, *made):
                    folder.rmdir()


def open_run(
    spec: Spec, resume: bool, overwrite: bool, is_reserved: bool = False, say: Callable[[str], None] = print
) -> RunDirectory:
    """Make the run's directory, or take over the one there: with `resume` as it is, with `overwrite` emptied.

    is_reserved: it was made for this process. say: told whose run is deleted. Raises RunDirectoryError, FileError.
    """
    run = run_directory(spec)
    if run.is_run and not is_reserved:
        if overwrite:
            _delete(run, say)
        elif not resume:
            raise RunDirectoryError(
                f"{run.path} already holds a run: --resume auto continues it, --id N starts another beside it, "
                "--force deletes it"
            )
    for folder in (run.path, run.checkpoints, run.path / "tensorboard"):
        check_output_folder(folder)
    for name in APPENDED:
        _check_appendable(run.path / name)
    run = RunDirectory(run.path, claim(run.path))
    remove_unfinished(run)
    return run


def remove_unfinished(run: RunDirectory) -> None:
    """What processes that were killed while they wrote have left."""
    left = [*run.path.glob(".*.unfinished*"), *run.path.glob(f".{OWNER}.*"), *run.checkpoints.glob(".*")]
    for path in [*left, *run.path.parent.glob(f".{run.path.name}.*.unfinished")]:
        _remove(path)


def check_overwritable(run: RunDirectory) -> Opening | None:
    """Raises RunDirectoryError if `--force` must not delete a run's directory: somebody trains there, it is no run,
    or it holds more than a run. Returns who opened it last."""
    path = run.path
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is no folder; give another --id, or remove it yourself")
    opening = last_opening(path)
    if opening is not None and opening.alive():
        raise RunDirectoryError(
            f"{path}: --force would delete it while it is trained ({opening.describe()}): end that one first, or "
            "give another --id"
        )
    foreign = [shown(entry.name) for entry in sorted(path.iterdir()) if not RUN_FILES.fullmatch(entry.name)]
    if run.checkpoints.is_dir():
        entries = sorted(run.checkpoints.iterdir())
        foreign += [f"checkpoints/{shown(e.name)}" for e in entries if not CHECKPOINT_FILES.fullmatch(e.name)]
    if foreign:
        more = f" and {len(foreign) - MAX_NAMED} more" if len(foreign) > MAX_NAMED else ""
        raise RunDirectoryError(
            f"{path}: holds more than a run, and --force would delete it: {', '.join(foreign[:MAX_NAMED])}{more}; "
            "move that away, or give another --id"
        )
    if not any((path / name).exists() for name in MADE_BY_TRAINING):
        raise RunDirectoryError(f"{path}: isn't a run (no {', '.join(MADE_BY_TRAINING)}); remove it yourself")
    return opening


def next_of_command(spec: Spec, command: str) -> tuple[Spec, bool]:
    """For a command that may be typed again and again: the spec with the id of a run that it made itself, which it may
    overwrite, and True; the spec as it is, for which `reserved` finds a free id, and False without one."""
    for number in [spec.run.id] if names_its_id(spec) else ids_of(spec):
        run = run_directory(with_id(spec, number))
        opening = last_opening(run.path)
        if opening is not None and opening.command == command:
            # Not while that one still runs, or where somebody has put something in.
            with suppress(RunDirectoryError):
                check_overwritable(run)
                return with_id(spec, number), True
    return spec, False


def _delete(run: RunDirectory, say: Callable[[str], None]) -> None:
    """Raises RunDirectoryError. The directory leaves its place at once, so that two that delete it don't meet in it; a
    link stays, and what it points to is deleted."""
    try:
        opening = check_overwritable(run)
        if opening is not None:
            say(f"--force: deleting {run.path} ({opening.describe()})")
        real = run.path.resolve(strict=True)
        aside = real.with_name(f".{real.name}.{uuid.uuid4().hex[:12]}.unfinished")
        real.rename(aside)
        real.mkdir(exist_ok=True)
    except FileNotFoundError:
        # Another one was faster; which of the two owns the run is settled by owner.txt.
        return
    except OSError as error:
        raise RunDirectoryError(
            f"{run.path}: can't be deleted: {reason(error)}; give another --id, or remove it yourself"
        ) from error
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _check_appendable(path: Path) -> None:
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: can't be written: {reason(error)}; free it, or give another --id or run.root"
        ) from error


BYTES_PER_NUMBER = 16
"""Of a trained parameter in a checkpoint: itself, its average and AdamW's two moments, in fp32."""
LARGEST_FILE_BYTES = 8
"""Of a trained parameter in a checkpoint's largest file, the optimizer's."""
CHECKPOINTS = 2
"""There is always a whole one while the next is written."""
MIN_FREE_FILES = 64


def check_room(run: Path, trained_numbers: int, resuming: bool) -> None:
    """Raises FileError if the disk that `run` lies, or will lie, on can't take two checkpoints of so many trained
    numbers: one, where a run that is resumed has the other already."""
    there = next((folder for folder in (run, *run.parents) if folder.exists()), Path("."))
    needed = trained_numbers * BYTES_PER_NUMBER * (1 if resuming else CHECKPOINTS)
    try:
        free = shutil.disk_usage(there).free
        facts = os.statvfs(there)
    except OSError as error:
        raise FileError(f"{there}: can't be looked at: {reason(error)}; run.root names another place") from error
    fix = "make room, or put runs elsewhere (run.root)"
    if free < needed:
        raise FileError(
            f"{run}: {size(free)} are free there; checkpoints of this model need {size(needed)} at least: {fix}"
        )
    # Some file systems don't count files.
    if facts.f_files and facts.f_favail < MIN_FREE_FILES:
        raise FileError(f"{run}: {facts.f_favail} more files fit there (inodes); a run makes {MIN_FREE_FILES}: {fix}")
    most, largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0], trained_numbers * LARGEST_FILE_BYTES
    if most != resource.RLIM_INFINITY and most < largest:
        raise FileError(
            f"{run}: files of this process may have {size(most)} (ulimit -f); a checkpoint of this model has one of "
            f"{size(largest)}: ulimit -f unlimited"
        )


def size(number_of_bytes: float) -> str:
    """Return bytes as people write them: 64 MB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log(max(number_of_bytes, 1), 1000)))
    return f"{number_of_bytes / 1000**power:.3g} {units[power]}"


def numbers_in(shapes: Iterable[Iterable[int]]) -> int:
    """Numbers that tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes)
