"""What a rank of the invariance tests does: real training steps on the built-in videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

POLICIES = {
    "none": ["memory.policy=none"],
    "block": ["memory.policy=block"],
    "tile": ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=2"],
}
STEPS = 8
NOISE = ("attn.key.bias", "attn.key_norm.bias")
"""Parameters that softmax makes ineffective: their gradient is rounding noise, which AdamW turns into whole steps."""


@dataclass
class Outcome:
    """Losses and gradient norms of all steps (on every rank); whole tensors before and after (on the first)."""

    values: list[dict[str, Any]]
    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    averages: dict[str, np.ndarray]


def train_steps(spec_file: str, overrides: list[str], steps: int = STEPS) -> Outcome:
    """Fresh parts of a spec, and that many optimizer steps."""
    from adatad.data.annotations import read_annotations
    from adatad.parallel.processes import start_processes
    from adatad.spec import load
    from adatad.training.loop import train_step
    from adatad.training.setup import build_parts, training_loader

    spec = load(spec_file, overrides)
    with start_processes() as processes:
        annotations = read_annotations(spec.data)
        parts = build_parts(spec, annotations, processes)
        start = numpy_of(parts.engine.whole(parts.engine.masters()))
        batches = iter(training_loader(spec, annotations, processes, (0, 0)))
        parts.engine.model.train()
        values = []
        for step in range(steps):
            values.append(train_step(parts, [next(batches) for _ in range(spec.train.accumulation)], step))
        end = numpy_of(parts.engine.whole(parts.engine.masters()))
        return Outcome(values, start, end, numpy_of(parts.engine.whole(parts.ema.averages)))


def numpy_of(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def difference(ours: Outcome, truth: Outcome) -> float:
    """Largest of the losses' and norms' relative error, and of the joint norm of the weights' difference against that
    of their change."""
    errors = [
        abs(one[key] - other[key]) / max(abs(other[key]), 1e-6)
        for one, other in zip(ours.values, truth.values, strict=True)
        for key in ("cls_loss", "reg_loss", "cost", "gradient_norm", "normalizer")
    ]
    for one, other in ((ours.end, truth.end), (ours.averages, truth.averages)):
        assert one.keys() == other.keys() == truth.start.keys()
        names = [name for name in other if not name.endswith(NOISE)]
        change = joint(other[name] - truth.start[name] for name in names)
        assert change > 0
        errors.append(joint(one[name] - other[name] for name in names) / change)
    return max(errors)


def joint(arrays: Any) -> float:
    return float(np.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in arrays)))
