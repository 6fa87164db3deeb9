"""A whole training: which run it is, with which engine and memory plan, from its first step to its report."""

from __future__ import annotations

import gc
import logging
import os
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adatad.data.balance import balance_lines
from adatad.data.dataset import Batch, check_times, check_videos
from adatad.data.staging import stage
from adatad.files import reason, write_bytes
from adatad.parallel.processes import Processes, start_processes
from adatad.printing import lasting_output
from adatad.report.first_batch import FIRST_BATCH, draw_first_batch, image_to_png
from adatad.report.page import try_write_report
from adatad.report.timelines import to_image, validation_timelines
from adatad.spec import Spec, to_yaml
from adatad.training.choice import resolve_choices
from adatad.training.determinism import run_arithmetic
from adatad.training.init_from import find_source, start_from, with_its_backbone
from adatad.training.loaders import check_shared_memory, frames_here
from adatad.training.loop import Training
from adatad.training.markers import ATTEMPT, DONE, write_marker
from adatad.training.metrics import MetricsWriter
from adatad.training.monitor import BestEffort
from adatad.training.out_of_memory import OutOfMemoryError, explain, is_out_of_memory, snapshot_when_full
from adatad.training.resolve import ResolvedRun, annotations_for, check_batch, check_stop
from adatad.training.resume import ResumeError, begins_afresh, chosen_run, open_for_training
from adatad.training.run_directory import RunDirectory, run_directory
from adatad.training.setup import TrainState, initial_state
from adatad.training.signals import DRAWING, Stopped, StopRequest, say
from adatad.training.step_profile import WARMUP_STEPS, StepProfiler, check_steps
from adatad.training.streamed_validation import check_stream
from adatad.training.validation import Detections, check_classifier, score_summary
from adatad.training.weights_and_biases import check_wandb

TRACKED_TIMELINES = 4
"""Validation videos whose timelines trackers show after each evaluation."""


def train(
    spec: Spec, resume: str | None = None, overwrite: bool = False, stop: StopRequest | None = None
) -> dict[str, Any]:
    """Train a spec as `train_run` does; return the content of result.json alone."""
    return train_run(spec, resume, overwrite, stop)[0]


def train_run(
    spec: Spec,
    resume: str | None = None,
    overwrite: bool = False,
    stop: StopRequest | None = None,
    profile_steps: int | None = None,
) -> tuple[dict[str, Any], Path]:
    """Train a spec on the processes there are; return the content of result.json, and the run's directory, which holds
    report.html then.

    profile_steps: instead, profile so many steps after a few to warm up, and end there; returned is the content of
    profile.json (on ranks but the first {}).

    Where neither --id nor run.id says which run this is, the next free one is taken. resume: "auto" for the newest
    complete checkpoint of the run (or a fresh start), a checkpoint's path, or None. An attempt that torchrun started
    after one that had opened the run goes on from that one's checkpoints. stop: one that is installed already; signals
    before it was would be lost.
    """
    # Before processes are started, which takes seconds.
    if resume is not None and overwrite:
        raise ResumeError("--force would delete what --resume goes on from: give one of the two")
    own = StopRequest().install() if stop is None else None
    asked = stop or own
    try:
        with lasting_output(), start_processes(spec.train.hang_seconds) as processes:
            leave_if_asked(processes, asked)
            with run_arithmetic(spec.train, processes.device), chosen_run(spec, processes, resume, overwrite) as which:
                attempt = PlanRetry(processes, resume, overwrite, which.is_reserved, asked, which.notes)
                attempt.profile_steps = profile_steps
                return _train(which.spec, attempt), run_directory(which.spec).path
    except Exception:
        # Libraries that are imported meanwhile make other errors of it.
        if asked.leaves_at_once and asked.signal_name is not None:
            raise Stopped(asked.nothing_saved()[1]) from None
        raise
    finally:
        if own is not None:
            own.restore()


