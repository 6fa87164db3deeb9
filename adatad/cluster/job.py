"""What a run keeps of its jobs: a folder `slurm/` in the run directory, and what stands where in it.

    lives/<life>.start .stopped .done .end   facts at the start; marks of the trainer; how the batch script ended it
    logs/rank-<n>.log                        one file a rank, of all lives
    health/<life>/<host>.json                what the health check found
    spec-<job>.yaml  code-<job>/  version-<job>.txt   what the job was submitted with
    job-<date>.sh  job-<job>.log  submitted.txt       of adatad submit: scripts, outputs, numbers of jobs

A job that is requeued keeps its number; each time that it runs is a life, `<job>-<restarts>`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatad.errors import UserError
from adatad.files import MAX_SPEC_BYTES, FileError, read_json, read_text, shown

FOLDER = "slurm"
SUBMITTED = "submitted.txt"
JOB = re.compile(r"[0-9]{1,12}(_[0-9]{1,9})?")
"""A job's number, or that of a task of an array: what else stands in its place never reaches a command of Slurm's."""
FACTS = {"job": str, "nodes": str, "step": int, "seconds_since_1970": (int, float)}
"""What a .start file says, and as what."""


class JobError(UserError):
    """A job that can't go on, or be submitted; the message says why and what to do."""


@dataclass(frozen=True)
class Life:
    """One life of a job. job: `<id>`, or `<array id>_<task>`, as scontrol takes it; restarts: 0 in the first life."""

    job: str
    restarts: int

    @property
    def name(self) -> str:
        return f"{self.job}-{self.restarts:03d}"


def present_life(environment: Mapping[str, str] = os.environ) -> Life:
    """The one that Slurm's variables describe. The task of an array whose number is the array's own must not be named
    by it: scontrol would take it for the whole array."""
    if "SLURM_JOB_ID" not in environment:
        raise JobError("SLURM_JOB_ID isn't set: this runs in a batch script; sbatch slurm/train.sh SPEC starts one")
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    if not JOB.fullmatch(job) or not re.fullmatch(r"[0-9]{1,9}", restarts):
        raise JobError(
            f"SLURM_JOB_ID, SLURM_ARRAY_..._ID and SLURM_RESTART_COUNT say job {shown(job)!r}, restart "
            f"{shown(restarts)!r}; expected numbers, as Slurm sets them in a batch script"
        )
    return Life(job, int(restarts))


def started_lives(folder: Path) -> list[dict[str, Any]]:
    """What stands in the .start files of a run's `slurm/` folder, with "name", oldest first. A full disk may have left
    one without its facts, which is no life that began."""
    lives = []
    for file in (folder / "lives").glob("*.start"):
        with suppress(FileError):
            facts = read_json(file, MAX_SPEC_BYTES)
            if _is_life(facts):
                lives.append({"name": file.stem, **facts})
    return sorted(lives, key=lambda life: (life["seconds_since_1970"], life["name"]))


def _is_life(facts: object) -> bool:
    is_complete = isinstance(facts, dict) and all(isinstance(facts.get(key), kind) for key, kind in FACTS.items())
    return is_complete and JOB.fullmatch(facts["job"]) is not None and math.isfinite(facts["seconds_since_1970"])


def newest_step(run: Path) -> int:
    """Step of the newest finished checkpoint of a run; -1 without one."""
    names = (path.name.partition("-")[2] for path in (run / "checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdecimal() and name.isascii()), default=-1)


def submitted_jobs(folder: Path) -> list[str]:
    """Numbers of the jobs that adatad submit has submitted for a run, oldest first."""
    file = folder / SUBMITTED
    words = read_text(file, MAX_SPEC_BYTES).split() if file.is_file() else []
    return [word for word in words if JOB.fullmatch(word)]


def note_submitted(folder: Path, job: str) -> None:
    with (folder / SUBMITTED).open("a") as file:
        file.write(job + "\n")
