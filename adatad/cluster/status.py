"""Progress of a run and its jobs, from the files of the run and from Slurm's queue; and a table of many runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from adatad.cluster.job import FOLDER, JobError, started_attempts, submitted_jobs
from adatad.cluster.rank_logs import ERROR
from adatad.cluster.slurm import Queued, queued
from adatad.data.annotations import read_annotations
from adatad.data.balance import windows_of_epoch
from adatad.errors import UserError
from adatad.files import FileError, read_json, reason, shown
from adatad.report.run_files import is_number, read_end, read_metrics
from adatad.spec import load
from adatad.spec.quirks import Quirks
from adatad.spec.sizes import end_epoch, steps_per_epoch
from adatad.training.ownership import last_opening

# Enough to outweigh single slow steps, few enough to follow a change of the machine.
LATEST_STEPS = 50
"""Steps whose median time tells the time that is left."""
MAX_LISTED = 8
"""Attempts of a run, or runs of a folder in a message."""
MAX_TABLE_DEPTH = 4
"""Folders between the one that is asked about and a run directory, `<spec name>/id<N>`."""
MAX_LOG_BYTES = 4 << 20
"""Length of the end of a rank's log that is searched for its last error."""
MAX_LINE_CHARACTERS = 300
MAX_STEP_SECONDS = 1e6
# Any of them: a run that has just begun has only its spec, one that waits only its jobs.
PARTS_OF_A_RUN = ("spec.yaml", "metrics.jsonl", "checkpoints", FOLDER)


@dataclass
class RunProgress:
    """How far a run has come by its files. total: steps until its end; left_out: lines on files that can't be used."""

    step: int | None = None
    total: int | None = None
    loss: float = 0.0
    step_seconds: float | None = None
    memory_bytes: float | None = None
    average_mAP: tuple[float, int] | None = None  # noqa: N815, the field's name for it
    left_out: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """True once the last step has been trained."""
        return self.step is not None and self.total is not None and self.step >= self.total

    @property
    def left(self) -> timedelta | None:
        """Time of the steps that are left, evaluations not counted."""
        if self.step is None or self.total is None or self.step_seconds is None:
            return None
        return timedelta(seconds=round(self.step_seconds * max(self.total - self.step, 0)))


def report(path: Path) -> tuple[list[str], bool]:
    """Return lines on a run and its jobs, or a table of the runs below a folder, and whether one of the jobs waits or
    runs. Raises JobError where there is no run.

    Files that can't be read are named in a line, or left out and counted: a run may be writing them, or be broken.
    """
    if not path.is_dir():
        what = "is no directory" if path.exists() else "no such run directory"
        raise JobError(f"{path}: {what}; expected runs/<spec name>/id<N>, or a folder with such runs")
    if any((path / part).exists() for part in PARTS_OF_A_RUN):
        lines, going_on = _run_lines(path)
    else:
        runs = list(_runs_below(path, MAX_TABLE_DEPTH))
        if not runs:
            raise JobError(
                f"{path}: nothing has run here: it is no run directory (no {', '.join(PARTS_OF_A_RUN)}), and there is "
                "none below it; expected runs/<spec name>/id<N>"
            )
        lines, going_on = _table(path, runs)
    return [_cut(line) for line in lines], going_on


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        # Runs that are being deleted have a point in front.
        if path.name.startswith(".") or not path.is_dir():
            continue
        if path.name.startswith("id") and path.name[2:].isdecimal():
            yield path
        elif depth > 1 and not path.is_symlink():
            yield from _runs_below(path, depth - 1)


def _table(folder: Path, runs: list[Path]) -> tuple[list[str], bool]:
    rows, going_on, slurm_answers = [("run", "state", "step", "loss", "average mAP", "memory", "left")], False, True
    for run in runs:
        progress, state = progress_of(run), None
        if progress.done:
            state = "done"
        elif (opening := last_opening(run)) is not None and opening.alive():
            state = "training"
        elif slurm_answers and (jobs := _jobs(run)[0]):
            found = _look_up(jobs[-1])
            # Away from the cluster each question would fail in the same way.
            slurm_answers = not isinstance(found, str)
            if isinstance(found, Queued):
                state, going_on = found.state, True
        average = progress.average_mAP
        row = (
            str(run.relative_to(folder)),
            state or ("nothing has run" if progress.step is None else "stopped"),
            "" if progress.step is None else f"{progress.step}/{progress.total or '?'}",
            "" if progress.step is None else f"{progress.loss:.4f}",
            "" if average is None else f"{100 * average[0]:.2f} %",
            "" if progress.memory_bytes is None else f"{progress.memory_bytes / 2**30:.2f} GiB",
            "" if progress.done or progress.left is None else str(progress.left),
        )
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines, going_on