def _train(spec: Spec, attempt: PlanRetry) -> dict[str, Any]:
    """Train the run that this has become, with the first memory plan that fits; draw its report."""
    # All checks that need no model come first: a mistake in the data shows within seconds.
    processes = attempt.processes
    processes.on_main(lambda: check_wandb(spec))
    if spec.model.init_from is not None:
        fresh = begins_afresh(spec, processes, attempt.resume)
        # A run that goes on needs the file for frozen weights alone, and only where it has no other.
        if fresh or spec.model.backbone.weights is None:
            path, lines = find_source(spec, attempt.overwrite)
            attempt.start, attempt.notes = path if fresh else None, (*attempt.notes, *lines)
            spec = with_its_backbone(spec, path) if spec.model.backbone.weights is None else spec
    annotations = annotations_for(spec)
    videos = annotations.train + annotations.validation
    check_videos(spec.data, videos)
    balance = balance_lines(spec.train.class_balance, annotations.train, annotations.classes)
    attempt.notes = (*attempt.notes, *check_classifier(spec, annotations), *balance)
    check_batch(spec, processes.world, annotations)
    check_stop(spec, annotations)
    # With data.stage_to everything from here on reads the copies on the node's own disk.
    stage(spec.data, (video.name for video in videos), attempt.console.print)
    lines = processes.on_main(lambda: check_times(spec.data, annotations.train, annotations.validation))
    attempt.notes = (*attempt.notes, *lines)
    leave_if_asked(processes, attempt.stop)
    choices = resolve_choices(spec, processes, annotations)
    run, lines = next(choices)
    if attempt.profile_steps is not None:
        check_steps(run, attempt.profile_steps)
    check_stream(run.spec, learns=True)
    check_shared_memory(run)
    # Annotations that can't be scored must not come to light after the first epochs.
    score_summary({}, run)
    # The second choice, if there is one, is the next smaller plan.
    result = None
    try:
        result = attempt.train(run, lines, smaller := next(choices, None))
    except PlanOutOfMemory as error:
        attempt.notes = (f"{error}; taking the next smaller plan, once",)
    if result is None:
        # Outside of the block that caught the error, so that nothing of the first try is alive.
        free_memory(processes)
        run, lines = smaller
        result = attempt.train(run, lines, None)
    attempt.stop.meanwhile = DRAWING
    if processes.is_main:
        # Training is done: whatever a page can't be drawn of, or written for, takes nothing of it away.
        if attempt.profile_steps is None and (line := try_write_report(run.directory.path, run.saved_spec)):
            logging.getLogger("adatad").warning("training is done and saved; %s", line)
        write_marker(DONE, f"step {attempt.steps}")
    processes.barrier()
    return result


def leave_if_asked(processes: Processes, stop: StopRequest) -> None:
    """Leave before training begins, all ranks together, if any was asked to stop. Raises Stopped."""
    # A batch job goes on to its first step, which it saves: one that ends here several times would count as idle.
    if ATTEMPT in os.environ or not processes.any(stop.signal_name is not None):
        return
    line, code = stop.nothing_saved()
    if processes.is_main:
        say(line)
    processes.barrier()
    raise Stopped(code)


class PlanOutOfMemory(Exception):  # noqa: N818, training catches it
    """Memory ran out before the first step under a plan of `memory.policy: auto`, and there is a smaller one."""


@dataclass
class PlanRetry:
    """Training under one memory plan of the planner, and once more under the next one if memory runs out before any
    weight has changed."""

    processes: Processes
    resume: str | None
    overwrite: bool
    is_reserved: bool
    stop: StopRequest
    notes: tuple[str, ...] = ()
    """Lines for the log."""
    start: Path | None = None
    """The trained detector that a fresh run begins from."""
    directory: RunDirectory | None = None
    """The run's directory, once it has been opened."""
    steps: int = 0
    """Steps of the run, when it has ended."""
    profile_steps: int | None = None
    """Steps to profile, of a run that does nothing else."""

    def __post_init__(self) -> None:
        self.console = Console(quiet=not self.processes.is_main)

    def train(self, run: ResolvedRun, lines: tuple[str, ...], smaller: object | None) -> dict[str, Any]:
        """Train to the end. smaller: the next plan, if there is one. Raises PlanOutOfMemory, or OutOfMemoryError with
        advice."""
        processes, training, retry, message = self.processes, None, False, ""
        start = self.start
        fill = None if start is None else partial(start_from, run=run, path=start, processes=processes)
        try:
            state = initial_state(run, processes, fill)
            leave_if_asked(processes, self.stop)
            self.directory, logger, progress = open_for_training(
                state, self.resume, self.overwrite, self.is_reserved, self.console, self.directory
            )
            for line in (*self.notes, *lines):
                logger.info(line)
            if processes.is_main:
                _describe(state, self.directory, logger)
            snapshot_when_full(self.directory, processes)
            started = progress.step
            after = partial(_draw_timelines, state.run)
            training = Training(state, self.directory, progress, logger, self.console, self.stop, after)
            # Features show nothing.
            if state.spec.data.features is None:
                training.after_first_step = partial(_draw_first_batch, state.run)
            if self.profile_steps is not None:
                check_steps(state.run, self.profile_steps, started)
                training.profiler = StepProfiler(self.profile_steps, state, self.directory.path)
                first, last = started + WARMUP_STEPS + 1, started + WARMUP_STEPS + self.profile_steps
                logger.info(
                    "profiling steps %d to %d; the run ends there, with no checkpoint and no result", first, last
                )
            result = training.train()
            self.steps = training.progress.step
            return result
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            changed = training is not None and training.progress.step > started
            # Other ranks may be waiting for this one in the middle of a step: there is no going back for them.
            retry = smaller is not None and not changed and processes.world == 1
            where = self.directory or run.directory
            message = str(error).splitlines()[0]
            if not retry:
                message = explain(error, run.saved_spec, processes, run.num_classes, where)
        # Outside of the handler: the error's traceback would keep the model and its activations alive.
        if retry:
            raise PlanOutOfMemory(f"out of memory in the first step ({message})")
        raise OutOfMemoryError(message)


