"""A job of a run: checked before it waits in a queue, copied with its code, and handed to Slurm."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from adatad.cluster.code_snapshot import remove_snapshot, snapshot_code, snapshot_names, version
from adatad.cluster.job import FOLDER, JOB, JobError, note_submitted, started_attempts, submitted_jobs
from adatad.cluster.slurm import queued, slurm
from adatad.data.dataset import check_videos
from adatad.files import FileError, reason, write_text
from adatad.spec import Spec
from adatad.spec.text import cut, forbidden_character
from adatad.training.choice import check_some_engine_fits
from adatad.training.resolve import annotations_for, check_batch, outputs_of
from adatad.training.run_directory import run_directory


@dataclass(frozen=True)
class Resources:
    """Resources that a job asks for. gpus: of each node, and ranks of it; extra: more of sbatch's options."""

    nodes: int = 1
    gpus: int = 2
    cpus_per_gpu: int = 8
    time: str = "24:00:00"
    warn_seconds: int = 180
    partition: str | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """Return sbatch's options. Raises JobError for one that is none."""
        named = {"partition": self.partition, "account": self.account}
        for option in self.extra:
            if not option.startswith("-"):
                raise JobError(f"--sbatch {cut(option)}: expected an option of sbatch, as --sbatch=--qos=long")
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
    """Look for all that would end the job in its first minute. Raises UserErrors that say what to do.

    gpu_memory_gib: of the GPUs that it will get; None: not known, not checked.
    """
    annotations = annotations_for(spec)
    check_videos(spec.data, annotations.train + annotations.validation)
    # One rank for each GPU.
    ranks = resources.nodes * resources.gpus
    check_batch(spec, ranks, annotations)
    if gpu_memory_gib is not None:
        check_some_engine_fits(spec, gpu_memory_gib, ranks, len(outputs_of(spec, annotations)))


def find_slurm() -> None:
    """Raise JobError where jobs can't be submitted, before anything is written for one."""
    if shutil.which("sbatch") is None:
        raise JobError(
            "sbatch isn't here: run this on a host of the cluster that jobs are submitted on; --dry-run shows the "
            "job's script anywhere, and without Slurm launch/torchrun.sh SPEC trains on this machine"
        )


def prepare(spec: Spec, resources: Resources, launcher: str) -> Path:
    """Write the job's script to the run directory, beside the code and the spec that it will use. Raises JobError, and
    then nothing is left."""
    folder, name = job_folder(spec), time.strftime("%Y%m%d-%H%M%S")
    path = folder / f"job-{name}.sh"
    try:
        # The script first: text that can't stand in it is refused before the code is copied.
        text = script(spec, resources, launcher, folder, *snapshot_names(folder, name))
        snapshot_code(folder, name, spec)
        write_text(path, text)
    except (OSError, FileError) as error:
        remove_snapshot(folder, name)
        why = reason(error) if isinstance(error, OSError) else error
        raise JobError(f"{cut(folder)}: can't be written: {why}; run.root names another place for runs") from error
    except BaseException:
        remove_snapshot(folder, name)
        raise
    return path


def preview(spec: Spec, resources: Resources, launcher: str) -> str:
    """Return the script that `prepare` would write, of a job whose copies of spec and code are called "<date>"."""
    folder = job_folder(spec)
    return script(spec, resources, launcher, folder, *snapshot_names(folder, "<date>"))


def job_folder(spec: Spec) -> Path:
    """Return the folder of a run that keeps its jobs."""
    return run_directory(spec).path.absolute() / FOLDER


def script(spec: Spec, resources: Resources, launcher: str, folder: Path, resolved: Path, code: Path) -> str:
    """Return a job's batch script. Raises JobError for text that can't stand in one."""
    # In a file's name %j is the job's number to Slurm, and %% a percent sign.
    output = str(folder).replace("%", "%%")
    directives = [f"--job-name={spec.name.replace('/', '-')}", *resources.options(), f"--output={output}/job-%j.log"]
    for line in (spec.name, *directives):
        # Quotes don't hold a line break back in a comment: what follows it would be run.
        if found := forbidden_character(line):
            raise JobError(f"{cut(line)!r} holds {found}, which can't stand in a job's script")
    home, venv = shlex.quote(str(Path.cwd())), shlex.quote(sys.prefix)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# {spec.name}, run {spec.run.id}, of code {version().split()[0]}; written by adatad submit",
            # sbatch takes quotes as a shell does.
            *(f"#SBATCH {shlex.quote(option)}" for option in directives),
            f"export ADATAD_HOME={home} ADATAD_CODE={shlex.quote(str(code))}",
            f"export VENV=${{VENV:-{venv}}}",
            f'exec bash "$ADATAD_CODE/slurm/train.sh" {shlex.quote(str(resolved))} --launcher {launcher}',
            "",
        ]
    )


def refuse_second_job(run: Path) -> None:
    """Raise JobError if a job of the run waits or runs, however it was submitted: two would take it from each other."""
    started = (facts["job"] for facts in started_attempts(run / FOLDER))
    for job in dict.fromkeys([*submitted_jobs(run / FOLDER), *started]):
        if there := queued(job):
            raise JobError(
                f"{run}: job {job} is {there.state} already: scancel {job} ends it, --id N makes another run beside it"
            )


def submit(script_path: Path) -> str:
    """Hand a prepared script to Slurm and return the job's number; what Slurm refuses is removed."""
    folder, name = script_path.parent, script_path.stem.removeprefix("job-")
    try:
        # Slurm says at once that a partition or so many nodes don't exist; a job that waits for them would say nothing.
        slurm("sbatch", "--test-only", str(script_path))
        answer = slurm("sbatch", "--parsable", str(script_path))
    except BaseException:
        script_path.unlink(missing_ok=True)
        remove_snapshot(folder, name)
        raise
    # A site's wrapper may print lines of its own.
    jobs = [name for line in answer.splitlines() if JOB.fullmatch(name := line.strip().partition(";")[0])]
    if not jobs:
        # What was prepared stays: the job needs it.
        raise JobError(f"sbatch took the job, but its answer holds no number: {cut(answer.strip())!r}; see squeue --me")
    job = jobs[-1]
    note_submitted(folder, job)
    return job
