"""A job of a run: checked before it waits in a queue, kept with its code, and handed to Slurm."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from adatad.cluster.freeze import forget, freeze, version
from adatad.cluster.job import FOLDER, JobError, note_submitted, started_lives, submitted_jobs
from adatad.cluster.slurm import queued, slurm
from adatad.data.dataset import check_videos
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.training.plan import check_fits
from adatad.training.run import annotations_for
from adatad.training.run_directory import run_directory
from adatad.training.setup import check_batch, number_of_classes


@dataclass(frozen=True)
class Resources:
    """What a job asks for. gpus: of each node, and ranks of it; extra: more of sbatch's options."""

    nodes: int = 1
    gpus: int = 2
    cpus_per_gpu: int = 8
    time: str = "24:00:00"
    warn_seconds: int = 180
    partition: str | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()

    def options(self) -> list[str]:
        named = {"partition": self.partition, "account": self.account}
        return [
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.gpus}",
            f"--gpus-per-node={self.gpus}",
            f"--cpus-per-task={self.cpus_per_gpu}",
            f"--time={self.time}",
            f"--signal=USR1@{self.warn_seconds}",
            "--requeue",
            "--open-mode=append",
            *(f"--{name}={value}" for name, value in named.items() if value),
            *self.extra,
        ]


def check(spec: Spec, resources: Resources, gpu_memory_gib: float | None = None) -> None:
    """Whatever would end the job in its first minute. Raises UserErrors that say what to do.

    gpu_memory_gib: of the GPUs that it will get; None: not known, not checked.
    """
    annotations = annotations_for(spec)
    check_videos(spec.data, annotations.train + annotations.validation)
    ranks = resources.nodes * resources.gpus
    check_batch(spec, Processes(0, ranks, torch.device("cpu")), annotations)
    if gpu_memory_gib is not None:
        check_fits(spec, gpu_memory_gib, ranks, number_of_classes(spec, annotations))


def prepare(spec: Spec, resources: Resources, launcher: str) -> Path:
    """Write the job's script to the run directory, beside the code and the spec that it will use."""
    folder = run_directory(spec).path.absolute() / FOLDER
    name = time.strftime("%Y%m%d-%H%M%S")
    path = folder / f"job-{name}.sh"
    try:
        resolved, code = freeze(folder, name, spec)
        path.write_text(script(spec, resources, launcher, folder, resolved, code), encoding="utf-8")
    except OSError as error:
        forget(folder, name)
        raise JobError(f"{folder}: can't be written: {error}; run.root names another place for runs") from error
    return path


def script(spec: Spec, resources: Resources, launcher: str, folder: Path, resolved: Path, code: Path) -> str:
    directives = [f"--job-name={spec.name.replace('/', '-')}", *resources.options(), f"--output={folder}/job-%j.log"]
    home, venv = shlex.quote(str(Path.cwd())), shlex.quote(sys.prefix)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# {spec.name}, run {spec.run.id}, of code {version().split()[0]}; written by tools/submit.py",
            # sbatch takes quotes as a shell does.
            *(f"#SBATCH {shlex.quote(option)}" for option in directives),
            f"export ADATAD_HOME={home} ADATAD_CODE={shlex.quote(str(code))} VENV=${{VENV:-{venv}}}",
            f'exec bash "$ADATAD_CODE/slurm/train.sh" {shlex.quote(str(resolved))} --launcher {launcher}',
            "",
        ]
    )


def refuse_second_job(run: Path) -> None:
    """Two jobs on one run would take it from each other, however they were submitted."""
    lives = (life["job"] for life in started_lives(run / FOLDER))
    for job in dict.fromkeys([*submitted_jobs(run / FOLDER), *lives]):
        if there := queued(job):
            raise JobError(
                f"{run}: job {job} is {there.state} already: scancel {job} ends it, --id N makes another run beside it"
            )


def submit(script_path: Path) -> str:
    """Hand a prepared script to Slurm, if Slurm finds it possible, else remove what was prepared; returns the job's
    number."""
    try:
        slurm("sbatch", "--test-only", str(script_path))
        job = slurm("sbatch", "--parsable", str(script_path)).strip().split(";")[0]
    except JobError:
        forget(script_path.parent, script_path.stem.removeprefix("job-"))
        script_path.unlink()
        raise
    note_submitted(script_path.parent, job)
    return job
