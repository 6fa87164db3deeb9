"""Slurm's commands, as `adatad submit` and `adatad status` call them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from adatad.cluster.job import JobError
from adatad.files import reason, shown

MAX_SHOWN = 200
"""Characters of an answer in a message."""


class Queued(NamedTuple):
    """Squeue's line on a job that Slurm still has: its state, why it waits, the time left, its nodes."""

    state: str
    reason: str
    left: str
    nodes: str


def slurm(*command: str) -> str:
    """Return the standard output of a command. Raises JobError with its error message."""
    try:
        # Bytes that are no UTF-8 come from sites' messages in other encodings.
        run = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="backslashreplace",
            env=outside_of_jobs(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        raise JobError(
            f"{command[0]} isn't here: run this on a host of the cluster that jobs are submitted on"
        ) from None
    except OSError as error:
        raise JobError(f"{command[0]} can't be run: {reason(error)}") from error
    if run.returncode:
        raise JobError(f"{' '.join(command)}: {(run.stderr or run.stdout).strip()}")
    return run.stdout


def outside_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without a job's variables: a job submitted from inside another would take its sizes from
    them."""
    # Which cluster is asked stays as the user has set it; SBATCH_ variables are the user's, too.
    leaking = ("SLURM_", "SLURMD_", "SRUN_")
    return {k: v for k, v in environment.items() if not k.startswith(leaking) or k in ("SLURM_CONF", "SLURM_CLUSTERS")}


def queued(job: str) -> Queued | None:
    """Return what squeue says of a job; None for one that has ended, or that Slurm has forgotten.

    Raises JobError if the answer can't be read. Other lines, as a site's wrapper may print, are passed over.
    """
    try:
        lines = slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%L|%N").splitlines()
    except JobError as error:
        # Slurm forgets a job some minutes after its end (MinJobAge).
        if "Invalid job id" in str(error):
            return None
        raise
    parts = [line.strip().split("|") for line in lines if line.strip()]
    usable = [part for part in parts if len(part) == len(Queued._fields) and part[0]]
    if parts and not usable:
        raise JobError(f"squeue's answer on job {job} can't be read: {shown('|'.join(parts[0]), MAX_SHOWN)!r}")
    return Queued(*usable[0]) if usable else None
