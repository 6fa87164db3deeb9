"""The learning rate of a step: linear warm-up, then cosine, counted in optimizer steps."""

from __future__ import annotations

import math


def learning_rate(step: int, base: float, warmup_steps: int, total_steps: int, eta_min: float) -> float:
    """Rate of the 0-based optimizer step `step` of a group with rate `base`.

    The warm-up starts at 0, so that the first step changes nothing, and reaches `base` at its last step, number
    warmup_steps - 1. The cosine ends at `eta_min`, the same for all groups.
    """
    if step < warmup_steps:
        return base * step / max(warmup_steps - 1, 1)
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return eta_min + (base - eta_min) * 0.5 * (1 + math.cos(math.pi * done))
