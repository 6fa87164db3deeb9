"""Where a run and its jobs stand, from what lies in the run directory and from Slurm's queue."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from adatad.cluster.job import FOLDER, JOB, JobError, started_lives, submitted_jobs
from adatad.cluster.logs import ERROR
from adatad.cluster.slurm import Queued, queued
from adatad.data.annotations import read_annotations
from adatad.errors import UserError
from adatad.files import FileError, read_json, reason, shown
from adatad.report.run_files import read_end, read_metrics
from adatad.spec import load
from adatad.spec.resolve import Quirks, end_epoch, steps_per_epoch

LATEST_STEPS = 50
"""Steps whose median time tells the time that is left."""
SHOWN_LIVES = 8
MAX_LOG_BYTES = 4 << 20
"""Of the end of a rank's log that is searched for its last error."""
MAX_LINE_CHARACTERS = 300
MAX_STEP_SECONDS = 1e6
PARTS_OF_A_RUN = ("spec.yaml", "metrics.jsonl", "checkpoints", FOLDER)


def report(run: Path) -> tuple[list[str], bool]:
    """Lines to print, and whether a job of the run waits or runs. Raises JobError where there is no run.

    Files that can't be read are named in a line, or left out and counted: a run may be writing them, or be broken.
    """
    _check_is_run(run)
    folder = run / FOLDER
    lives, notes = started_lives(folder), []
    unreadable = sum(1 for _ in (folder / "lives").glob("*.start")) - len(lives)
    if unreadable:
        notes.append(f"left out    {folder / 'lives'}: {unreadable} starts that can't be read")
    try:
        submitted = submitted_jobs(folder)
    except FileError as error:
        submitted = []
        notes.append(f"left out    {error}")
    names = dict.fromkeys(job for job in (*submitted, *(life["job"] for life in lives)) if JOB.fullmatch(job))
    jobs = {job: _look_up(job) for job in names}
    lines = [f"run         {run}"]
    lines += [f"job {job:<8}{_job_line(found)}" for job, found in jobs.items() if found]
    lines += _training(run)
    lines.append(f"checkpoint  {_checkpoint(run)}")
    waiting_or_running = {job: found.state for job, found in jobs.items() if isinstance(found, Queued)}
    running = {job for job, state in waiting_or_running.items() if state != "PENDING"}
    lines += [f"life        {text}" for text in _lives(folder, lives, running)]
    lines += notes
    lines += [f"{rank:<12}{error}" for rank, error in errors_by_rank(folder / "logs")]
    return [_cut(line) for line in lines], bool(waiting_or_running)


def _check_is_run(run: Path) -> None:
    if not run.is_dir():
        what = "is no directory" if run.exists() else "no such run directory"
        raise JobError(f"{run}: {what}; expected runs/<spec name>/id<N>")
    if not any((run / part).exists() for part in PARTS_OF_A_RUN):
        below = sorted(path.name for path in run.glob("id*") if path.is_dir())
        hint = f"; in it are {', '.join(below[:SHOWN_LIVES])}" if below else ""
        raise JobError(f"{run}: is no run directory: it has no {', '.join(PARTS_OF_A_RUN)}; expected one{hint}")


def _cut(line: str) -> str:
    """A line as a terminal can show it: names and errors come from files that anybody may have written."""
    text = shown(line)
    return text if len(text) <= MAX_LINE_CHARACTERS else text[:MAX_LINE_CHARACTERS] + "..."


def _look_up(job: str) -> Queued | str | None:
    """What Slurm says of a job; a text where it can't be asked."""
    try:
        return queued(job)
    except JobError as error:
        return str(error)


def _job_line(found: Queued | str) -> str:
    if isinstance(found, str):
        return found
    return f"{found.state}, {found.left} left on {found.nodes}" if found.nodes else f"{found.state}: {found.reason}"


