"""A whole run: set up, take over a checkpoint, train, and draw the report."""

from __future__ import annotations

import difflib
import gc
import logging
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from torch import nn

from adatad.convert.checkpoint import load_opentad
from adatad.data.annotations import Annotations, read_annotations
from adatad.data.dataset import check_times, check_videos
from adatad.data.skipped import SkippedVideos
from adatad.data.staging import stage
from adatad.data.time_check import TimeLog
from adatad.errors import UserError
from adatad.files import check_output, reason
from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.policy import apply_policy
from adatad.models.trained import freeze
from adatad.parallel.processes import Processes, start_processes
from adatad.printing import lasting_output
from adatad.report.page import try_write_report
from adatad.report.timelines import to_image, validation_timelines
from adatad.spec import Spec, to_yaml
from adatad.training import shards
from adatad.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_best,
    fingerprint,
    is_sharded,
    read_checkpoint,
)
from adatad.training.class_names import check_agnostic, match_for_resume, match_for_test
from adatad.training.determinism import run_arithmetic
from adatad.training.export import load_exported
from adatad.training.life import DONE, LIFE, leave_mark
from adatad.training.log import Dispensable, log_to
from adatad.training.loop import Progress, Training
from adatad.training.metrics import Metrics
from adatad.training.out_of_memory import OutOfMemoryError, explain, is_out_of_memory, snapshot_when_full
from adatad.training.plan import Choice, choose
from adatad.training.resume import ResumeError, checkpoint_to_resume, go_on
from adatad.training.room import check_room, numbers_in
from adatad.training.run_directory import RunDirectory, open_run, run_directory
from adatad.training.saved_state import check_position
from adatad.training.settle import OPENED, on_main, settled
from adatad.training.setup import (
    Parts,
    build_initial_model,
    build_parts,
    check_batch,
    check_mesh,
    check_shared_memory,
    number_of_classes,
    shapes_of,
    share_windows,
    validation_loader,
)
from adatad.training.signals import DRAWING, Stopped, StopRequest, say
from adatad.training.tensors import load_shards, load_whole_tensors
from adatad.training.trained_file import read_trained_file
from adatad.training.validation import (
    Detections,
    check_classifier,
    classes_of,
    detect,
    scores,
    warnings_of,
    write_detections,
)

BOARD_TIMELINES = 4
"""Validation videos whose timelines TensorBoard shows after each evaluation."""
SHOWN_DIFFERENCES = 20
"""Parameters that are named when a checkpoint is of another model."""


def train(
    spec: Spec, resume: str | None = None, overwrite: bool = False, stop: StopRequest | None = None
) -> dict[str, Any]:
    """As `train_run`; the content of result.json alone."""
    return train_run(spec, resume, overwrite, stop)[0]


def train_run(
    spec: Spec, resume: str | None = None, overwrite: bool = False, stop: StopRequest | None = None
) -> tuple[dict[str, Any], Path]:
    """Train a spec on the processes there are; returns the content of result.json, and the run's directory, which
    holds report.html then.

    Where neither --id nor run.id says which run this is, the next free one is taken. resume: "auto" for the newest
    whole checkpoint of the run (or a fresh start), a checkpoint's path, or None. An attempt that torchrun started after
    one that had opened the run goes on from that one's checkpoints. stop: one that is installed already; signals before
    it was would be lost.
    """
    if resume is not None and overwrite:
        raise ResumeError("--overwrite would delete what --resume goes on from: give one of the two")
    own = StopRequest().install() if stop is None else None
    asked = stop or own
    try:
        with lasting_output(), start_processes(spec.train.hang_seconds) as processes:
            leave_if_asked(processes, asked)
            with run_arithmetic(spec.train, processes.device), settled(spec, processes, resume, overwrite) as which:
                attempt = Attempt(processes, resume, overwrite, which.is_reserved, asked, which.notes)
                return _train(which.spec, attempt), run_directory(which.spec).path
    except Exception:
        # Libraries that are imported meanwhile make other errors of it.
        if asked.leaves_at_once and asked.signal_name is not None:
            raise Stopped(asked.nothing_saved()[1]) from None
        raise
    finally:
        if own is not None:
            own.restore()


