"""Files of a run's jobs: the folder `slurm/` in the run directory, and its layout.

    attempts/<attempt>.start .stopped .done .end   facts at the start; the trainer's markers; how it ended
    logs/rank-<n>.log                         one file a rank, of all attempts
    health/<attempt>/<host>.json              what the health check found
    spec-<job>.yaml  code-<job>/  version-<job>.txt   what the job was submitted with
    job-<date>.sh  job-<job>.log  submitted.txt       of `adatad submit`: scripts, outputs, numbers of jobs

A job that is requeued keeps its number; each time that it runs is an attempt, `<job>-<restarts>`. The supervisor uses
this module, so it needs the standard library alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adatad.errors import UserError
from adatad.files import MAX_SPEC_BYTES, FileError, read_json, read_text, shown
from adatad.training.markers import DONE, STOPPED

FOLDER = "slurm"
SUBMITTED = "submitted.txt"
POINTERS = Path("slurm") / "logs"
"""Folder where a requeued job finds its run, whatever has become of the files that it was submitted with."""
JOB = re.compile(r"[0-9]{1,12}(_[0-9]{1,9})?")
"""A job's number, or that of a task of an array: what else stands in its place never reaches a command of Slurm's."""
FACTS = {"job": str, "nodes": str, "step": int, "seconds_since_1970": (int, float)}
"""Keys and types of a .start file."""


class JobError(UserError):
    """A job that can't go on, or be submitted; the message says why and what to do."""


@dataclass(frozen=True)
class JobAttempt:
    """One attempt of a job. job: `<id>`, or `<array id>_<task>`, as scontrol takes it; restarts: 0 at first."""

    job: str
    restarts: int

    @property
    def name(self) -> str:
        """The stem of the attempt's files, `<job>-<restarts>`."""
        return f"{self.job}-{self.restarts:03d}"


class JobRun(NamedTuple):
    """Files that a job trains by. stage_to: folder on the nodes' own disks that videos are copied to, "" for none."""

    run: str
    spec: str
    code: str
    stage_to: str


def current_attempt(environment: Mapping[str, str] = os.environ) -> JobAttempt:
    """Return the attempt that Slurm's variables describe. Raises JobError.

    The task of an array whose number is the array's own must not be named by it: scontrol would take it for the whole
    array.
    """
    if "SLURM_JOB_ID" not in environment:
        raise JobError("SLURM_JOB_ID isn't set: this runs in a batch script; sbatch slurm/train.sh SPEC starts one")
    job = environment["SLURM_JOB_ID"]
    # One task of an array has the array's own number, the others have numbers of their own.
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    if not JOB.fullmatch(job) or not re.fullmatch(r"[0-9]{1,9}", restarts):
        raise JobError(
            f"SLURM_JOB_ID, SLURM_ARRAY_..._ID and SLURM_RESTART_COUNT say job {shown(job)!r}, restart "
            f"{shown(restarts)!r}; expected numbers, as Slurm sets them in a batch script"
        )
    return JobAttempt(job, int(restarts))


