"""The directory of a run: its place and files, protection against deleting other things, and room on its disk."""

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
from adatad.training.ownership import OWNER_FILE, Opening, Owner, claim, last_opening

# What --force may delete. A new file of a run has to be named here, or --force refuses the run.
RUN_FILES = re.compile(
    r"owner\.txt|spec\.yaml|trained\.txt|log\.txt|metrics\.jsonl|tensorboard|wandb|checkpoints|(?:best_)?detections\.json|result\.json"
    r"|first_batch\.png|new_video|report\.html|reproduction\.\w+|timelines|stacks|bad_batches|slurm"
    r"|out_of_memory_rank\d+\.\w+|profile\.json|profile_\w+\.(?:json\.gz|pickle)|\..*"
)
"""Names that a run leaves in its directory; those that begin with a point are of files that weren't finished."""
CHECKPOINT_FILES = re.compile(r"step-\d+|best|\..*")
MADE_BY_TRAINING = (OWNER_FILE, "spec.yaml", "metrics.jsonl", "log.txt")
"""One of these tells a run from any other folder."""
MAX_LISTED = 5
# Files that grow: the others are written anew and renamed, which needs no right to the file itself.
APPENDED = ("log.txt", "metrics.jsonl")


class RunDirectoryError(UserError):
    """A run that can't be started here; the message says what to do."""


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory and the files in it. owner: of a run that was opened to train; None for reading."""

    path: Path
    owner: Owner | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, and of the link to the best one."""
        return self.path / "checkpoints"

    @property
    def detections(self) -> Path:
        """Detections of the last evaluation."""
        return self.path / "detections.json"

    @property
    def best_detections(self) -> Path:
        """Detections of the evaluation that made `checkpoints/best` the best."""
        return self.path / "best_detections.json"

    @property
    def result(self) -> Path:
        """Scores of the last evaluation."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """Lines of JSON, one a step and one an evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def is_run(self) -> bool:
        """True if something has been trained here, or is about to be."""
        return self.metrics.exists() or self.checkpoints.exists()

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the run atomically. Raises FileError."""
        write_text(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """Replace a file of the run by JSON, atomically. Raises FileError."""
        write_json(self.path / name, content)


def run_directory(spec: Spec) -> RunDirectory:
    """Return the directory of a spec's run, whether it exists or not."""
    return RunDirectory(Path(spec.run.root) / spec.name / f"id{spec.run.id}")


def with_id(spec: Spec, number: int) -> Spec:
    """Return the spec of another run of the same experiment."""
    return spec.model_copy(update={"run": spec.run.model_copy(update={"id": number})})


def names_its_id(spec: Spec) -> bool:
    """Return whether the user has said which run this is, by --id or run.id; else it is the next one that is free."""
    return "id" in spec.run.model_fields_set


def ids_of(spec: Spec) -> list[int]:
    """Return the ids of the experiment's runs that exist, in ascending order."""
    names = (path.name.removeprefix("id") for path in run_directory(spec).path.parent.glob("id*"))
    # isdigit alone also takes digits of other scripts, and superscripts that int refuses.
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    return [number for number in numbers if run_directory(with_id(spec, number)).is_run]


@contextmanager
def reserved(spec: Spec) -> Iterator[Spec]:
    """Yield the spec with the first id from its own on that no run has, and make that run's folder checkpoints/, which
    is removed again if the run wasn't opened meanwhile.

    Raises RunDirectoryError, FileError.
    """
    number = spec.run.id
    while True:
        run = run_directory(with_id(spec, number))
        # Remembered, to remove no folder that was there before.
        made = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
        if not run.is_run:
            check_output_folder(run.path)
            # mkdir fails where the folder is there already: of two processes that begin at once one goes on counting.
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
        # rmdir takes empty folders alone: what somebody has put there meanwhile stays.
        if not (run.path / OWNER_FILE).exists():
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
    # What can't be written must not come to light at the first checkpoint.
    for folder in (run.path, run.checkpoints, run.path / "tensorboard"):
        check_output_folder(folder)
    for name in APPENDED:
        try:
            with (run.path / name).open("ab"):
                pass
        except OSError as error:
            raise RunDirectoryError(
                f"{run.path / name}: can't be written: {reason(error)}; free it, or give another --id or run.root"
            ) from error
    run = RunDirectory(run.path, claim(run.path))
    remove_unfinished(run)
    return run