def _train(spec: Spec, attempt: Attempt) -> dict[str, Any]:
    """Everything after it is settled which run this is."""
    processes, console = attempt.processes, attempt.console
    annotations = attempt.annotations = annotations_for(spec)
    videos = annotations.train + annotations.validation
    check_videos(spec.data, videos)
    attempt.notes = (*attempt.notes, *check_classifier(spec, annotations))
    check_batch(spec, processes, annotations)
    check_shared_memory(spec, processes)
    # Annotations that can't be scored must not come to light after the first epochs.
    scores({}, spec)
    stage(spec.data, (video.name for video in videos), console.print)
    lines = on_main(processes, lambda: check_times(spec.data, annotations.train, annotations.validation))
    attempt.notes = (*attempt.notes, *lines)
    leave_if_asked(processes, attempt.stop)
    chosen = choose(spec, processes, number_of_classes(spec, annotations))
    try:
        result = attempt.train(chosen)
    except TooMuch as error:
        # Outside of the block that caught it, so that nothing of the first attempt is alive.
        chosen, attempt.notes = error.smaller, (f"{error}; taking the next smaller plan, once",)
        result = None
    if result is None:
        free_memory(processes)
        result = attempt.train(chosen)
    attempt.stop.meanwhile = DRAWING
    if processes.is_main:
        _draw_report(run_directory(chosen.spec).path, chosen.spec)
        leave_mark(DONE, f"step {attempt.steps}")
    processes.barrier()
    return result


def leave_if_asked(processes: Processes, stop: StopRequest) -> None:
    """Before training begins, all ranks together. A batch job goes on to its first step, which it saves: one that ends
    here several times would count as idle."""
    if LIFE in os.environ or not processes.any(stop.signal_name is not None):
        return
    line, code = stop.nothing_saved()
    if processes.is_main:
        say(line)
    processes.barrier()
    raise Stopped(code)


def _draw_report(path: Path, spec: Spec) -> None:
    """Training is done: whatever a page can't be drawn of, or written for, takes nothing of it away."""
    line = try_write_report(path, spec)
    if line:
        logging.getLogger("adatad").warning("training is done and saved; %s", line)


class TooMuch(Exception):  # noqa: N818, training catches it
    """Memory ran out before the first step under a plan of `memory.policy: auto`, and there is a smaller one."""

    def __init__(self, message: str, smaller: Choice):
        super().__init__(message)
        self.smaller = smaller


@dataclass
class Attempt:
    """Training with one choice of the planner, or with the next if memory runs out before anything has changed."""

    processes: Processes
    resume: str | None
    overwrite: bool
    is_reserved: bool
    stop: StopRequest
    notes: tuple[str, ...] = ()
    annotations: Annotations | None = None
    run: RunDirectory | None = None
    steps: int = 0
    """Of the run, when it has ended."""

    def __post_init__(self) -> None:
        self.console = Console(quiet=not self.processes.is_main)

    def train(self, chosen: Choice) -> dict[str, Any]:
        """Raises TooMuch, or OutOfMemoryError with advice."""
        spec, processes, training, retry, message = chosen.spec, self.processes, None, False, ""
        classes = number_of_classes(spec, self.annotations)
        try:
            parts = build_parts(spec, self.annotations, processes)
            leave_if_asked(processes, self.stop)
            self.run, logger, progress = _open(
                parts, self.resume, self.overwrite, self.is_reserved, self.console, self.run
            )
            for line in (*self.notes, *chosen.lines):
                logger.info(line)
            if processes.is_main:
                _describe(parts, self.annotations, self.run, logger)
            snapshot_when_full(self.run, processes)
            started = progress.step
            agnostic = spec.model.detector.class_agnostic
            annotations = self.annotations if agnostic else self.annotations.in_order(parts.classes)
            training = Training(
                parts, annotations, self.run, progress, logger, self.console, self.stop, _board_timelines(spec)
            )
            result = training.train()
            self.steps = training.progress.step
            return result
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            changed = training is not None and training.progress.step > started
            # Other ranks may be waiting for this one in the middle of a step: there is no going back for them.
            retry = chosen.smaller is not None and not changed and processes.world == 1
            where = self.run or run_directory(spec)
            message = str(error).splitlines()[0] if retry else explain(error, spec, processes, classes, where)
        if retry:
            raise TooMuch(f"out of memory in the first step ({message})", chosen.smaller)
        raise OutOfMemoryError(message)


