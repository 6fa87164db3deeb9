"""One optimizer step: losses and gradients of the global batch, read once, and the update."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from adatad.data.dataset import Batch
from adatad.memory.scopes import memory_scope, timed_part
from adatad.models.keyed_dropout import HostKeys
from adatad.models.losses import Targets, detection_losses
from adatad.parallel.base import all_finite
from adatad.training.determinism import compute_twice, is_due
from adatad.training.loaders import TargetMaker
from adatad.training.optimizer import learning_rate
from adatad.training.setup import TrainState

LOSSES = ("cls_loss", "reg_loss", "cost")
"""Losses that are logged; the last one is differentiated."""


def train_step(state: TrainState, micro_batches: list[Batch], step: int) -> dict[str, Any]:
    """Do one optimizer step over the global batch; return what is logged of it. All ranks call it.

    Targets need no forward pass, so positives are counted over all ranks and micro-batches first: the losses are sums
    over the global batch divided by one global count, whatever the number of ranks. A step whose loss or gradients
    aren't finite changes nothing, on all ranks alike ("applied" says so).

    The host waits for the device once, within `engine.update`: until then everything is queued.
    """
    spec, engine, processes = state.spec, state.engine, state.processes
    rates = set_rates(state, step)
    with timed_part("targets"):
        targets = [batch_targets(state, batch) for batch in micro_batches]
    # What the host knows, in one exchange.
    positives = sum(int(target.positive.sum()) for target in targets)
    without = sum(not len(own) for batch in micro_batches for own in batch.labels)
    with timed_part("communication"):
        positives, without = processes.sum_floats([float(positives), float(without)])
    # Ranks that share a window have all counted its positives.
    positives = int(positives) // spec.parallel.clip
    normalizer = state.normalizer.update(positives)
    compute = partial(forward_and_backward, state, targets, normalizer)
    losses = compute_twice(state, compute, micro_batches, step) if is_due(state, step) else compute(micro_batches)
    with memory_scope("optimizer state"):
        norm, sums = engine.update(spec.train.clip_norm, losses)
    state.inputs.next_step()
    # The norm and the sums are the same on every rank, so that all decide alike. The engine has done the same already.
    applied = all_finite(norm, *sums)
    if applied:
        with timed_part("moving average"):
            state.ema.update(engine.master_parameters())
    return {
        **dict(zip(LOSSES, sums, strict=True)), "windows_without_instances": without / spec.parallel.clip,
        "gradient_norm": norm, "positives": positives, "normalizer": normalizer, "lr": rates, "applied": applied,
    }  # fmt: skip


def forward_and_backward(
    state: TrainState, targets: list[Targets], normalizer: float, micro_batches: list[Batch]
) -> Tensor:
    """Return this rank's LOSSES over its micro-batches, float64 [3] on the device; gradients stay in the engine."""
    engine, sums = state.engine, None
    for batch, following, target in zip(micro_batches, [*micro_batches[1:], None], targets, strict=True):
        # Engines that can exchange gradients between ranks at the last micro-batch alone.
        with engine.micro_batch(last=following is None):
            losses = forward(state, batch, target, normalizer, following)
            with memory_scope("backward"):
                engine.backward(losses["cost"])
        # Not read before the step's end: the host goes on to the next micro-batch while the device computes.
        own = torch.stack([losses[name].detach() for name in LOSSES]).double()
        sums = own if sums is None else sums + own
    state.frames.prefetch_next_step()
    return sums


def forward(
    state: TrainState, batch: Batch, targets: Targets, normalizer: float, following: Batch | None = None
) -> dict[str, Tensor]:
    """Return the losses of a micro-batch by name, tensors [] on the device. following: the micro-batch whose frames may
    be made ready meanwhile."""
    with memory_scope("frames"):
        frames = state.frames.take(batch)
    with memory_scope("detector"):
        # On their way before the forward pass is queued: behind it the copy would wait for all of it.
        mask, *targets = state.inputs.send([batch.mask, *targets])
        predictions = state.engine.model(frames, mask, HostKeys(batch.keys))
        state.frames.forward_queued(following)
        # Ranks that share a window all compute its loss: each has its part of it.
        normalizer = normalizer * state.spec.parallel.clip
        with timed_part("losses"):
            return detection_losses(predictions, Targets(*targets), normalizer, state.spec.model.detector)


def set_rates(state: TrainState, step: int) -> dict[str, float]:
    """Write this step's learning rate into every optimizer group; return the rates by group name."""
    schedule, steps = state.spec.schedule, state.run.steps_per_epoch
    rates = {}
    for group in state.engine.groups:
        rate = learning_rate(
            step, group["base_lr"], schedule.warmup_epochs * steps, schedule.epochs * steps, schedule.eta_min
        )
        group["lr"] = rates[group["name"]] = rate
    return rates


def batch_targets(state: TrainState, batch: Batch) -> Targets:
    """Return the targets of every point, in host memory: those that came with the batch, or else made here."""
    return batch.targets or TargetMaker(state.spec.model.detector, state.run.num_classes).targets(batch)
