"""The start of a run: its id, the checkpoint that it goes on from, and what must agree with that.

Everything is checked before a directory is changed, so that a refused start leaves all as it was. `chosen_run` comes
first, then the state is built, then `open_for_training`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from rich.console import Console

from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import Spec, to_yaml
from adatad.spec.write import renamed_yaml
from adatad.training.checkpoint import (
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
from adatad.training.state_io import restore_checkpoint

AUTO = "auto"
MAX_LISTED = 20
"""Parameters that a message names when a checkpoint is of another model."""


class ResumeError(UserError):
    """A run that can't go on as asked; the message says what to do."""


def checkpoint_to_resume(run: RunDirectory, resume: str) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that `resume` names, None for a fresh start; and a line for each broken one that auto
    skipped.

    Raises ResumeError, also where auto finds broken ones alone: a fresh start would write over them.
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
    # A run's directory is often given in the place of one of its checkpoints: say which there are.
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (path / MANIFEST).exists() and all_checkpoints(folder):
        names = ", ".join(checkpoint.name for checkpoint in all_checkpoints(folder))
        raise ResumeError(f"--resume {resume}: is a run, not a checkpoint of it; name one in {folder} ({names})")
    # A directory holds one course of training, which auto continues from its newest checkpoint: one that is named must
    # be that, or come from another run to start one that has none.
    there, real = all_checkpoints(run.checkpoints), path.resolve()
    places = [checkpoint.resolve() for checkpoint in there]
    others = there[places.index(real) + 1 :] if real in places else there
    if others:
        names = ", ".join(other.name for other in others)
        raise ResumeError(
            f"--resume {resume}: {run.checkpoints} holds other checkpoints than those that led to it ({names}), which "
            f"a later --resume {AUTO} would take for its own: start another run from it with --id N, or remove them"
        )
    return path, []


def resume_after_restart(run: RunDirectory, resume: str | None) -> str:
    """Return what `--resume` means where torchrun starts its processes again after they had opened the run: the
    checkpoints that were written since, if any."""
    return AUTO if resume is None or all_checkpoints(run.checkpoints) else resume


def begins_afresh(spec: Spec, processes: Processes, resume: str | None) -> bool:
    """Return whether training begins at step 0, and from no checkpoint. All ranks call it."""
    here = run_directory(spec)
    if processes.noted(NOTED_OPEN):
        resume = processes.on_main(lambda: resume_after_restart(here, resume))
    # Broken checkpoints are no fresh start either: `checkpoint_to_resume` refuses them.
    return resume is None or (resume == AUTO and not processes.on_main(lambda: bool(all_checkpoints(here.checkpoints))))


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
    # Started again by torchrun, with the arguments of the first time: --force would delete the run's own work.
    if processes.noted(NOTED_OPEN):
        resume, overwrite = processes.on_main(lambda: resume_after_restart(here, resume)), False
    # By the model's own shapes, before an engine sharded them: checkpoints hold whole tensors.
    numbers = numbers_in(state.shapes[name] for name in state.trained)
    processes.on_main(lambda: check_room(here.path, numbers, resume is not None))
    # A checkpoint that can't be used must leave nothing behind: it is read before the directory is made.
    if resume is not None:
        path, skipped = processes.on_main(lambda: checkpoint_to_resume(here, resume))
    if path is not None:
        # An engine that has no shards of its own takes full tensors, whoever wrote them.
        own_parts = is_sharded(path) and state.engine.saves_shards
        checkpoint = read_checkpoint(path, full=not own_parts)
        # Names first: other classes mean other shapes, which would say less.
        check_agnostic(checkpoint.facts, state.spec, path)
        classes, lines = match_for_resume(checkpoint.facts, state.run.annotations.classes, path)
        # The head's rows stay where they are; the data set's labels get the numbers that the weights learned.
        state.run = state.run.in_order(classes)
        check_same_model(state.shapes, state.trained, state.frozen_fingerprint, checkpoint, path)
        progress = Progress(**checkpoint.state["progress"])
        lines += check_position(progress, state.run.steps_per_epoch, path, _most_steps(state, checkpoint))
        skipped = [*skipped, *lines]
    # Now, and not at the first evaluation: hours of training come before that.
    if not overwrite:
        processes.on_main(lambda: check_best(here.checkpoints))
    run = opened or processes.on_main(
        lambda: open_run(state.spec, resume is not None, overwrite, is_reserved, console.print)
    )
    # After the directory is made: a start that failed before must delete or refuse as the user asked.
    processes.note(NOTED_OPEN)
    logger = log_to(run.path / "log.txt", console) if processes.is_main else silent_logger()
    for line in skipped:
        logger.warning(line)
    if checkpoint is not None:
        for line in spec_changes(checkpoint.spec_yaml, to_yaml(state.run.saved_spec)):
            logger.warning("the spec has changed since %s: %s", path.name, line)
        # Last of all: everything that could refuse has been asked.
        progress = restore_checkpoint(state, checkpoint, path)
        logger.info("resumed from %s: epoch %d, step %d", path, progress.epoch, progress.step)
        return run, logger, progress
    if resume is not None:
        logger.info("no checkpoint in %s: starting afresh", run.checkpoints)
    return run, logger, Progress()