def free_memory(processes: Processes) -> None:
    """Give all that nothing refers to back to the device, and what was pinned to the host."""
    gc.collect()
    if processes.device.type == "cuda":
        # Copies that were begun for what was given up may still be on their way.
        torch.cuda.synchronize(processes.device)
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()


def score_checkpoint(
    spec: Spec,
    checkpoint: Path,
    detections: Path | None = None,
    shuffle_clips: bool = False,
    averages: bool = True,
) -> dict[str, Any]:
    """`detect_and_score`, with the detections in a file if one is named."""
    if detections:
        check_output(detections)
    scored = detect_and_score(spec, checkpoint, shuffle_clips, averages)
    if detections and scored.is_main:
        write_detections(detections, scored.detections)
    return scored.result


class Scored(NamedTuple):
    """detections: of all evaluated videos, on every rank; is_main: this rank writes files."""

    result: dict[str, Any]
    detections: Detections
    is_main: bool


def detect_and_score(
    spec: Spec, checkpoint: Path, shuffle_clips: bool = False, averages: bool = True, only_scores: bool = False
) -> Scored:
    """Score a checkpoint, ours or OpenTAD's, or a file that `tools/export.py` wrote, on the validation videos. Its
    outputs have the names that it says; what isn't as it was in training is said on stderr.

    shuffle_clips: frames permuted at random inside every clip. averages: of a checkpoint's parameters, where it has
    them, instead of those of the last step. only_scores: nobody takes the detections. Raises UserError before anything
    is decoded, also if nothing would come of it.
    """
    with start_processes(spec.train.hang_seconds) as processes, run_arithmetic(spec.train, processes.device):
        facts = read_trained_file(checkpoint).facts
        spec, lines = match_for_test(spec, facts, checkpoint)
        annotations = annotations_for(spec, training=False)
        say = partial(print, file=sys.stderr) if processes.is_main else lambda line: None
        for line in lines:
            say(f"note: {line}")
        for line in annotations.warnings:
            say(f"warning: {line}")
        check_videos(spec.data, annotations.validation)
        for line in on_main(processes, lambda: check_times(spec.data, (), annotations.validation)):
            say(line)
        for line in check_classifier(spec, annotations):
            say(f"warning: {line}")
        if only_scores and not any(len(video.labels) for video in annotations.validation):
            raise UserError(
                f"{spec.data.annotations}: the evaluated videos have no annotated instance, so that nothing can be "
                "scored; --detections FILE writes what is found in them"
            )
        # Annotations that can't be scored must not come to light after the detection.
        scores({}, spec)
        if processes.world == 1:
            spec = spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"clip": 1})})
        check_mesh(spec, processes)
        outputs = facts.outputs if facts else classes_of(spec, annotations)
        spec = choose(spec, processes, len(outputs)).spec
        model = build_initial_model(spec, len(outputs))[0]
        trained = freeze(model, spec.model.backbone)
        load_for_scoring(model, trained, checkpoint, averages)
        arithmetic = autocast_dtype(spec.train.precision, processes.device)
        apply_policy(model.backbone, spec.memory, spec.data, arithmetic, clip_ranks=spec.parallel.clip)
        # Only now: frozen weights that are streamed, or cast, may not fit the device as they come from their file.
        model.to(processes.device)
        share_windows(model, spec, processes)
        loader = validation_loader(spec, annotations, processes, shuffle_clips)
        skipped = SkippedVideos(spec.data.skip_limit, lambda line: print(line, file=sys.stderr))
        found = detect(model, loader, spec, outputs, processes, skipped, times=TimeLog(say))
        for line in warnings_of(found, spec):
            say(f"warning: {line}")
        return Scored(scores(found, spec), found, processes.is_main)


def annotations_for(spec: Spec, training: bool = True) -> Annotations:
    """The spec's annotation file as its model and its `compat` want it read. training=False: for a test, which needs no
    training videos."""
    return read_annotations(spec.data, spec.compat == "reference", spec.model.detector.class_agnostic, training)


