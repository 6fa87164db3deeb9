"""What a replay means: one sentence on the cause of a bad step, and what to try."""

from __future__ import annotations

from adatad.files import listed
from adatad.training.bad_batch_file import LARGE_NORM, WindowFacts, file_name
from adatad.training.module_watch import BadModule
from adatad.training.replay import PassResult, Replayed

FP16_LARGEST = 65_504.0
"""The largest number of fp16."""


def verdict(found: Replayed) -> str:
    """Return what the results of a replay mean."""
    if found.bad_weights:
        return (
            f"the weights already hold NaN or Inf at this step ({listed(found.bad_weights, 3)}): the batch isn't the "
            "cause; look at the steps before, at model.backbone.weights, and at the checkpoint that the run began from"
        )
    if found.bad_labels:
        return (
            f"the labels or targets hold NaN or Inf: {listed([place(window) for window in found.bad_labels], 3)}; "
            "fix these videos' segments in the annotation file (adatad data check SPEC)"
        )
    by_precision = {result.precision: result for result in found.passes}
    fp32 = by_precision["fp32"]
    if not fp32.is_finite:
        return (
            f"not finite in fp32 either, so precision isn't the cause: {cause(fp32)}; look at that window "
            f"(adatad data check SPEC) and at the learning rate of that part"
        )
    low = next((result for result in found.passes if not result.is_finite), None)
    if low is None:
        return _all_finite(found)
    if low.precision == "bf16":
        return (
            f"finite in fp32, not in bf16: {cause(low)}; the largest number there is {fp32.largest.value:.3g} in fp32, "
            f"out of {fp32.largest.name}; try train.precision=fp32, or lower rates"
        )
    if low.forward is None:
        return (
            f"finite in fp32 and bf16, not in fp16: gradients times the loss scale overflow ({cause(low)}); the scale "
            "comes down by itself, or take train.precision=bf16 where the GPU has it, else fp32"
        )
    return (
        f"finite in fp32 and bf16, not in fp16: {cause(low)}; its largest number is {FP16_LARGEST:,.0f}, and "
        f"{fp32.largest.name} reaches {fp32.largest.value:.3g} in fp32; try train.precision=bf16 where the GPU has it, "
        "else fp32"
    )


def cause(result: PassResult) -> str:
    """Return what went bad first in a pass, in words."""
    where = f" ({place(result.window)})" if result.window else ""
    if result.forward is not None:
        return f"the first output that isn't finite is of {named(result.forward)}{fed(result.forward, 'input')}{where}"
    if result.backward is None:
        return "nothing"
    operator = f", at {result.operator}" if result.operator else ""
    first = f"all outputs are finite; the first gradient that isn't is of {named(result.backward)}"
    return f"{first}{fed(result.backward, 'gradient')}{operator}{where}"


def named(module: BadModule) -> str:
    """Return a module's name and class."""
    return f"{module.name} [{module.kind}]"


def fed(module: BadModule, what: str) -> str:
    """Return in words whether a module got something finite."""
    return f", whose {what} was finite" if module.fed_finite else f", which got a {what} that wasn't finite"


def place(window: WindowFacts) -> str:
    """Return a window's video and frames."""
    return f"{window.video}, frames {window.first_frame} to {window.last_frame}"


def _all_finite(found: Replayed) -> str:
    """Return the verdict on a batch of which everything is finite here."""
    facts = found.facts
    if facts.reason == LARGE_NORM:
        return (
            f"everything is finite: the step's norm of {facts.gradient_norm} is far above the usual "
            f"{facts.median_norm:g}, and clipping (train.clip_norm) bounds what it does; look at its windows' labels "
            "if such steps are many"
        )
    others = [file_name(facts.reason, facts.step, rank) for rank in range(facts.ranks) if rank != facts.rank]
    if others:
        return (
            f"this rank's windows are finite in every precision here: replay those of the others ({listed(others, 3)})"
        )
    return (
        "everything is finite here: the cause lies in what replay leaves out, the run's tiles and 8-bit storage (train "
        "once with memory.policy=block, without memory.frozen_dtype), or in its device (train.recheck_every=1 compares "
        "two computations of every step)"
    )