def remove_unfinished(run: RunDirectory) -> None:
    """Remove what processes that were killed while they wrote have left."""
    left = [*run.path.glob(".*.unfinished*"), *run.path.glob(f".{OWNER_FILE}.*"), *run.checkpoints.glob(".*")]
    # The last ones lie beside the run: `_delete` was killed after it had renamed the directory.
    for path in [*left, *run.path.parent.glob(f".{run.path.name}.*.unfinished")]:
        _remove(path)


def check_overwritable(run: RunDirectory) -> Opening | None:
    """Return who opened a run last. Raises RunDirectoryError if `--force` must not delete its directory: somebody
    trains there, it is no run, or it holds more than a run."""
    path = run.path
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is no folder; give another --id, or remove it yourself")
    opening = last_opening(path)
    if opening is not None and opening.alive():
        raise RunDirectoryError(
            f"{path}: --force would delete it while it is trained ({opening.describe()}): end that one first, or "
            "give another --id"
        )
    # A folder that somebody keeps notes or other data in is never deleted, only what runs are known to write.
    foreign = [shown(entry.name) for entry in sorted(path.iterdir()) if not RUN_FILES.fullmatch(entry.name)]
    if run.checkpoints.is_dir():
        entries = sorted(run.checkpoints.iterdir())
        foreign += [f"checkpoints/{shown(e.name)}" for e in entries if not CHECKPOINT_FILES.fullmatch(e.name)]
    if foreign:
        more = f" and {len(foreign) - MAX_LISTED} more" if len(foreign) > MAX_LISTED else ""
        raise RunDirectoryError(
            f"{path}: holds more than a run, and --force would delete it: {', '.join(foreign[:MAX_LISTED])}{more}; "
            "move that away, or give another --id"
        )
    # An empty folder, or one with a report alone, may be anything.
    if not any((path / name).exists() for name in MADE_BY_TRAINING):
        raise RunDirectoryError(f"{path}: isn't a run (no {', '.join(MADE_BY_TRAINING)}); remove it yourself")
    return opening


def next_of_command(spec: Spec, command: str) -> tuple[Spec, bool]:
    """Return the spec with the id of a run that this command made itself and may overwrite, and True; without one the
    spec as it is, for which `reserved` finds a free id, and False. For commands that are typed again and again, such as
    the demo."""
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
    """Delete a run's directory; of a link, what it points to. Raises RunDirectoryError."""
    try:
        opening = check_overwritable(run)
        if opening is not None:
            say(f"--force: deleting {run.path} ({opening.describe()})")
        # Renamed first, at once: two processes that delete it don't meet in it, and none sees half a run.
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


BYTES_PER_NUMBER = 16
"""Bytes of a trained number in a checkpoint: itself, its average and AdamW's two moments, in fp32."""
LARGEST_FILE_BYTES = 8
"""Bytes of a trained number in a checkpoint's largest file, the optimizer's."""
CHECKPOINTS = 2
"""Checkpoints that lie on the disk at once: a complete one while the next is written."""
MIN_FREE_FILES = 64
"""Files that a run makes at least."""


def check_room(run: Path, trained_numbers: int, resuming: bool) -> None:
    """Raise FileError if the disk that `run` lies, or will lie, on can't take two checkpoints of so many trained
    numbers, or one where a run that is resumed has the other already."""
    # The directory may not exist yet: the nearest folder above it is on the same disk.
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
    # Beyond this limit a write fails as on a full disk, or a signal ends the process.
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
    """Return how many numbers tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes)
