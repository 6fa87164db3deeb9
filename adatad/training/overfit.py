"""Overfitting: training on a few fixed windows until nothing is left to learn, which any sound set-up can do within
minutes; and what is probably wrong where it can't.

Nothing is written: the run of the same spec finds its directory as if this had never been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from adatad.data.dataset import SKIPPABLE_ERRORS, Batch, TrainingWindows, check_videos, collate
from adatad.data.rng import epoch_order
from adatad.errors import UserError
from adatad.parallel.processes import start_processes
from adatad.progress_bar import Task, progress
from adatad.spec import Spec
from adatad.training.choice import resolve_choices
from adatad.training.determinism import run_arithmetic
from adatad.training.init_from import find_source, start_from, with_its_backbone
from adatad.training.loaders import TargetMaker
from adatad.training.out_of_memory import OutOfMemoryError, is_out_of_memory
from adatad.training.resolve import ResolvedRun, annotations_for
from adatad.training.setup import TrainState, initial_state
from adatad.training.signals import Stopped, StopRequest, say
from adatad.training.step import train_step

MAX_STEPS = 300
"""Steps after which a loss that hasn't come down won't."""
WARMUP_STEPS = 10
# Losses are divided by the positive points of the windows here. An untrained head has about 2; at 0.1 classes are right
# at every point, and segments overlap with their labels by more than nine tenths.
BAR = 0.1
"""Loss for each positive point that counts as zero."""
MAX_TRIED = 20
"""Windows that are read for each one that is wanted."""
STALLED, FELL_SLOWLY, ROSE_AGAIN = 0.9, 0.8, 2.0
"""Shares of an earlier loss: of the first one, that is still there at the end; of that half way; and of the least one,
to which it rose again."""


class Outcome(NamedTuple):
    """Result of overfitting. line: what was reached, or what is probably wrong."""

    reached: bool
    line: str


def overfit(spec: Spec, windows: int, stop: StopRequest | None = None) -> Outcome:
    """Train the spec's model on that many fixed windows, without augmentation or dropout, until its loss is at BAR.

    stop: looked at after each step. Raises UserError for more windows than training videos and for several processes;
    Stopped.
    """
    spec = overfitting_spec(spec, windows)
    with start_processes(spec.train.hang_seconds) as processes, run_arithmetic(spec.train, processes.device):
        if processes.world > 1:
            raise UserError("--overfit trains on one process; start it without torchrun, or with --nproc-per-node 1")
        start = None
        if spec.model.init_from is not None:
            start, _ = find_source(spec)
            spec = with_its_backbone(spec, start) if spec.model.backbone.weights is None else spec
        annotations = annotations_for(spec)
        if len(annotations.train) < windows:
            there = len(annotations.train)
            raise UserError(f"--overfit {windows}: {spec.data.annotations} has {there} training videos; ask for fewer")
        check_videos(spec.data, annotations.train)
        run, _ = next(resolve_choices(spec, processes, annotations))
        # The schedule above counts one step an epoch.
        run = replace(run, steps_per_epoch=1)
        batches, tried = windows_with_positives(run, windows)
        if not batches:
            return Outcome(False, _no_positives(tried, run))
        fill = None if start is None else partial(start_from, run=run, path=start, processes=processes)
        state = initial_state(run, processes, fill)
        state.model.train()
        return _train(state, batches, stop)


def overfitting_spec(spec: Spec, windows: int) -> Spec:
    """Return the spec without anything random in a step, one window in each micro-batch, and all windows in each step.
    Its rates are the spec's own, since they are part of what is tried."""
    model, backbone, detector = spec.model, spec.model.backbone, spec.model.detector
    plain = {
        "input_dropout": 0.0, "drop_path": 0.0, "dropout": 0.0, "label_smoothing": 0.0,
        # 0 would scale the segments' loss to that of the classes, whatever it is.
        "regression_weight": detector.regression_weight or 1.0,
    }  # fmt: skip
    changed_model = {
        "backbone": backbone.model_copy(update={"drop_path": 0.0}),
        "detector": detector.model_copy(update=plain),
    }
    schedule = {"warmup_epochs": WARMUP_STEPS, "epochs": MAX_STEPS, "end_epoch": None}
    train = {"global_batch": windows, "accumulation": windows, "recheck_every": None}
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"augment": None, "workers": 0}),
            "model": model.model_copy(update=changed_model),
            "schedule": spec.schedule.model_copy(update=schedule),
            "train": spec.train.model_copy(update=train),
            "parallel": spec.parallel.model_copy(update={"clip": 1}),
        }
    )


