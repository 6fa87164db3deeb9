"""The code and the spec of a job, copied when it is submitted: a requeued job reads its files anew."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from adatad.cluster.job import FOLDER, JobRun, current_attempt
from adatad.spec import Spec, to_yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("adatad", "tools", "ds_configs", "slurm")
LEFT_OUT = shutil.ignore_patterns("logs", "*.pyc.*", "*.tmp.*")
"""Compiled files are copied, which each rank of the job would compile anew; not those that are being written now, which
may be gone in a moment."""


def snapshot_names(folder: Path, job: str) -> tuple[Path, Path]:
    """Return where `snapshot_code` puts the resolved spec and the copy of the code."""
    return folder / f"spec-{job}.yaml", folder / f"code-{job}"


def snapshot_code(folder: Path, job: str, spec: Spec) -> tuple[Path, Path]:
    """Copy what the job needs to `folder`, whole or not at all. Returns the resolved spec and the copy of the code."""
    folder.mkdir(parents=True, exist_ok=True)
    resolved, code = snapshot_names(folder, job)
    unfinished = folder / f".code-{job}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for name in FOLDERS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, unfinished / name, ignore=LEFT_OUT)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    # Numbers of jobs come again: an earlier job's copy gives way.
    shutil.rmtree(code, ignore_errors=True)
    unfinished.rename(code)
    resolved.write_text(to_yaml(spec), encoding="utf-8")
    (folder / f"version-{job}.txt").write_text(version(), encoding="utf-8")
    return resolved, code


def remove_snapshot(folder: Path, job: str) -> None:
    """Remove what was copied for a job that wasn't submitted, and the run's directory if nothing else is in it."""
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
    """Return the checkout's commit and what was changed since, or that there is none."""

    def git(*arguments: str) -> str:
        """Return a git command's output; "" where it fails."""
        try:
            run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, errors="replace")
        except FileNotFoundError:
            # Nodes may have no git.
            return ""
        return run.stdout if run.returncode == 0 else ""

    parts = [git("rev-parse", "HEAD"), git("status", "--short"), git("diff", "HEAD")]
    return "\n".join(part for part in parts if part) or "not a git checkout\n"


def snapshot_of_job(path: str, spec: Spec) -> JobRun:
    """Copy code and spec of the job that runs here, unless `adatad submit` has. path: the file that `spec` came from.

    Raises JobError outside of a job, OSError."""
    run = (Path(spec.run.root) / spec.name / f"id{spec.run.id}").absolute()
    # `adatad submit` has copied the code that runs here, and the spec is the resolved one.
    copied = os.environ.get("ADATAD_CODE")
    files = (path, copied) if copied else snapshot_code(run / FOLDER, current_attempt().job, spec)
    return JobRun(str(run), str(files[0]), str(files[1]), spec.data.stage_to or "")
