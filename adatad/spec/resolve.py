"""What `compat` and every `auto` of a spec come to: below this module nobody asks for these words.

`adatad.training.resolve` asks here when a run begins, and builds the run's other facts, which need annotations,
devices and ranks; this package imports none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS, Spec

Engine = Literal["ddp", "fsdp", "zero1", "zero2", "zero3", "fairscale"]
Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Quirks:
    """Habits of the reference implementation that a run repeats (docs/compat.md): all under `compat: reference`."""

    keep_ambiguous: bool = False
    """THUMOS-14's "Ambiguous" is a class in lists taken from the annotation file, and is scored; none trains on it."""
    match_subset_parts: bool = False
    """A video is in a subset if its own subset's name is a part of the wanted name ("val" in "validation")."""
    keep_empty: bool = False
    """Instances that end before they start, or lie outside their video, are trained on unless `filter_short` is set."""
    truncate_frames: bool = False
    """Seconds become frame numbers by truncation, also where rounding put a time just below a frame's own."""
    draw_once_per_run: bool = False
    """RandAugment's signs and color jitter's order are drawn once a run instead of once a sample."""
    repeat_windows: bool = False
    """A last sliding window that fits exactly comes twice, and a tail that no step reaches has no window."""
    misplace_classes: bool = False
    """A detected EPIC class number that isn't annotated counts as the annotated class at that position."""

    @classmethod
    def of(cls, compat: Literal["fixed", "reference"]) -> Quirks:
        """Return all of the reference's habits for `reference`, none otherwise."""
        return cls(True, True, True, True, True, True, True) if compat == "reference" else cls()


def without_auto(spec: Spec, engine: Engine, precision: Precision) -> Spec:
    """Return the spec with the engine and the precision that were chosen, and with all that follows from the two in
    place of the `auto` of its memory section.

    Three keys keep theirs: `frozen_dtype` and `saved_input_dtype`, where `auto` asks for no other dtype, and `policy`,
    which is the planner's to replace before a model is run.
    """
    memory = spec.memory
    # Weights that come to the device one block at a time need all tiles of a block before those of the next.
    one_at_a_time = (
        engine in SHARDS_FROZEN_WEIGHTS or memory.frozen_weights == "stream" or memory.frozen_dtype != "auto"
    )
    weight_dtype = precision if memory.weight_dtype == "auto" else memory.weight_dtype
    chosen = {
        "order": memory.order if memory.order != "auto" else "blocks" if one_at_a_time else "tiles",
        "weight_dtype": weight_dtype,
        "residual_dtype": weight_dtype if memory.residual_dtype == "auto" else memory.residual_dtype,
    }
    return spec.model_copy(
        update={
            "memory": memory.model_copy(update=chosen),
            "parallel": spec.parallel.model_copy(update={"engine": engine}),
            "train": spec.train.model_copy(update={"precision": precision}),
        }
    )


def steps_per_epoch(spec: Spec, training_videos: int) -> int:
    """Return the optimizer steps of an epoch: videos that fill no batch are left out of it."""
    return training_videos // spec.train.global_batch


def end_epoch(spec: Spec) -> int:
    """Return how many epochs are trained."""
    return spec.schedule.end_epoch or spec.schedule.epochs
