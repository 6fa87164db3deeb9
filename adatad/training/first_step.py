"""The loss of a run's first step beside the one that an untrained head must have: what is wrong with weights, targets
or arithmetic often shows there, hours before a score does."""

from __future__ import annotations

import math
from logging import Logger
from typing import Any

from adatad.data.dataset import Batch
from adatad.models.actionformer import PRIOR
from adatad.models.losses import untrained_losses
from adatad.report.run_files import LOSS_NAMES
from adatad.training.setup import TrainState
from adatad.training.step import LOSSES, batch_targets

# A positive point costs -alpha log(p) (1 - p)^2 under the focal loss, 4.5 alpha at the prior of 0.01. To halve that,
# the probability of positives would have to be 0.07 already; to double it, 0.0001. Random weights scatter logits
# by less than 1 around their bias, which moves p by a factor of 2 and the loss by a sixth. Segments without length
# cost 1 to 1.25 (DIoU), random short ones between 0.7 and 1.25. So a factor of 2 is never chance.
MAX_FACTOR = 2.0
"""Factor between the loss that was seen and the one to expect, in either direction, above which a run is warned."""


def check_first_step(state: TrainState, micro_batches: list[Batch], values: dict[str, Any], logger: Logger) -> None:
    """Log the losses of step 0 beside those to expect, and warn if they differ by far. values: of `train_step`.

    All ranks call it, since the expected losses are summed over their windows.
    """
    spec, processes = state.spec, state.processes
    # As in the step itself: ranks that share a window all count its points, each for its part of the loss.
    normalizer = values["normalizer"] * spec.parallel.clip
    own = [untrained_losses(batch_targets(state, batch), normalizer, spec.model.detector) for batch in micro_batches]
    sums = processes.sum_floats([float(sum(losses[name] for losses in own)) for name in LOSSES])
    expected = dict(zip(LOSSES, sums, strict=True))
    facts = f"step 0: loss {values['cost']:.3f} (class loss {values['cls_loss']:.3f}, segment loss "
    facts += f"{values['reg_loss']:.3f}), {values['positives']} positive points"
    if not state.head_is_new:
        # Kept classes and a trained tower: no prior says what they predict.
        logger.info("%s; the head comes from other weights, so no loss is expected of it", facts)
        return
    logger.info(
        "%s; expected %.3f (%.3f, %.3f) of a head that gives every class %g",
        facts, expected["cost"], expected["cls_loss"], expected["reg_loss"], PRIOR,
    )  # fmt: skip
    if not values["positives"]:
        logger.warning("step 0: its windows hold no positive point: look at first_batch.png for where labels lie")
        return
    # What isn't finite is named by the step itself.
    if math.isfinite(values["cost"]) and (line := difference(values, expected)):
        logger.warning("%s", line)


def difference(values: dict[str, Any], expected: dict[str, float]) -> str:
    """Return a line on each loss that differs from the expected one by more than MAX_FACTOR; empty if none does."""
    causes = {
        "cls_loss": "the last bias of the head, features far from their usual size (backbone weights of another model "
        "or preprocessing), or a head that was trained already",
        "reg_loss": "features far from their usual size, or labels outside of their windows",
    }
    found = []
    for name, cause in causes.items():
        seen, wanted = float(values[name]), expected[name]
        if wanted > 0 and not wanted / MAX_FACTOR <= seen <= wanted * MAX_FACTOR:
            said = LOSS_NAMES[name].replace("_", " ")
            found.append(f"{said} {seen:.3f} at step 0, expected about {wanted:.3f}: look at {cause}")
    return "; ".join(found)
