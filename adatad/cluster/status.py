"""Where a run and its jobs stand, from what lies in the run directory and from Slurm's queue."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from adatad.cluster.job import FOLDER, JobError, started_lives, submitted_jobs
from adatad.cluster.logs import ERROR
from adatad.cluster.slurm import Queued, queued
from adatad.data.annotations import read_annotations
from adatad.errors import UserError
from adatad.spec import load

LATEST_STEPS = 50
"""Steps whose median time tells the time that is left."""
SHOWN_LIVES = 8


def report(run: Path) -> tuple[list[str], bool]:
    """Lines to print, and whether a job of the run waits or runs. Raises JobError where there is no run."""
    if not run.is_dir():
        raise JobError(f"{run}: no such run directory; expected runs/<spec name>/id<N>")
    folder = run / FOLDER
    lives = started_lives(folder)
    names = dict.fromkeys([*submitted_jobs(folder), *(life["job"] for life in lives)])
    jobs = {job: _look_up(job) for job in names}
    lines = [f"run         {run}"]
    lines += [f"job {job:<8}{_job_line(found)}" for job, found in jobs.items() if found]
    lines += _training(run)
    lines.append(f"checkpoint  {_checkpoint(run)}")
    waiting_or_running = {job: found.state for job, found in jobs.items() if isinstance(found, Queued)}
    running = {job for job, state in waiting_or_running.items() if state != "PENDING"}
    lines += [f"life        {text}" for text in _lives(folder, lives, running)]
    lines += [f"{rank:<12}{error}" for rank, error in errors_by_rank(folder / "logs")]
    return lines, bool(waiting_or_running)


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
    records = _records(run / "metrics.jsonl")
    train = [record for record in records if record.get("kind") == "train"]
    if train:
        step, total = train[-1]["step"], _total_steps(run)
        yield f"step        {step}" + (f" of {total}" if total else "") + f", loss {train[-1]['cost']:.4f}"
        if total:
            seconds = statistics.median(record["step_seconds"] for record in train[-LATEST_STEPS:])
            left = timedelta(seconds=round(seconds * max(total - step, 0)))
            yield f"left        {left} of training at {seconds:.2f} s a step, evaluations not counted"
    for record in [record for record in records if record.get("kind") == "evaluation"][-1:]:
        yield f"average mAP {100 * record['average_mAP']:.2f} % after step {record['step']}"


def _records(path: Path) -> list[dict[str, Any]]:
    """Readable lines of a metrics file that somebody may be writing."""
    text = path.read_text() if path.is_file() else ""
    records = []
    for line in text.splitlines():
        # A life that was cut off in a line leaves half of it, and the next life goes on in the same line.
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def _total_steps(run: Path) -> int | None:
    """None where the spec or its annotations can't be read from here."""
    try:
        spec = load(run / "spec.yaml", check_files=False)
        videos = read_annotations(spec.data, spec.compat == "reference", spec.model.detector.class_agnostic).train
    except (UserError, OSError):
        return None
    return (spec.schedule.end_epoch or spec.schedule.epochs) * (len(videos) // spec.train.global_batch)


def _checkpoint(run: Path) -> str:
    """The newest whose files are all there in their sizes; their checksums are looked at when a run resumes."""
    for path in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            files = json.loads((path / "manifest.json").read_text())
            whole = all((path / name).stat().st_size == facts["bytes"] for name, facts in files.items())
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            continue
        if whole:
            age = timedelta(seconds=int(time.time() - (path / "manifest.json").stat().st_mtime))
            return f"{path.name}, {age} ago"
    return "none yet"


def _lives(folder: Path, lives: list[dict[str, Any]], running: set[str]) -> Iterator[str]:
    if len(lives) > SHOWN_LIVES:
        yield f"({len(lives) - SHOWN_LIVES} before these)"
    for life in lives[-SHOWN_LIVES:]:
        end = folder / "lives" / f"{life['name']}.end"
        if end.is_file():
            how = end.read_text().strip()
        elif life is lives[-1] and life["job"] in running:
            how = "running"
        else:
            how = "ended without a word: its node was lost, or it was killed"
        since = time.strftime("%F %T", time.localtime(life["seconds_since_1970"]))
        at = f"step {life['step']}" if life["step"] >= 0 else "the beginning"
        yield f"{life['name']} from {since} on {life['nodes']} at {at}: {how}"


def errors_by_rank(logs: Path) -> list[tuple[str, str]]:
    """The last error in each rank's file, of its last life."""
    found = []
    for file in sorted(logs.glob("*.log")):
        lines = file.read_text(errors="replace").rpartition("\n== life ")[2].splitlines()
        errors = [line for line in lines if ERROR.match(line) and not line.startswith("Traceback")]
        if errors:
            found.append((file.stem, errors[-1]))
    return found