def load_for_scoring(model: nn.Module, trained: list[str], checkpoint: Path, averages: bool = True) -> None:
    """A checkpoint's averages or last parameters, or an exported file's tensors, into a model with its frozen weights;
    or all of a checkpoint of OpenTAD's."""
    if checkpoint.is_file() and checkpoint.suffix != ".safetensors":
        for line in load_opentad(model, checkpoint, averages).lines():
            print(line, file=sys.stderr)
        return
    if checkpoint.is_file():
        load_exported(model, trained, checkpoint)
        return
    saved = read_checkpoint(checkpoint)
    check_same_model(shapes_of(model), trained, fingerprint(model), saved, checkpoint)
    model.load_state_dict(saved.ema if averages else saved.parameters, strict=False)


def _open(
    parts: Parts,
    resume: str | None,
    overwrite: bool,
    is_reserved: bool,
    console: Console,
    opened: RunDirectory | None = None,
) -> tuple[RunDirectory, logging.Logger, Progress]:
    """The run's directory, its logger, and where it stands, with the parts as they were there. opened: the directory
    that an earlier attempt has made."""
    spec, processes = parts.spec, parts.processes
    path, skipped, checkpoint = None, [], None
    if processes.noted(OPENED):
        resume, overwrite = on_main(processes, lambda: go_on(run_directory(spec), resume)), False
    numbers = numbers_in(parts.shapes[name] for name in parts.trained)
    on_main(processes, lambda: check_room(run_directory(spec).path, numbers, resume is not None))
    # A checkpoint that can't be used must leave nothing behind: it is read before the directory is made.
    if resume is not None:
        path, skipped = on_main(processes, lambda: checkpoint_to_resume(run_directory(spec), resume))
    if path is not None:
        own_parts = is_sharded(path) and parts.engine.saves_shards
        checkpoint = read_checkpoint(path, whole=not own_parts)
        # Names first: other classes mean other shapes, which would say less.
        check_agnostic(checkpoint.facts, spec, path)
        parts.classes, lines = match_for_resume(checkpoint.facts, parts.classes, path)
        check_same_model(parts.shapes, parts.trained, parts.frozen_fingerprint, checkpoint, path)
        progress = Progress(**checkpoint.state["progress"])
        lines += check_position(progress, parts.steps_per_epoch, path, _most_steps(parts, checkpoint))
        skipped = [*skipped, *lines]
    if not overwrite:
        on_main(processes, lambda: check_best(run_directory(spec).checkpoints))
    run = opened or on_main(
        processes, lambda: open_run(spec, resume is not None, overwrite, is_reserved, console.print)
    )
    processes.note(OPENED)
    logger = log_to(run.path / "log.txt", console) if processes.is_main else _silent_logger()
    for line in skipped:
        logger.warning(line)
    if checkpoint is not None:
        return run, logger, _restore(parts, checkpoint, path, logger)
    if resume is not None:
        logger.info("no checkpoint in %s: starting afresh", run.checkpoints)
    return run, logger, Progress()


def _most_steps(parts: Parts, checkpoint: Checkpoint) -> int | None:
    """Steps of an epoch with batches of one video; None if the checkpoint was trained by other data."""
    try:
        here, there = yaml.safe_load(to_yaml(parts.spec)), yaml.safe_load(checkpoint.spec_yaml)
    except (yaml.YAMLError, ValueError):
        return None
    # Videos that fill no batch any more aren't counted.
    most = (parts.steps_per_epoch + 1) * parts.spec.train.global_batch
    return most if there.get("data") == here["data"] else None


def _restore(parts: Parts, checkpoint: Checkpoint, path: Path, logger: logging.Logger) -> Progress:
    """Put a checkpoint's tensors and states into the parts; returns where the run stands."""
    for line in spec_changes(checkpoint.spec_yaml, to_yaml(parts.spec)):
        logger.warning("the spec has changed since %s: %s", path.name, line)
    if next(iter(checkpoint.parameters.values())).is_meta:
        load_shards(parts, path / shards.FOLDER, checkpoint.state["optimizer_step"])
    else:
        load_whole_tensors(parts, checkpoint.parameters, checkpoint.ema, checkpoint.optimizer)
    parts.engine.load_scaler(checkpoint.state["scaler"])
    parts.normalizer.value = checkpoint.state["normalizer"]
    progress = Progress(**checkpoint.state["progress"])
    logger.info("resumed from %s: epoch %d, step %d", path, progress.epoch, progress.step)
    return progress