def free_memory(processes: Processes) -> None:
    """Give all that nothing refers to back to the device, and what was pinned to the host."""
    gc.collect()
    if processes.device.type == "cuda":
        # Copies that were begun for what was given up may still be on their way.
        torch.cuda.synchronize(processes.device)
        torch.cuda.empty_cache()
        # Private: torch has no public way to release pinned memory.
        torch._C._host_emptyCache()


def _describe(state: TrainState, directory: RunDirectory, logger: logging.Logger) -> None:
    """Log what is trained and on what, and write spec.yaml and trained.txt."""
    run, annotations = state.run, state.run.annotations
    best_effort = BestEffort(logger.warning)
    for name, text in (("spec.yaml", to_yaml(run.saved_spec)), ("trained.txt", "\n".join(state.trained) + "\n")):
        with best_effort.writing(name):
            directory.write_text(name, text)
    # The root, not this run's folder: there TensorBoard has a name for the run, and others to compare it with.
    logger.info("run %s (tensorboard --logdir %s)", directory.path, shlex.quote(run.spec.run.root or "."))
    counts = len(annotations.train), len(annotations.validation), len(annotations.classes), run.steps_per_epoch
    logger.info("%d training and %d validation videos, %d classes; %d steps an epoch", *counts)
    for report in (annotations.train_report, annotations.validation_report):
        logger.info("subset %s", report.line())
    for sentence in annotations.warnings:
        logger.warning(sentence)
    for line in (*state.weights_report, *state.compile_report):
        logger.info(line)
    # By the shapes of before the engine: a sharded parameter holds a part of its numbers.
    sizes = {name: shape.numel() for name, shape in state.shapes.items()}
    for group in state.engine.groups:
        numbers = sum(sizes[name] for name in group["parameter_names"])
        rate, decay = group["base_lr"], group["weight_decay"]
        logger.info("trained, %s: %s numbers, rate %g, decay %g", group["name"], f"{numbers:,}", rate, decay)
    trained = sum(sizes[name] for name in state.trained)
    every = sum(sizes.values())
    logger.info("trained in all: %s of %s numbers, %s frozen", f"{trained:,}", f"{every:,}", f"{every - trained:,}")


def _draw_first_batch(run: ResolvedRun, metrics: MetricsWriter, batch: Batch) -> None:
    """Draw the windows of a run's first step with their labels, into first_batch.png and for the trackers."""
    try:
        first_frame = frames_here(run.spec, run.mesh).start
        image = to_image(draw_first_batch(batch, run.spec.data.window, run.annotations.classes, first_frame))
        metrics.image("first_batch", image, 0)
        write_bytes(run.directory.path / FIRST_BATCH, image_to_png(image))
    except Exception as error:
        # A picture that can't be drawn mustn't take the run with it.
        logging.getLogger("adatad").warning("no %s: %s", FIRST_BATCH, reason(error))


def _draw_timelines(run: ResolvedRun, metrics: MetricsWriter, detections: Detections, step: int) -> None:
    """Draw timelines of the first validation videos for the trackers, after an evaluation."""
    try:
        for name, figure in validation_timelines(run.spec, detections, TRACKED_TIMELINES, run.annotations):
            metrics.image(f"timelines/{name}", to_image(figure), step)
    except Exception as error:
        # A picture that can't be drawn mustn't take the run with it.
        logging.getLogger("adatad").warning("step %d: no timelines for TensorBoard: %s", step, reason(error))
