"""Which run it is, from which checkpoint it goes on, and what must agree with that; before a directory is changed."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from rich.console import Console

from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import Spec, to_yaml
from adatad.spec.write import renamed_yaml
from adatad.training.checkpoint import (
    SHARDS,
    Checkpoint,
    CheckpointError,
    all_checkpoints,
    check_best,
    is_sharded,
    newest_checkpoint,
    read_checkpoint,
)
from adatad.training.checkpoint_check import MANIFEST, Progress, check_position
from adatad.training.model_facts import check_agnostic, match_for_resume
from adatad.training.monitor import log_to, silent_logger
from adatad.training.run_directory import (
    RunDirectory,
    check_room,
    ids_of,
    names_its_id,
    numbers_in,
    open_run,
    reserved,
    run_directory,
    with_id,
)
from adatad.training.setup import TrainState
from adatad.training.tensors import load_shards, load_whole_tensors

AUTO = "auto"
MAX_LISTED = 20
"""Parameters that are named when a checkpoint is of another model."""


class ResumeError(UserError):
    """A run that can't go on as asked; the message says what to do."""


def checkpoint_to_resume(run: RunDirectory, resume: str) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that `resume` names, None for a fresh start; and a line for each broken one that auto
    skipped.

    A directory holds one course of training: the newest checkpoint is kept and resumed from, so one that is named must
    be the newest, or start a run that has none. Raises ResumeError, also where
    auto finds broken ones alone: a fresh start would write over them.
    """
    if resume == AUTO:
        newest, skipped = newest_checkpoint(run.checkpoints)
        if newest is None and skipped:
            broken = "; ".join(line.removeprefix("skipped ") for line in skipped)
            raise ResumeError(
                f"--resume {AUTO}: no checkpoint of {run.path} is whole: {broken}. --force starts afresh in its "
                "place, --id N beside it"
            )
        return newest, skipped
    if not resume.strip():
        raise ResumeError(f"--resume {resume!r}: expected {AUTO} or a checkpoint's path")
    path = Path(resume)
    if not path.is_dir():
        raise ResumeError(f"--resume {resume}: no such checkpoint directory; expected {AUTO} or a checkpoint's path")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (path / MANIFEST).exists() and all_checkpoints(folder):
        names = ", ".join(checkpoint.name for checkpoint in all_checkpoints(folder))
        raise ResumeError(f"--resume {resume}: is a run, not a checkpoint of it; name one in {folder} ({names})")
    others = _others(run.checkpoints, path)
    if others:
        names = ", ".join(other.name for other in others)
        raise ResumeError(
            f"--resume {resume}: {run.checkpoints} holds other checkpoints than those that led to it ({names}), which "
            f"a later --resume {AUTO} would take for its own: start another run from it with --id N, or remove them"
        )
    return path, []


def go_on(run: RunDirectory, resume: str | None) -> str:
    """Return what `--resume` means to an attempt that torchrun started after an earlier one of the same job had opened
    the run: that one's checkpoints, if it came so far."""
    return AUTO if resume is None or all_checkpoints(run.checkpoints) else resume


def _others(folder: Path, path: Path) -> list[Path]:
    """Checkpoints of a run that aren't before, or at, the one at `path`."""
    there, real = all_checkpoints(folder), path.resolve()
    places = [checkpoint.resolve() for checkpoint in there]
    return there[places.index(real) + 1 :] if real in places else there


def open_for_training(
    state: TrainState,
    resume: str | None,
    overwrite: bool,
    is_reserved: bool,
    console: Console,
    opened: RunDirectory | None = None,
) -> tuple[RunDirectory, logging.Logger, Progress]:
    """Open the run's directory, and put its checkpoint into the state if it is resumed; return the directory, the
    run's logger, and where the run stands.

    opened: the directory that an earlier try with another memory plan has made. All ranks call it. Raises
    CheckpointError, ResumeError, FileError or RunDirectoryError.
    """
    processes, here = state.processes, state.run.directory
    path, skipped, checkpoint = None, [], None
    if processes.noted(OPENED):
        resume, overwrite = on_main(processes, lambda: go_on(here, resume)), False
    numbers = numbers_in(state.shapes[name] for name in state.trained)
    on_main(processes, lambda: check_room(here.path, numbers, resume is not None))
    # A checkpoint that can't be used must leave nothing behind: it is read before the directory is made.
    if resume is not None:
        path, skipped = on_main(processes, lambda: checkpoint_to_resume(here, resume))
    if path is not None:
        own_parts = is_sharded(path) and state.engine.saves_shards
        checkpoint = read_checkpoint(path, whole=not own_parts)
        # Names first: other classes mean other shapes, which would say less.
        check_agnostic(checkpoint.facts, state.spec, path)
        classes, lines = match_for_resume(checkpoint.facts, state.run.annotations.classes, path)
        state.run = state.run.in_order(classes)
        check_same_model(state.shapes, state.trained, state.frozen_fingerprint, checkpoint, path)
        progress = Progress(**checkpoint.state["progress"])
        lines += check_position(progress, state.run.steps_per_epoch, path, _most_steps(state, checkpoint))
        skipped = [*skipped, *lines]
    if not overwrite:
        on_main(processes, lambda: check_best(here.checkpoints))
    run = opened or on_main(
        processes, lambda: open_run(state.spec, resume is not None, overwrite, is_reserved, console.print)
    )
    processes.note(OPENED)
    logger = log_to(run.path / "log.txt", console) if processes.is_main else silent_logger()
    for line in skipped:
        logger.warning(line)
    if checkpoint is not None:
        return run, logger, _restore(state, checkpoint, path, logger)
    if resume is not None:
        logger.info("no checkpoint in %s: starting afresh", run.checkpoints)
    return run, logger, Progress()