def pointer(attempt: JobAttempt, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file that tells a job's later attempts what it trains. slurm/supervise.sh reads it, too."""
    return POINTERS / f".run-of-{environment.get('SLURM_CLUSTER_NAME', 'cluster')}-{attempt.job}"


def remember_run(attempt: JobAttempt, run: JobRun) -> None:
    """Write the pointer of a job's first attempt."""
    # A relative path: a requeued job runs in the same folder as before.
    pointer(attempt).parent.mkdir(parents=True, exist_ok=True)
    pointer(attempt).write_text("".join(f"{line}\n" for line in run), encoding="utf-8")


def known_run(attempt: JobAttempt) -> JobRun | None:
    """Return what a requeued job trains; None in a first attempt. Raises JobError, FileError."""
    file = pointer(attempt)
    # Numbers of jobs come again: a first attempt has no use for an older job's pointer.
    if attempt.restarts == 0 or not file.is_file():
        return None
    lines = read_text(file, MAX_SPEC_BYTES).splitlines()
    if len(lines) != len(JobRun._fields):
        raise JobError(f"{file}: expected {len(JobRun._fields)} lines, got {len(lines)}: submit the job again")
    return JobRun(*lines)


def note_start(folder: Path, attempt: JobAttempt, step: int, nodes: str) -> None:
    """Write the attempt's .start file, and remove what an earlier attempt of this name has left.

    step: of the checkpoint that it starts from, -1 without one.
    """
    # Numbers of jobs come again, and the batch script may run twice in one allocation.
    shutil.rmtree(folder / "health" / attempt.name, ignore_errors=True)
    for name in ("attempts", "logs", f"health/{attempt.name}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    markers = folder / "attempts" / attempt.name
    # Markers decide what the supervisor does next: none of an earlier job may be left.
    for kind in (STOPPED, DONE, "end"):
        markers.with_suffix(f".{kind}").unlink(missing_ok=True)
    facts = {"job": attempt.job, "restarts": attempt.restarts, "nodes": nodes, "step": step}
    # Renamed when complete: a cut-off node's rank looks at these files to learn whether a later attempt has begun.
    unfinished = markers.with_name(f".{attempt.name}.start.unfinished")
    unfinished.write_text(json.dumps({**facts, "seconds_since_1970": time.time()}), encoding="utf-8")
    unfinished.replace(markers.with_suffix(".start"))


def refuse_idle(folder: Path, attempt: JobAttempt, most: int) -> None:
    """Raise JobError after `most` restarts in a row that found no newer checkpoint than the attempt before."""
    # The start of this attempt is among them.
    steps = [facts["step"] for facts in started_attempts(folder) if facts["job"] == attempt.job]
    if attempt.restarts and len(steps) > most and len(set(steps[-most - 1 :])) == 1:
        where = f"step {steps[-1]}" if steps[-1] >= 0 else "no checkpoint at all"
        end = folder / "attempts" / f"{attempt.name}.end"
        end.write_text(f"failed: {most} restarts in a row without progress\n", encoding="utf-8")
        raise JobError(
            f"stopped: {most} restarts in a row without progress, still at {where}. {folder}/attempts says how each "
            "attempt ended; a checkpoint may take longer than the time there is (train.checkpoint_every_steps, --time, "
            "--signal), MAX_IDLE_RESTARTS sets another limit"
        )


def started_attempts(folder: Path) -> list[dict[str, Any]]:
    """Return what stands in the .start files of a run's `slurm/` folder, with "name", oldest first. Files without
    usable facts, which a full disk may leave, are left out."""
    attempts = []
    for file in (folder / "attempts").glob("*.start"):
        with suppress(FileError):
            facts = read_json(file, MAX_SPEC_BYTES)
            # Every field is checked: one odd file must not keep a job, or `adatad status`, from working.
            complete = isinstance(facts, dict) and all(isinstance(facts.get(key), kind) for key, kind in FACTS.items())
            if complete and JOB.fullmatch(facts["job"]) and math.isfinite(facts["seconds_since_1970"]):
                attempts.append({"name": file.stem, **facts})
    return sorted(attempts, key=lambda facts: (facts["seconds_since_1970"], facts["name"]))


def newest_step(run: Path) -> int:
    """Return the step of the newest finished checkpoint of a run; -1 without one."""
    names = (path.name.partition("-")[2] for path in (run / "checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdecimal() and name.isascii()), default=-1)


def submitted_jobs(folder: Path) -> list[str]:
    """Return the numbers of the jobs that `adatad submit` has submitted for a run, oldest first."""
    file = folder / SUBMITTED
    words = read_text(file, MAX_SPEC_BYTES).split() if file.is_file() else []
    return [word for word in words if JOB.fullmatch(word)]


def note_submitted(folder: Path, job: str) -> None:
    """Append a job's number to the list of a run's `slurm/` folder."""
    with (folder / SUBMITTED).open("a") as file:
        file.write(job + "\n")
