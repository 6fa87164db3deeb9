"""From which checkpoint a run goes on, settled before its directory is made or changed."""

from __future__ import annotations

from pathlib import Path

from adatad.errors import UserError
from adatad.training.checkpoint import all_checkpoints, newest_checkpoint
from adatad.training.checkpoint_check import MANIFEST
from adatad.training.run_directory import RunDirectory

AUTO = "auto"


class ResumeError(UserError):
    """A run that can't go on as asked; the message says what to do."""


def checkpoint_to_resume(run: RunDirectory, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint that `resume` names, None for a fresh start; and a line for each broken one that auto skipped.

    A directory holds one course of training: the newest checkpoint is kept and resumed from, so one that is named must
    be the newest, or start a run that has none. Raises ResumeError, also where
    auto finds broken ones alone: a fresh start would write over them.
    """
    if resume == AUTO:
        newest, skipped = newest_checkpoint(run.checkpoints)
        if newest is None and skipped:
            broken = "; ".join(line.removeprefix("skipped ") for line in skipped)
            raise ResumeError(
                f"--resume {AUTO}: no checkpoint of {run.path} is whole: {broken}. --overwrite starts afresh in its "
                "place, --id N beside it"
            )
        return newest, skipped
    if not resume.strip():
        raise ResumeError(f"--resume {resume!r}: expected {AUTO} or a checkpoint's path")
    path = Path(resume)
    if not path.is_dir():
        raise ResumeError(f"--resume {resume}: no such checkpoint directory; expected {AUTO} or a checkpoint's path")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (path / MANIFEST).exists() and all_checkpoints(folder):
        names = ", ".join(checkpoint.name for checkpoint in all_checkpoints(folder))
        raise ResumeError(f"--resume {resume}: is a run, not a checkpoint of it; name one in {folder} ({names})")
    others = _others(run.checkpoints, path)
    if others:
        names = ", ".join(other.name for other in others)
        raise ResumeError(
            f"--resume {resume}: {run.checkpoints} holds other checkpoints than those that led to it ({names}), which "
            f"a later --resume {AUTO} would take for its own: start another run from it with --id N, or remove them"
        )
    return path, []


def go_on(run: RunDirectory, resume: str | None) -> str:
    """What `--resume` means to an attempt that torchrun started after an earlier one of the same job had opened the
    run: that one's checkpoints, if it came so far."""
    return AUTO if resume is None or all_checkpoints(run.checkpoints) else resume


def _others(folder: Path, path: Path) -> list[Path]:
    """Checkpoints of a run that aren't before, or at, the one at `path`."""
    there, real = all_checkpoints(folder), path.resolve()
    places = [checkpoint.resolve() for checkpoint in there]
    return there[places.index(real) + 1 :] if real in places else there