def _most_steps(state: TrainState, checkpoint: Checkpoint) -> int | None:
    """Return the steps of an epoch with batches of one video; None if the checkpoint was trained by other data."""
    try:
        here, there = yaml.safe_load(to_yaml(state.run.saved_spec)), yaml.safe_load(renamed_yaml(checkpoint.spec_yaml))
    except (yaml.YAMLError, ValueError):
        return None
    # Videos that fill no batch any more aren't counted.
    most = (state.run.steps_per_epoch + 1) * state.spec.train.global_batch
    return most if there.get("data") == here["data"] else None


def _restore(state: TrainState, checkpoint: Checkpoint, path: Path, logger: logging.Logger) -> Progress:
    """Put a checkpoint's tensors and states into the state; return where the run stands."""
    for line in spec_changes(checkpoint.spec_yaml, to_yaml(state.run.saved_spec)):
        logger.warning("the spec has changed since %s: %s", path.name, line)
    if next(iter(checkpoint.parameters.values())).is_meta:
        load_shards(state, path / SHARDS, checkpoint.state["optimizer_step"])
    else:
        load_whole_tensors(state, checkpoint.parameters, checkpoint.ema, checkpoint.optimizer)
    state.engine.load_scaler(checkpoint.state["scaler"])
    state.normalizer.value = checkpoint.state["normalizer"]
    progress = Progress(**checkpoint.state["progress"])
    logger.info("resumed from %s: epoch %d, step %d", path, progress.epoch, progress.step)
    return progress


def spec_changes(before: str, now: str) -> list[str]:
    """Return the lines of a saved spec that aren't those of this run's, as "- old" and "+ new"; where a run lies
    doesn't count."""
    before = renamed_yaml(before)
    lines = difflib.ndiff(before.partition("\nrun:")[0].splitlines(), now.partition("\nrun:")[0].splitlines())
    return [line for line in lines if line[0] in "+-"]


def check_same_model(
    shapes: dict[str, torch.Size], trained: list[str], frozen_fingerprint: str, checkpoint: Checkpoint, path: Path
) -> None:
    """Raise CheckpointError for a checkpoint of other trained parameters or other frozen weights. shapes: of the
    model's parameters."""
    here = {name: tuple(shapes[name]) for name in trained}
    there = {name: tuple(tensor.shape) for name, tensor in checkpoint.parameters.items()}
    lines = [f"{name}: only in the checkpoint" for name in sorted(there.keys() - here.keys())]
    lines += [f"{name}: only in this spec's model" for name in sorted(here.keys() - there.keys())]
    same = sorted(here.keys() & there.keys())
    lines += [f"{n}: {there[n]} in the checkpoint, {here[n]} here" for n in same if there[n] != here[n]]
    if lines:
        more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        listed = "".join(f"\n  {line}" for line in lines[:MAX_LISTED] + more)
        raise CheckpointError(f"{path}: trains other parameters than this spec ({len(lines)} differ):{listed}")
    if checkpoint.state["frozen_fingerprint"] != frozen_fingerprint:
        raise CheckpointError(f"{path}: was trained on other frozen weights than model.backbone.weights gives")


T = TypeVar("T")
OPENED = "run opened"
"""Noted for later attempts of a job that torchrun restarts."""
SETTLED = "id of the run"


@dataclass(frozen=True)
class Settled:
    """spec: with the run's id. is_reserved: its directory was made for this process. notes: what is to be said."""

    spec: Spec
    is_reserved: bool = False
    notes: tuple[str, ...] = ()


@contextmanager
def settled(spec: Spec, processes: Processes, resume: str | None, overwrite: bool) -> Iterator[Settled]:
    """Which run it becomes. A fresh one that the user gave no id takes the next free id, of which nothing is left if
    the run isn't opened while the context lasts. Raises RunDirectoryError, FileError, on all ranks."""
    earlier = processes.noted_text(SETTLED)
    if earlier is not None:
        # What an earlier attempt of this job has taken is this one's too.
        yield Settled(with_id(spec, int(earlier)), is_reserved=True)
        return
    if resume is not None or overwrite or names_its_id(spec):
        yield Settled(spec, notes=on_main(processes, lambda: _which_of_several(spec, resume)))
        return
    with ExitStack() as stack:
        number = on_main(processes, lambda: stack.enter_context(reserved(spec)).run.id)
        processes.note(SETTLED, str(number))
        own, notes = with_id(spec, number), ()
        if number != spec.run.id:
            taken, here = run_directory(spec).path, run_directory(own).path
            notes = (f"{taken} holds a run (--resume auto continues it, --force deletes it): this one is {here}",)
        yield Settled(own, True, notes)


def _which_of_several(spec: Spec, resume: str | None) -> tuple[str, ...]:
    """Return a line if `--resume auto` could mean several runs."""
    others = [number for number in ids_of(spec) if number != spec.run.id]
    if resume is None or names_its_id(spec) or not others:
        return ()
    names = ", ".join(f"id{number}" for number in others)
    return (f"--resume continues {run_directory(spec).path}; there are {names} too, which --id would name",)


def on_main(processes: Processes, action: Callable[[], T]) -> T:
    """Return what the first rank's action returns, on every rank; what stops it stops every rank."""
    result, error = None, None
    if processes.is_main:
        try:
            result = action()
        except Exception as caught:
            error = caught
    # Every rank must see the same, also while files change.
    result, error = processes.gather((result, error))[0]
    if error is not None:
        raise error
    return result