def _jobs(run: Path) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Return the numbers of a run's jobs, its attempts, oldest first, and lines on what can't be read."""
    folder = run / FOLDER
    attempts, notes = started_attempts(folder), []
    unreadable = sum(1 for _ in (folder / "attempts").glob("*.start")) - len(attempts)
    # A full disk leaves files without their facts.
    if unreadable:
        notes.append(f"left out    {folder / 'attempts'}: {unreadable} starts that can't be read")
    try:
        submitted = submitted_jobs(folder)
    except FileError as error:
        submitted = []
        notes.append(f"left out    {error}")
    return list(dict.fromkeys([*submitted, *(facts["job"] for facts in attempts)])), attempts, notes


def _run_lines(run: Path) -> tuple[list[str], bool]:
    names, attempts, notes = _jobs(run)
    jobs = {job: _look_up(job) for job in names}
    progress = progress_of(run)
    lines = [f"run         {run}"]
    # Jobs that Slurm has forgotten have no line of their own; their attempts have.
    for job, found in jobs.items():
        if isinstance(found, Queued):
            where = f", {found.left} left on {found.nodes}" if found.nodes else f": {found.reason}"
            lines.append(f"job {job:<8}{found.state}{where}")
        elif found:
            lines.append(f"job {job:<8}{found}")
    if progress.step is not None:
        total = f" of {progress.total}" if progress.total else ""
        lines.append(f"step        {progress.step}{total}, loss {progress.loss:.4f}")
        if progress.done:
            lines.append("left        nothing, training is done")
        elif progress.left is not None:
            seconds = f"{progress.step_seconds:.2f} s a step"
            lines.append(f"left        {progress.left} of training at {seconds}, evaluations not counted")
        if progress.memory_bytes is not None:
            lines.append(f"memory      {progress.memory_bytes / 2**30:.2f} GiB at the peak of the first rank")
    if progress.average_mAP is not None:
        average, step = progress.average_mAP
        lines.append(f"average mAP {100 * average:.2f} % after step {step}")
    lines += progress.left_out
    checkpoint = newest_checkpoint(run)
    if progress.step is None and checkpoint is None and not attempts:
        lines.append("            nothing has run here yet")
    else:
        lines.append(f"checkpoint  {checkpoint or 'none yet'}")
    # An attempt without an end goes on if its job does; after a lost node the job waits for the next one.
    waiting_or_running = {job: found.state for job, found in jobs.items() if isinstance(found, Queued)}
    running = {job for job, state in waiting_or_running.items() if state != "PENDING"}
    lines += [f"attempt     {text}" for text in _attempt_lines(run / FOLDER, attempts, running)]
    lines += notes
    lines += [f"{rank:<12}{error}" for rank, error in errors_by_rank(run / FOLDER / "logs")]
    return lines, bool(waiting_or_running)


def _cut(line: str) -> str:
    """Return a line as a terminal can show it: names and errors come from files that anybody may have written."""
    text = shown(line)
    return text if len(text) <= MAX_LINE_CHARACTERS else text[:MAX_LINE_CHARACTERS] + "..."


def _look_up(job: str) -> Queued | str | None:
    """Return what Slurm says of a job; a text where it can't be asked."""
    try:
        return queued(job)
    except JobError as error:
        return str(error)


