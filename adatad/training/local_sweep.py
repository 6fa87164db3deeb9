"""A sweep on one machine: a spec is trained once for each line of a list of settings, several runs at a time.

Which run a line became is kept in runs/<spec name>/sweep-<list>/runs.json, so that the same command, typed again, goes
on with what is unfinished.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adatad.cluster.sweep import sweep_lines
from adatad.errors import UserError
from adatad.files import FileError, read_json, write_json
from adatad.parallel.visible_gpus import device_nodes, hides_all
from adatad.report.run_files import is_there, read_result
from adatad.spec import Spec, SpecError, load
from adatad.spec.sizes import end_epoch
from adatad.training.run_directory import ids_of, run_directory, with_id

# Short beside any run, and long enough to cost nothing.
POLL_SECONDS = 0.2
Popen = Callable[..., subprocess.Popen]


class SweepError(UserError):
    """A list that can't be run; the message names its line."""


@dataclass(frozen=True)
class SweepRun:
    """One line of a list. spec: with the line's settings and the run's id; log: of the process that trains it."""

    line: str
    overrides: tuple[str, ...]
    spec: Spec
    log: Path

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return run_directory(self.spec).path

    @property
    def is_finished(self) -> bool:
        """True once the run has been trained to the end of its schedule, or has stopped early."""
        try:
            result = read_result(self.folder / "result.json") if is_there(self.folder / "result.json") else None
        except FileError:
            return False
        if result is None:
            return False
        # Whether it stopped by the setting of before or by today's can't be told: another one needs another run.
        return result["stopped_early"] or (result["epochs"] or 0) >= end_epoch(self.spec)

    @property
    def best(self) -> float | None:
        """The best average mAP so far, from 0 to 1."""
        try:
            result = read_result(self.folder / "result.json") if is_there(self.folder / "result.json") else {}
        except FileError:
            return None
        return result.get("best_average_mAP", result.get("average_mAP"))


def plan_sweep(list_file: Path, spec_file: str, overrides: Sequence[str], overlays: Sequence[str]) -> list[SweepRun]:
    """Read a list and settle which run each of its lines is: the one of an earlier start, or the next free id.

    Raises SweepError for a line that the spec doesn't take, before anything is trained.
    """
    lines, specs, words_of = sweep_lines(list_file), [], []
    if not lines:
        raise SweepError(f"{list_file}: holds no line of settings, such as optimizer.lr=1e-4 train.seed=1")
    if len(set(lines)) < len(lines):
        # The file of known runs has an id for each line's text, so equal lines would be one run.
        twice = next(line for line in lines if lines.count(line) > 1)
        raise SweepError(f"{list_file}: {twice!r} stands there twice")
    for line in lines:
        try:
            words_of.append(tuple(shlex.split(line)))
            specs.append(load(spec_file, [*overrides, *words_of[-1]], overlays=overlays))
        except ValueError as error:
            raise SweepError(f"{list_file}: {line!r}: {error}") from error
        except SpecError as error:
            raise SweepError(f"{list_file}: {line!r}: {error}") from error
        if specs[-1].name != specs[0].name or specs[-1].run.root != specs[0].run.root:
            raise SweepError(f"{list_file}: {line!r}: name and run.root are the same for all runs of a sweep")
    folder = run_directory(specs[0]).path.parent / f"sweep-{list_file.stem}"
    known_file = folder / "runs.json"
    known = read_json(known_file) if known_file.is_file() else {}
    if not isinstance(known, dict) or not all(isinstance(number, int) for number in known.values()):
        raise SweepError(f"{known_file}: expected an object of run numbers by line; remove it to train all lines anew")
    # Ids of lines that haven't begun are taken too, although no directory shows it.
    free = max([-1, *ids_of(specs[0]), *known.values()]) + 1
    for line in lines:
        if line not in known:
            known[line], free = free, free + 1
    # Written before any run begins: a sweep that is killed at once finds the same ids again.
    folder.mkdir(parents=True, exist_ok=True)
    write_json(known_file, known)
    return [
        SweepRun(line, words, with_id(spec, known[line]), folder / f"id{known[line]}.log")
        for line, words, spec in zip(lines, words_of, specs, strict=True)
    ]


def run_sweep(
    runs: Sequence[SweepRun],
    arguments: Sequence[str],
    jobs: int,
    show: Callable[[int, int, str], None] = lambda done, total, note: None,
    start: Popen = subprocess.Popen,
) -> list[SweepRun]:
    """Train the unfinished runs, `jobs` at a time, each on a GPU of its own where there are several. Returns those that
    failed.

    arguments: SPEC and options of `adatad train` for all runs. show: called with the runs that have ended, all, and a
    note. A KeyboardInterrupt stops all, which save, and passes.
    """
    # `--resume auto` starts afresh what hasn't begun, so that one command line serves all unfinished runs.
    waiting = [run for run in runs if not run.is_finished]
    gpus, done, failed = visible_gpus(), len(runs) - len(waiting), []
    free_slots, active = list(range(jobs)), {}
    show(done, len(runs), "")
    try:
        while waiting or active:
            while waiting and free_slots:
                run, slot = waiting.pop(0), free_slots.pop(0)
                # A slot keeps its GPU, so that runs stay spread evenly however long each takes.
                environment = dict(os.environ)
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
                words = ["train", *arguments, "--set", *run.overrides, "--id", str(run.spec.run.id), "--resume", "auto"]
                with open(run.log, "ab") as log:
                    # In a session of its own: Ctrl-C comes to this process, which then stops each run once.
                    process = start(
                        [sys.executable, "-m", "adatad", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        env=environment, start_new_session=True,
                    )  # fmt: skip
                active[slot] = run, process
            # Polled, as waiting for one process would miss the end of another.
            time.sleep(POLL_SECONDS)
            for slot, (run, process) in list(active.items()):
                if process.poll() is not None:
                    del active[slot]
                    free_slots.append(slot)
                    done += 1
                    failed += [run] if process.returncode else []
                    how = f"failed, see {run.log}" if process.returncode else "done"
                    show(done, len(runs), f"id{run.spec.run.id} {how}")
    finally:
        # Each finishes its step and saves. All are told before the first is waited for.
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.wait()
    return failed


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that runs may use, as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # Counted by their device files: this process needs no CUDA of its own.
        return [str(number) for number in range(len(device_nodes()))]
    return [] if hides_all(visible) else [name.strip() for name in visible.split(",") if name.strip()]


def settings_of(run: SweepRun, keys: Sequence[str]) -> list[str]:
    """Return the values of keys such as optimizer.lr in the spec that a run keeps; where it hasn't begun, in the spec
    that it will have."""
    kept = run.folder / "spec.yaml"
    try:
        values = (load(kept, check_files=False) if kept.is_file() else run.spec).model_dump()
    except SpecError:
        return ["?"] * len(keys)
    return [_value(values, key) for key in keys]


def _value(values: object, key: str) -> str:
    for part in key.split("."):
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, (list, tuple)) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return ""
    return f"{values:g}" if isinstance(values, float) else str(values)