def _training(run: Path) -> Iterator[str]:
    path = run / "metrics.jsonl"
    try:
        metrics = read_metrics(path, ("cost", "step_seconds"))
    except FileError as error:
        yield f"left out    {error}"
        return
    if metrics.train:
        step, total = metrics.train[-1]["step"], _total_steps(run)
        yield f"step        {step}" + (f" of {total}" if total else "") + f", loss {metrics.train[-1]['cost']:.4f}"
        latest = [record["step_seconds"] for record in metrics.train[-LATEST_STEPS:]]
        times = [seconds for seconds in latest if 0 <= seconds <= MAX_STEP_SECONDS]
        if total and times:
            seconds = statistics.median(times)
            left = timedelta(seconds=round(seconds * max(total - step, 0)))
            yield f"left        {left} of training at {seconds:.2f} s a step, evaluations not counted"
    for record in metrics.evaluations[-1:]:
        yield f"average mAP {100 * record['average_mAP']:.2f} % after step {record['step']}"
    if line := metrics.note(path):
        yield f"left out    {line}"


def _total_steps(run: Path) -> int | None:
    """None where the spec or its annotations can't be read from here."""
    try:
        spec = load(run / "spec.yaml", check_files=False)
        videos = read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic).train
    except (UserError, OSError, RecursionError):
        return None
    return end_epoch(spec) * steps_per_epoch(spec, len(videos))


def _checkpoint(run: Path) -> str:
    """The newest whose files are all there in their sizes; their checksums are looked at when a run resumes."""
    for path in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        manifest = path / "manifest.json"
        try:
            files = read_json(manifest)
            whole = bool(files) and all((path / name).stat().st_size == facts["bytes"] for name, facts in files.items())
            if whole:
                return f"{path.name}, {_age(manifest.stat().st_mtime)}"
        except (FileError, OSError, ValueError, AttributeError, KeyError, TypeError):
            continue
    return "none yet"


def _age(seconds_since_1970: float) -> str:
    """How long ago a time was. Clocks of file servers and nodes differ."""
    seconds = int(time.time() - seconds_since_1970)
    if seconds >= 0:
        return f"{timedelta(seconds=seconds)} ago"
    return f"{timedelta(seconds=-seconds)} in the future (by this machine's clock)"


def _lives(folder: Path, lives: list[dict[str, Any]], running: set[str]) -> Iterator[str]:
    if len(lives) > SHOWN_LIVES:
        yield f"({len(lives) - SHOWN_LIVES} before these)"
    for life in lives[-SHOWN_LIVES:]:
        how = _end(folder / "lives" / f"{life['name']}.end")
        if how is None and life is lives[-1] and life["job"] in running:
            how = "running"
        how = how or "ended without a word: its node was lost, or it was killed"
        at = f"step {life['step']}" if life["step"] >= 0 else "the beginning"
        yield f"{life['name']} from {_date(life['seconds_since_1970'])} on {life['nodes']} at {at}: {how}"


def _end(path: Path) -> str | None:
    """How a life ended; None while it goes on, or if nobody was there to write it."""
    try:
        return read_end(path, MAX_LINE_CHARACTERS).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} can't be read: {reason(error)}"


def _date(seconds_since_1970: float) -> str:
    try:
        return time.strftime("%F %T", time.localtime(seconds_since_1970))
    except (OverflowError, ValueError, OSError):
        return "an unknown time"


def errors_by_rank(logs: Path) -> list[tuple[str, str]]:
    """The last error in each rank's file, of its last life."""
    found = []
    for file in sorted(logs.glob("*.log")):
        try:
            text = read_end(file, MAX_LOG_BYTES)
        except OSError as error:
            found.append((file.stem, f"{file} can't be read: {reason(error)}"))
            continue
        lines = text.rpartition("\n== life ")[2].splitlines()
        errors = [line for line in lines if ERROR.match(line) and not line.startswith("Traceback")]
        if errors:
            found.append((file.stem, errors[-1]))
    return found