def windows_with_positives(run: ResolvedRun, count: int) -> tuple[list[Batch], int]:
    """Return micro-batches of one window each, of different videos, that hold positive points, in the order of the
    first epoch; and how many windows were read for them."""
    spec, videos = run.spec, run.annotations.train
    dataset = TrainingWindows(videos, spec.data, spec.train.seed, run.quirks)
    with_targets, found, tried = TargetMaker(spec.model.detector, run.num_classes), [], 0
    for number in epoch_order(spec.train.seed, 0, len(videos)).tolist():
        if len(found) == count or tried == MAX_TRIED * count:
            break
        if not len(videos[number].labels):
            continue
        tried += 1
        try:
            batch = with_targets(collate([dataset.sample(0, number)]))
        except SKIPPABLE_ERRORS:
            if spec.data.on_error == "raise":
                raise
            continue
        found += [batch] if batch.targets.positive.any() else []
    return found, tried


def _train(state: TrainState, batches: list[Batch], stop: StopRequest | None) -> Outcome:
    """Train on the micro-batches until BAR or MAX_STEPS."""
    # Momentum leaves it there: every step divides by the positives that it has.
    state.normalizer.value = float(sum(int(batch.targets.positive.sum()) for batch in batches))
    try:
        with progress("steps", MAX_STEPS) as bar:
            history = _steps(state, batches, stop, bar)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "out of memory with a single window at a time; `adatad plan` says what fits, docs/out-of-memory.md what "
            "helps"
        ) from error
    videos = ", ".join(batch.windows[0].video.name for batch in batches)
    loss = history[-1]["cost"]
    if history[-1]["applied"] and loss <= BAR:
        steps = f"{len(history)} steps" if len(history) > 1 else "1 step"
        return Outcome(True, f"reached: loss {loss:.3f} a positive point after {steps} on {videos} (bar {BAR})")
    rates = ", ".join(f"{group['name']} {group['base_lr']:g}" for group in state.engine.groups)
    return Outcome(False, f"not reached on {videos}: {probable_cause(history, rates)}")


def _steps(state: TrainState, batches: list[Batch], stop: StopRequest | None, bar: Task) -> list[dict[str, Any]]:
    """Return what each step logged, to the one that reached BAR, the last allowed one, or one of too many bad ones."""
    history: list[dict[str, Any]] = []
    bad = 0
    for step in range(MAX_STEPS):
        values = train_step(state, batches, step)
        history.append(values)
        bar.update(step + 1, MAX_STEPS, f"loss {values['cost']:.3f}")
        if stop is not None and stop.signal_name is not None:
            line, code = stop.nothing_saved()
            say(line)
            raise Stopped(code)
        bad = 0 if values["applied"] else bad + 1
        # Not at the first: in fp16 the scale of the loss has to come down before.
        if bad == state.spec.train.stop_after_bad_steps or (values["applied"] and values["cost"] <= BAR):
            break
    return history


def probable_cause(history: Sequence[dict[str, Any]], rates: str) -> str:
    """Return what is probably wrong with a training whose steps logged these values and didn't reach BAR. rates: of the
    optimizer's groups, in words."""
    last = history[-1]
    if not last["applied"]:
        return (
            f"step {len(history)} has a loss of {last['cost']:g} and a gradient norm of {last['gradient_norm']:g}: "
            f"lower the rates ({rates}), set train.precision=fp32, and look for NaN in model.backbone.weights"
        )
    costs = [values["cost"] for values in history if values["applied"]]
    first, least = costs[0], min(costs)
    facts = f"loss {first:.3f} at first, {costs[-1]:.3f} after {len(history)} steps (bar {BAR})"
    if all(values["gradient_norm"] == 0 for values in history):
        return f"{facts}; no parameter gets a gradient: model.freeze leaves nothing that the loss needs"
    if costs[-1] > ROSE_AGAIN * least and least < STALLED * first:
        return f"{facts}, {least:.3f} between: it rose again, so the rates are too high ({rates})"
    if costs[-1] > STALLED * first:
        return f"{facts}: it hardly falls, so a learning rate is far too low or far too high ({rates})"
    if costs[-1] < FELL_SLOWLY * costs[len(costs) // 2]:
        return f"{facts}: it is still falling, so the rates are low ({rates})"
    if last["reg_loss"] > last["cls_loss"]:
        return (
            f"{facts}: segments don't fit ({last['reg_loss']:.3f} of it): the rates are low ({rates}), or points "
            "belong to levels that can't reach their labels (model.detector.regression_ranges)"
        )
    return (
        f"{facts}: classes don't fit ({last['cls_loss']:.3f} of it): the rates are low ({rates}), or equal frames "
        "carry different labels (first_batch.png of a run shows them)"
    )


def _no_positives(tried: int, run: ResolvedRun) -> str:
    if not tried:
        return f"no training video of {run.spec.data.annotations} has an instance"
    return (
        f"none of {tried} windows holds a positive point: labels lie outside of their frames (data.fps, durations in "
        "the annotation file: `adatad data check` compares them), or in no level (model.detector.regression_ranges)"
    )
