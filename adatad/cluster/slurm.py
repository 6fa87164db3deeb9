"""Slurm's commands, as tools call them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from adatad.cluster.job import JobError


class Queued(NamedTuple):
    """A job that Slurm still has: its state, why it waits, the time left, its nodes."""

    state: str
    reason: str
    left: str
    nodes: str


def slurm(*command: str) -> str:
    """Standard output of a command. Raises JobError with what it said."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, env=outside_of_jobs(os.environ))
    except FileNotFoundError:
        raise JobError(
            f"{command[0]} isn't here: run this on a host of the cluster that jobs are submitted on"
        ) from None
    if run.returncode:
        raise JobError(f"{' '.join(command)}: {(run.stderr or run.stdout).strip()}")
    return run.stdout


def outside_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of a job: a job that is submitted from inside another would take its sizes from them."""
    leaking = ("SLURM_", "SLURMD_", "SRUN_")
    return {k: v for k, v in environment.items() if not k.startswith(leaking) or k in ("SLURM_CONF", "SLURM_CLUSTERS")}


def queued(job: str) -> Queued | None:
    """None for a job that has ended, or that Slurm has forgotten."""
    try:
        lines = slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%L|%N").splitlines()
    except JobError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return Queued(*lines[0].strip().split("|")) if lines else None