def _most_steps(state: TrainState, checkpoint: Checkpoint) -> int | None:
    """Return the steps of an epoch with batches of one video, which no epoch of the run can have exceeded; None if the
    checkpoint was trained by other data."""
    try:
        here, there = yaml.safe_load(to_yaml(state.run.saved_spec)), yaml.safe_load(renamed_yaml(checkpoint.spec_yaml))
    except (yaml.YAMLError, ValueError):
        return None
    # Videos that fill no batch any more aren't counted.
    most = (state.run.steps_per_epoch + 1) * state.spec.train.global_batch
    return most if there.get("data") == here["data"] else None


def spec_changes(before: str, now: str) -> list[str]:
    """Return the lines of a saved spec that aren't those of this run's, as "- old" and "+ new"."""
    # The section `run`, the last one, says only where the run lies.
    before = renamed_yaml(before)
    # As text, line by line: a saved spec has all keys in one order, so that a diff reads well.
    lines = difflib.ndiff(before.partition("\nrun:")[0].splitlines(), now.partition("\nrun:")[0].splitlines())
    return [line for line in lines if line[0] in "+-"]


def check_same_model(
    shapes: dict[str, torch.Size], trained: list[str], frozen_fingerprint: str, checkpoint: Checkpoint, path: Path
) -> None:
    """Raise CheckpointError for a checkpoint of other trained parameters or other frozen weights. shapes: of all of the
    model's parameters, by name."""
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


NOTED_OPEN, NOTED_ID = "run opened", "id of the run"
"""Notes in torchrun's store, which outlive its processes: for those that it starts again after a failure."""


@dataclass(frozen=True)
class ChosenRun:
    """The run that this process trains. spec: with the run's id; is_reserved: its directory was made for this process;
    notes: lines for the log."""

    spec: Spec
    is_reserved: bool = False
    notes: tuple[str, ...] = ()


@contextmanager
def chosen_run(spec: Spec, processes: Processes, resume: str | None, overwrite: bool) -> Iterator[ChosenRun]:
    """Yield which run this becomes: the one that the user named, or the next free id.

    A directory that was reserved for a free id is removed again if the run isn't opened while the context lasts. All
    ranks call it. Raises RunDirectoryError, FileError, on all ranks.
    """
    earlier = processes.noted_text(NOTED_ID)
    if earlier is not None:
        # Started again by torchrun: the id that the first start took is this one's too.
        yield ChosenRun(with_id(spec, int(earlier)), is_reserved=True)
        return
    if resume is not None or overwrite or names_its_id(spec):
        yield ChosenRun(spec, notes=processes.on_main(lambda: _which_of_several(spec, resume)))
        return
    with ExitStack() as stack:
        number = processes.on_main(lambda: stack.enter_context(reserved(spec)).run.id)
        processes.note(NOTED_ID, str(number))
        own, notes = with_id(spec, number), ()
        if number != spec.run.id:
            taken, here = run_directory(spec).path, run_directory(own).path
            notes = (f"{taken} holds a run (--resume auto continues it, --force deletes it): this one is {here}",)
        yield ChosenRun(own, True, notes)


def _which_of_several(spec: Spec, resume: str | None) -> tuple[str, ...]:
    """Return a line to log if `--resume auto` could mean several runs."""
    others = [number for number in ids_of(spec) if number != spec.run.id]
    if resume is None or names_its_id(spec) or not others:
        return ()
    names = ", ".join(f"id{number}" for number in others)
    return (f"--resume continues {run_directory(spec).path}; there are {names} too, which --id would name",)