def spec_changes(before: str, now: str) -> list[str]:
    """Lines of a saved spec that aren't those of this run's, as "- old" and "+ new"; where a run lies doesn't count."""
    lines = difflib.ndiff(before.partition("\nrun:")[0].splitlines(), now.partition("\nrun:")[0].splitlines())
    return [line for line in lines if line[0] in "+-"]


def check_same_model(
    shapes: dict[str, torch.Size], trained: list[str], frozen_fingerprint: str, checkpoint: Checkpoint, path: Path
) -> None:
    """Refuse a checkpoint of other trained parameters or other frozen weights. shapes: of the model's parameters."""
    here = {name: tuple(shapes[name]) for name in trained}
    there = {name: tuple(tensor.shape) for name, tensor in checkpoint.parameters.items()}
    lines = [f"{name}: only in the checkpoint" for name in sorted(there.keys() - here.keys())]
    lines += [f"{name}: only in this spec's model" for name in sorted(here.keys() - there.keys())]
    same = sorted(here.keys() & there.keys())
    lines += [f"{n}: {there[n]} in the checkpoint, {here[n]} here" for n in same if there[n] != here[n]]
    if lines:
        more = [f"and {len(lines) - SHOWN_DIFFERENCES} more"] if len(lines) > SHOWN_DIFFERENCES else []
        listed = "".join(f"\n  {line}" for line in lines[:SHOWN_DIFFERENCES] + more)
        raise CheckpointError(f"{path}: trains other parameters than this spec ({len(lines)} differ):{listed}")
    if checkpoint.state["frozen_fingerprint"] != frozen_fingerprint:
        raise CheckpointError(f"{path}: was trained on other frozen weights than model.backbone.weights gives")


def _silent_logger() -> logging.Logger:
    """For ranks other than the first."""
    logger = logging.getLogger("adatad.other_ranks")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    return logger


def _describe(parts: Parts, annotations: Annotations, run: RunDirectory, logger: logging.Logger) -> None:
    """Say what is trained and on what; the same stands in the run's files."""
    dispensable = Dispensable(logger.warning)
    for name, text in (("spec.yaml", to_yaml(parts.spec)), ("trained.txt", "\n".join(parts.trained) + "\n")):
        with dispensable.writing(name):
            run.write_text(name, text)
    logger.info("run %s (tensorboard --logdir %s)", run.path, run.path / "tensorboard")
    counts = len(annotations.train), len(annotations.validation), len(annotations.classes), parts.steps_per_epoch
    logger.info("%d training and %d validation videos, %d classes; %d steps an epoch", *counts)
    for account in (annotations.train_account, annotations.validation_account):
        logger.info("subset %s", account.line())
    for sentence in annotations.warnings:
        logger.warning(sentence)
    for line in (*parts.weights_report, *parts.compile_report):
        logger.info(line)
    sizes = {name: shape.numel() for name, shape in parts.shapes.items()}
    for group in parts.engine.groups:
        numbers = sum(sizes[name] for name in group["parameter_names"])
        rate, decay = group["base_lr"], group["weight_decay"]
        logger.info("trained, %s: %s numbers, rate %g, decay %g", group["name"], f"{numbers:,}", rate, decay)
        for line in collapsed(group["parameter_names"]):
            logger.info("  %s", line)
    trained = sum(sizes[name] for name in parts.trained)
    logger.info("trained in all: %s of %s numbers", f"{trained:,}", f"{sum(sizes.values()):,}")


def collapsed(names: list[str]) -> list[str]:
    """Parameter names with those that differ in a number alone on one line: blocks.*.adapter.gamma (4)."""
    counts = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names)
    return [f"{pattern} ({count})" for pattern, count in counts.items()]


def _board_timelines(spec: Spec) -> Any:
    """What to do after an evaluation: timelines of the first validation videos as TensorBoard images."""

    def draw(metrics: Metrics, detections: Detections, step: int) -> None:
        try:
            for name, figure in validation_timelines(spec, detections, limit=BOARD_TIMELINES):
                metrics.image(f"timelines/{name}", to_image(figure), step)
        except Exception as error:
            # A picture that can't be drawn mustn't take the run with it.
            logging.getLogger("adatad").warning("step %d: no timelines for TensorBoard: %s", step, reason(error))

    return draw
