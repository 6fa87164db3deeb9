"""Fixtures of jobs on a real Slurm."""

from jobs import *  # noqa: F403
