"""The code and the spec of a job, kept as they were when it was submitted: a requeued job reads its files anew."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from adatad.spec import Spec, to_yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("adatad", "tools", "ds_configs", "slurm")
LEFT_OUT = shutil.ignore_patterns("logs", "*.pyc.*", "*.tmp.*")
"""Not what is compiled already, which each rank of the job would compile anew; but of that the files being written now,
which may be gone in a moment."""


def frozen_names(folder: Path, job: str) -> tuple[Path, Path]:
    """Where `freeze` puts the resolved spec and the copy of the code."""
    return folder / f"spec-{job}.yaml", folder / f"code-{job}"


def freeze(folder: Path, job: str, spec: Spec) -> tuple[Path, Path]:
    """Copy what the job needs to `folder`, whole or not at all; returns the resolved spec and the copy of the code."""
    folder.mkdir(parents=True, exist_ok=True)
    resolved, code = frozen_names(folder, job)
    unfinished = folder / f".code-{job}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for name in FOLDERS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, unfinished / name, ignore=LEFT_OUT)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(code, ignore_errors=True)
    unfinished.rename(code)
    resolved.write_text(to_yaml(spec), encoding="utf-8")
    (folder / f"version-{job}.txt").write_text(version(), encoding="utf-8")
    return resolved, code


def forget(folder: Path, job: str) -> None:
    """Remove what was kept for a job that is none, and the run's directory if nothing else is in it."""
    for name in (f"code-{job}", f".code-{job}.unfinished"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (f"spec-{job}.yaml", f"version-{job}.txt"):
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        # Fails where anything is left.
        folder.rmdir()
        folder.parent.rmdir()


def version() -> str:
    """The checkout's commit and what was changed since, or that there is none."""
    parts = [_git("rev-parse", "HEAD"), _git("status", "--short"), _git("diff", "HEAD")]
    return "\n".join(part for part in parts if part) or "not a git checkout\n"


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return ""
    return run.stdout if run.returncode == 0 else ""
