"""Record of a model file beside its `ModelFacts`: scores, thresholds, licence, and where its weights are from.

One JSON object under `RECORD` in the file's header; `ModelFacts` and the spec stand beside it, as in every file of
weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from adatad.files import FileError, parse_json
from adatad.training.model_facts import CheckpointError, Name, first_problem

RECORD = "model"
"""Entry of the header."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes that weights may be stored in."""
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=10_000)]


class ModelScores(BaseModel):
    """mAP on the validation videos, in 0..1. by_tiou: by tIoU, written as in result.json ("0.5")."""

    model_config = STRICT

    average_mAP: Share  # noqa: N815, the field's name for it
    by_tiou: dict[Name, Share]


class StoredThreshold(BaseModel):
    """Score from which detections are kept, and what that gives on the validation videos."""

    model_config = STRICT

    # No share: scores times a classifier's may lie above 1.
    threshold: float
    precision: Share
    recall: Share
    f1: Share


class StoredThresholds(BaseModel):
    """Thresholds with the best F1 at a tIoU. overall: of all classes together; from_overall: classes that have that one
    for want of their own."""

    model_config = STRICT

    tiou: Annotated[float, Field(gt=0, le=1)]
    overall: StoredThreshold
    by_class: dict[Name, StoredThreshold]
    from_overall: Annotated[tuple[Name, ...], Field(strict=False)] = ()


class ModelRecord(BaseModel):
    """Record of a model file, beyond names, window, frame rate and spec.

    fingerprint: of all its tensors (`fingerprint_of`). dtype: of its matrices. chosen: which checkpoint of the run it
    is; checkpoint: its name. training_fps: median rate of the annotated videos, where the spec leaves the rate to them.
    scores, thresholds: None where nothing was measured; thresholds_from: the detections that they were chosen on, or
    why there are none.
    """

    model_config = STRICT

    adatad_version: Text
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    chosen: Literal["best", "last", "named", "opentad"]
    checkpoint: Text
    epoch: Annotated[int, Field(ge=0)] | None = None
    licence: Text
    data_licence: Text | None = None
    training_fps: Annotated[float, Field(gt=0)] | None = None
    scores: ModelScores | None = None
    thresholds: StoredThresholds | None = None
    thresholds_from: Text = ""

    @model_validator(mode="after")
    def _thresholds_are_of_classes(self) -> ModelRecord:
        if self.thresholds and not set(self.thresholds.from_overall) <= self.thresholds.by_class.keys():
            raise ValueError("thresholds.from_overall: names classes that by_class hasn't")
        return self


def record_in_header(header: Mapping[str, str], where: object) -> ModelRecord | None:
    """Return the record in a file's header, None if it has none. Raises CheckpointError."""
    # Older files, and those of trained tensors alone.
    if RECORD not in header:
        return None
    place = f"{where}: {RECORD}"
    try:
        return ModelRecord.model_validate(parse_json(header[RECORD], place))
    except FileError as error:
        raise CheckpointError(str(error)) from error
    except ValidationError as error:
        raise CheckpointError(f"{place}: {first_problem(error)}") from error


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, dtypes, shapes and values, whatever their order."""
    digest = hashlib.sha256()
    # Files may hold them in any order.
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # A number without dimensions has no bytes to view until it is a list of one.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
