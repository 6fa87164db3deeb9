"""The file of a batch that a training left: all that one rank needs to compute its part of a step again.

A safetensors file, whose header is JSON: reading one that somebody else sent runs no code. Tensors of micro-batch m are
named `m/...` (`tensors_of`), trained parameters `weights/<name>`; the header holds `BatchFacts`, the record of the
model and the spec.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from adatad.convert.weight_file import OWN_META, read_safetensors, write_safetensors
from adatad.data.dataset import Batch
from adatad.errors import UserError
from adatad.files import FileError, listed, parse_json, shown
from adatad.models.losses import Targets
from adatad.training.model_facts import ModelFacts, facts_in_header, first_problem
from adatad.training.model_record import fingerprint_of

CONTENT, RECORD = "bad batch", "batch"
"""`content` of the file's header, and the entry that holds `BatchFacts`."""
FORMAT_VERSION = 1
MAX_RANKS = 100_000
"""Upper bound of ranks, above any cluster's: names are made for each of them."""
WEIGHTS = "weights/"
"""First part of a trained parameter's name in the file."""
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
Text = Annotated[str, Field(max_length=10_000)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NOT_FINITE, LARGE_NORM = "not finite", "large norm"
"""Reasons for which a batch is left."""


class ReplayError(UserError):
    """A batch that can't be computed again; the message names the file and says what to do."""


class WindowFacts(BaseModel):
    """Origin of a window: its video, and the first and last frame that were decoded, numbered as in the labels."""

    model_config = STRICT

    video: Text
    first_frame: int
    last_frame: int


class BatchFacts(BaseModel):
    """Record of a batch, beside its tensors.

    rank of ranks, of which `clip` share a window (this one is number clip_rank of them). precision: the run's, without
    auto. reason: why the batch was left; loss and gradient_norm: of the whole step, as text, as they may be nan;
    median_norm: what the norm was compared with. normalizer: what the losses are divided by. loss_factor: what the loss
    was multiplied by before backward (fp16's loss scale, and the ranks). weights: which moment the trained parameters
    are of; None where they were too large to be left. frozen_fingerprint: of the frozen ones, "" where nobody computed
    it. windows: by micro-batch. fingerprint: of all tensors.
    """

    model_config = STRICT

    batch_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    adatad_version: Text
    torch_version: Text
    step: Count
    rank: Count
    ranks: Annotated[int, Field(ge=1, le=MAX_RANKS)]
    clip: Annotated[int, Field(ge=1, le=MAX_RANKS)]
    clip_rank: Count
    global_batch: Annotated[int, Field(ge=1)]
    engine: Text
    precision: Literal["bf16", "fp16", "fp32"]
    reason: Literal["not finite", "large norm"]
    loss: Text
    gradient_norm: Text
    median_norm: Annotated[float, Field(ge=0)] | None
    normalizer: Positive
    loss_factor: Positive
    weights: Literal["before the step", "after the step"] | None
    frozen_fingerprint: Text
    windows: Annotated[tuple[Annotated[tuple[WindowFacts, ...], Field(strict=False, min_length=1)], ...],
                       Field(strict=False, min_length=1)]  # fmt: skip
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @model_validator(mode="after")
    def _large_norms_have_a_median(self) -> BatchFacts:
        if (self.reason == LARGE_NORM) != (self.median_norm is not None):
            raise ValueError("median_norm: belongs to a large norm, and to no other reason")
        return self


class MicroBatch(NamedTuple):
    """A micro-batch as the model saw it: frames uint8 [b, 3, frames, height, width], augmented; mask bool [b, window];
    keys of stochastic depth and dropout int64 [b]; segments float32 [n, 2] in grid units and labels int64 [n], by
    window; targets of all points."""

    frames: Tensor
    mask: Tensor
    keys: Tensor
    segments: list[Tensor]
    labels: list[Tensor]
    targets: Targets


class BadBatch(NamedTuple):
    """Content of a file. model: names of the outputs and more; weights: trained parameters by name, {} if it has
    none."""

    path: Path
    facts: BatchFacts
    model: ModelFacts
    micro_batches: list[MicroBatch]
    weights: dict[str, Tensor]


def file_name(reason: str, step: int, rank: int) -> str:
    """Return the name of a rank's file of a step."""
    return f"{'large_norm_' if reason == LARGE_NORM else ''}step{step}_rank{rank}.safetensors"


def window_facts(batch: Batch) -> tuple[WindowFacts, ...]:
    """Return the origin of a batch's windows."""
    # As they can be printed: a name that is no text would make the file's header unreadable.
    return tuple(
        WindowFacts(video=shown(w.video.name), first_frame=int(w.indices[0]), last_frame=int(w.indices[-1]))
        for w in batch.windows
    )


def tensors_of(number: int, batch: Batch, frames: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Return the tensors of micro-batch `number` as the file names them. frames: as the model saw them."""
    named = {"frames": frames, "mask": batch.mask, "keys": batch.keys}
    named |= {f"targets/{name}": tensor for name, tensor in targets._asdict().items()}
    named |= {f"segments/{place}": tensor for place, tensor in enumerate(batch.segments_grid)}
    named |= {f"labels/{place}": tensor for place, tensor in enumerate(batch.labels)}
    # Copies: safetensors refuses tensors that share memory, as masks and targets of a loader do.
    return {f"{number}/{name}": t.detach().to("cpu", copy=True).contiguous() for name, t in named.items()}


def write_bad_batch(path: Path, facts: BatchFacts, header: Mapping[str, str], tensors: dict[str, Tensor]) -> None:
    """Write a file atomically. header: the model's record and the spec, as `ModelFacts.header` gives them; the facts'
    fingerprint is that of `tensors`. Raises FileError."""
    record = facts.model_copy(update={"fingerprint": fingerprint_of(tensors)})
    entries = {"content": CONTENT, RECORD: record.model_dump_json(), **header}
    write_safetensors(path, tensors, {OWN_META: json.dumps(entries, ensure_ascii=False)})


def read_bad_batch(path: Path) -> BadBatch:
    """Read a file that a training left, and check that it is whole and can be computed with. Raises ReplayError,
    WeightsError or CheckpointError."""
    # Not Path.is_dir, which raises for names that are too long.
    if os.path.isdir(path):
        folders = path, path / "bad_batches"
        names = sorted(file.name for folder in folders for file in folder.glob("*step*_rank*.safetensors"))
        hint = f"name one of its files: {listed(names)}" if names else "name a file of a run's folder bad_batches"
        raise ReplayError(f"{path}: is a folder; {hint}")
    tensors, header = read_safetensors(path)
    if header.get("content") != CONTENT or RECORD not in header:
        raise ReplayError(f"{path}: is no batch that a training left; name a file of a run's folder bad_batches")
    facts, model = _read_facts(path, header[RECORD]), facts_in_header(header, path)
    if model is None or "spec" not in header:
        raise ReplayError(f"{path}: lacks the spec, or the record of its model; copy it again")
    if fingerprint_of(tensors) != facts.fingerprint:
        raise ReplayError(f"{path}: its numbers aren't those that were written: it is damaged; copy it again")
    batches = [_micro_batch(path, number, len(windows), tensors) for number, windows in enumerate(facts.windows)]
    weights = {name.removeprefix(WEIGHTS): t for name, t in tensors.items() if name.startswith(WEIGHTS)}
    return BadBatch(path, facts, model, batches, weights)


def _read_facts(path: Path, text: str) -> BatchFacts:
    where = f"{path}: {RECORD}"
    try:
        content = parse_json(text, where)
    except FileError as error:
        raise ReplayError(str(error)) from error
    version = content.get("batch_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ReplayError(
            f"{where}: is of version {version}; this program knows versions up to {FORMAT_VERSION}: use the one that "
            "wrote it, or a newer one"
        )
    try:
        return BatchFacts.model_validate(content)
    except ValidationError as error:
        raise ReplayError(f"{where}: {first_problem(error)}; it is damaged, or of another version") from error


def _micro_batch(path: Path, number: int, windows: int, tensors: dict[str, Tensor]) -> MicroBatch:
    """Return a micro-batch, its tensors checked by dtype and shape. Raises ReplayError."""

    def take(name: str, dtype: torch.dtype, *shape: int | None) -> Tensor:
        """Return a tensor of that shape; None: any length."""
        tensor = tensors.get(f"{number}/{name}")
        fits = tensor is not None and tensor.dtype == dtype and tensor.dim() == len(shape)
        if not fits or any(want not in (None, got) for want, got in zip(shape, tensor.shape, strict=True)):
            got = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            want = ", ".join("any" if length is None else str(length) for length in shape)
            raise ReplayError(f"{path}: {number}/{name}: expected {dtype} [{want}], got {got}; copy the file again")
        return tensor

    classes = take("targets/classes", torch.float32, windows, None, None)
    points = classes.shape[1]
    return MicroBatch(
        frames=take("frames", torch.uint8, windows, 3, None, None, None),
        mask=take("mask", torch.bool, windows, None),
        keys=take("keys", torch.int64, windows),
        segments=[take(f"segments/{place}", torch.float32, None, 2) for place in range(windows)],
        labels=[take(f"labels/{place}", torch.int64, None) for place in range(windows)],
        targets=Targets(
            classes,
            take("targets/offsets", torch.float32, windows, points, 2),
            take("targets/positive", torch.bool, windows, points),
            take("targets/valid", torch.bool, windows, points),
        ),
    )