def progress_of(run: Path) -> RunProgress:
    """Read how far a run has come from its metrics and its spec."""
    path, progress = run / "metrics.jsonl", RunProgress()
    try:
        metrics = read_metrics(path, ("loss", "step_seconds"))
    except FileError as error:
        progress.left_out.append(f"left out    {error}")
        return progress
    if metrics.train:
        last = metrics.train[-1]
        progress.step, progress.loss, progress.total = last["step"], last["loss"], _total_steps(run)
        # The median: steps beside a checkpoint or an evaluation take longer.
        latest = [record["step_seconds"] for record in metrics.train[-LATEST_STEPS:]]
        times = [seconds for seconds in latest if 0 <= seconds <= MAX_STEP_SECONDS]
        progress.step_seconds = statistics.median(times) if times else None
        peaks = [bytes_ for record in metrics.train if is_number(bytes_ := record.get("memory_bytes"))]
        progress.memory_bytes = max(peaks, default=None)
    if metrics.evaluations:
        progress.average_mAP = metrics.evaluations[-1]["average_mAP"], metrics.evaluations[-1]["step"]
    if line := metrics.note(path):
        progress.left_out.append(f"left out    {line}")
    return progress


def _total_steps(run: Path) -> int | None:
    """Return the steps until a run's end; None where its spec or annotations can't be read from here."""
    # On a login node the annotations may lie elsewhere: the rest of the line is worth showing without them.
    try:
        spec = load(run / "spec.yaml", check_files=False)
        videos = read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic).train
    except (UserError, OSError, RecursionError):
        return None
    return end_epoch(spec) * steps_per_epoch(spec, windows_of_epoch(spec.train.class_balance, videos))


def newest_checkpoint(run: Path) -> str | None:
    """Return name and age of the newest checkpoint whose files are all there in their sizes; their checksums are looked
    at when a run resumes."""
    # Names have leading zeros, so that they sort by step.
    for path in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        manifest = path / "manifest.json"
        try:
            files = read_json(manifest)
            if files and all((path / name).stat().st_size == facts["bytes"] for name, facts in files.items()):
                return f"{path.name}, {_age(manifest.stat().st_mtime)}"
        except (FileError, OSError, ValueError, AttributeError, KeyError, TypeError):
            continue
    return None


def _age(seconds_since_1970: float) -> str:
    """Return how long ago a time was, in words."""
    # Clocks of file servers and nodes differ: it may lie in the future.
    seconds = int(time.time() - seconds_since_1970)
    if seconds >= 0:
        return f"{timedelta(seconds=seconds)} ago"
    return f"{timedelta(seconds=-seconds)} in the future (by this machine's clock)"


def _attempt_lines(folder: Path, attempts: list[dict[str, Any]], running: set[str]) -> Iterator[str]:
    if len(attempts) > MAX_LISTED:
        yield f"({len(attempts) - MAX_LISTED} before these)"
    for facts in attempts[-MAX_LISTED:]:
        file = folder / "attempts" / f"{facts['name']}.end"
        try:
            how = read_end(file, MAX_LINE_CHARACTERS).strip()
        except FileNotFoundError:
            # It goes on, or nobody was there to write it.
            is_running = facts is attempts[-1] and facts["job"] in running
            how = "running" if is_running else "ended without a word: its node was lost, or it was killed"
        except OSError as error:
            how = f"{file} can't be read: {reason(error)}"
        try:
            date = time.strftime("%F %T", time.localtime(facts["seconds_since_1970"]))
        except (OverflowError, ValueError, OSError):
            date = "an unknown time"
        at = f"step {facts['step']}" if facts["step"] >= 0 else "the beginning"
        yield f"{facts['name']} from {date} on {facts['nodes']} at {at}: {how}"


def errors_by_rank(logs: Path) -> list[tuple[str, str]]:
    """Return name and last error of each rank's file, in its last attempt."""
    found = []
    for file in sorted(logs.glob("*.log")):
        try:
            text = read_end(file, MAX_LOG_BYTES)
        except OSError as error:
            found.append((file.stem, f"{file} can't be read: {reason(error)}"))
            continue
        # Errors of earlier attempts are over.
        lines = text.rpartition("\n== attempt ")[2].splitlines()
        # The last line of a traceback has the error's name; its first one says nothing.
        errors = [line for line in lines if ERROR.match(line) and not line.startswith("Traceback")]
        if errors:
            found.append((file.stem, errors[-1]))
    return found
