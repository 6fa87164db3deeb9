"""What state.json of a checkpoint holds, checked before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adatad.training.model_facts import (
    FORMAT_VERSION,
    CheckpointError,
    ModelFacts,
    check_version,
    first_problem,
    read_facts,
)

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
MAX_NORMALIZER = 1e12
"""Of a running mean of positives in a batch."""
EXTRA_STEPS = 1
"""By which an optimizer's count may pass the run's."""
Count = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    # Not strict as a whole: that would refuse the mapping that JSON gives.
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: Count = 0
    step_in_epoch: Count = 0
    step: Count = 0
    evaluated_epochs: Count = 0
    """Epochs that were complete at the last evaluation."""
    best_mAP: Annotated[float, Field(ge=-1, le=1, strict=True)] = -1.0  # noqa: N815, the field's name for it
    untrained_mAP: Share | None = None  # noqa: N815
    bad_steps: Count = 0
    """Steps so far whose loss or gradients weren't finite, which changed nothing."""
    bad_steps_in_a_row: Count = 0
    seconds: Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Training and evaluation so far."""


NEEDED = ("epoch", "step_in_epoch", "step")
"""Fields of `Progress` that no version may lack; the others have their defaults in older files."""


class _Scaler(BaseModel):
    """Of fp16's loss scale, as torch's GradScaler gives it."""

    model_config = STRICT

    scale: Annotated[float, Field(gt=0)]
    growth_factor: Annotated[float, Field(gt=1)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1, le=2**53)]
    growth_tracker: Annotated[int, Field(ge=0, le=2**31 - 1, alias="_growth_tracker")]


class _State(BaseModel):
    model_config = STRICT

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] | None = None
    progress: Progress
    normalizer: Annotated[float, Field(ge=0, le=MAX_NORMALIZER)]
    scaler: dict[str, Any]
    """{} without one, else as `_Scaler`."""
    frozen_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    optimizer_step: Annotated[float, Field(ge=0)] | None = None
    """Of a checkpoint that ranks wrote in shards: elsewhere it is a tensor."""
    tensors: dict[str, Count] | None = None
    """How many there are of each kind: one that is missing whole, with all that belongs to it, would not be missed."""
    model: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _progress_says_where(cls, content: Any) -> Any:
        progress = content.get("progress") if isinstance(content, dict) else None
        if isinstance(progress, dict) and (gone := [name for name in NEEDED if name not in progress]):
            raise ValueError(f"progress.{gone[0]}: is missing")
        return content

    @model_validator(mode="after")
    def _steps_fit(self) -> _State:
        progress = self.progress
        # Every epoch has a step at least.
        if progress.epoch + progress.step_in_epoch > progress.step:
            raise ValueError(
                f"progress: epoch {progress.epoch} and step {progress.step_in_epoch} in it are more than all "
                f"{progress.step} steps"
            )
        for name in ("bad_steps", "bad_steps_in_a_row"):
            if getattr(progress, name) > progress.step:
                raise ValueError(f"progress.{name}: {getattr(progress, name)} of {progress.step} steps")
        if self.optimizer_step is not None and self.optimizer_step > progress.step + EXTRA_STEPS:
            raise ValueError(f"optimizer_step: {self.optimizer_step:g}, and the run has done {progress.step} steps")
        if progress.evaluated_epochs > progress.epoch:
            raise ValueError(f"progress.evaluated_epochs: {progress.evaluated_epochs} of {progress.epoch} epochs")
        gone = [name for name in ("model", "tensors") if getattr(self, name) is None]
        if self.format_version is not None and gone:
            raise ValueError(f"{gone[0]}: is missing")
        return self


def check_state(content: Any, where: object) -> ModelFacts | None:
    """What a state says of its model, None in files of before it did. Raises CheckpointError, which names the field,
    for a state that can't be one; NewerVersionError if a newer version of the program wrote it."""
    if isinstance(content, dict):
        progress = content.get("progress")
        inside = {f"progress.{name}" for name in progress} if isinstance(progress, dict) else set()
        known = {*_State.model_fields, *(f"progress.{field.name}" for field in fields(Progress))}
        check_version({**dict.fromkeys(inside), **content}, known, where)
    try:
        state = _State.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {first_problem(error)}") from error
    try:
        if state.scaler:
            _Scaler.model_validate(state.scaler)
    except ValidationError as error:
        raise CheckpointError(f"{where}: scaler: {first_problem(error)}") from error
    return read_facts(state.model, f"{where}: model") if state.model is not None else None


def check_position(
    progress: Progress, steps_per_epoch: int, where: object, most_an_epoch: int | None = None
) -> list[str]:
    """Lines on a position that only other epochs than this run's lead to. Raises CheckpointError for one that this run
    doesn't have, or that nothing can lead to.

    most_an_epoch: steps of an epoch with batches of one video, where the data are those of before.
    """
    epoch, inside, step = progress.epoch, progress.step_in_epoch, progress.step
    if inside >= steps_per_epoch and inside:
        raise CheckpointError(
            f"{where}: state.json: progress.step_in_epoch: stands at step {inside} of an epoch that "
            f"has {steps_per_epoch} here; train with the videos and the train.global_batch of before, or start another "
            "run"
        )
    if most_an_epoch is not None and step > epoch * most_an_epoch + inside:
        raise CheckpointError(
            f"{where}: state.json: progress.step: {step} steps, of which {epoch} epochs of {steps_per_epoch} and "
            f"{inside} make {epoch * steps_per_epoch + inside}; with any train.global_batch they are "
            f"{epoch * most_an_epoch + inside} at most"
        )
    if step == epoch * steps_per_epoch + inside:
        return []
    return [
        f"{where}: stands at step {step}, and {epoch} epochs of {steps_per_epoch} steps and {inside} here make "
        f"{epoch * steps_per_epoch + inside}: the videos or train.global_batch were others before"
    ]
