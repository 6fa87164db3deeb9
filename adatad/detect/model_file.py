"""Model files: one safetensors file with all weights of a detector, and what it takes to detect by it.

`adatad export` writes them. Reading one executes nothing: its header is JSON and YAML of plain values, and its tensors
are checked by `adatad.training.export.load_exported` when they are put into a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from adatad.convert.weight_file import brief, name_few, read_header
from adatad.models.detector import build_model
from adatad.spec import Spec
from adatad.spec.model_sections import ModelSpec
from adatad.training.export import POSITIONS, own_spec
from adatad.training.model_facts import (
    MERGED,
    TRAINED,
    CheckpointError,
    ModelFacts,
    check_outputs,
    cut,
    facts_in_header,
)
from adatad.training.model_record import RECORD, ModelRecord, record_in_header

DEFAULT_THRESHOLD = 0.3
"""Threshold of a class where nothing was measured: of sigmoid scores, a plain one."""


@dataclass(frozen=True)
class ModelFile:
    """Facts of a model file; no tensor has been read.

    size_bytes: of the file. facts: outputs, classes, window, frame rate and preprocessing; spec: the experiment, with
    random backbone weights, since the file has the trained model's; spec_yaml: its text as it was saved. weights: which
    parameters of the checkpoint it holds, in words; step: optimizer steps that they were trained, None of OpenTAD's.
    record: scores, thresholds, licence, fingerprint, and where the weights are from.
    """

    path: Path
    size_bytes: int
    facts: ModelFacts
    spec: Spec
    spec_yaml: str
    weights: str
    step: int | None
    record: ModelRecord


def read_model_file(path: str | Path) -> ModelFile:
    """Return the facts of a model file. Raises UserError, which names the file, for what is none: damaged, of a newer
    version, of another project, without a part of the record, or with tensors that aren't its spec's model."""
    path = Path(path)
    shapes, header = read_header(path)
    content = header.get("content")
    # Before what it lacks: a newer file may look otherwise.
    facts = facts_in_header(header, path)
    if content == TRAINED:
        raise CheckpointError(
            f"{path}: holds the trained tensors alone, without the backbone's; export the run without --trained-only"
        )
    if content != MERGED or facts is None:
        what = "" if content is None else f" (its content is {cut(content)})"
        raise CheckpointError(f"{path}: is no model file of adatad{what}; adatad export RUN --output FILE writes one")
    # None in files that are ours but hold no model, such as checkpoints' parts.
    record = record_in_header(header, path)
    gone = [name for name in (RECORD, "spec", "weights") if not header.get(name)]
    if gone:
        raise CheckpointError(f"{path}: its header has no {', '.join(gone)}: an older file, or edited; export it again")
    _check_record(facts, record, path)
    # The header's weights are the model's: none are looked for elsewhere.
    spec = own_spec(path, ["model.backbone.weights=random"], check_files=False)
    _check_shapes(spec, facts, shapes, path)
    step = _whole_number(header.get("step"), path)
    return ModelFile(path, path.stat().st_size, facts, spec, header["spec"], header["weights"], step, record)


def _check_record(facts: ModelFacts, record: ModelRecord, path: Path) -> None:
    """Raise CheckpointError if classes have no threshold, or thresholds no class."""
    named = record.thresholds and record.thresholds.by_class.keys() ^ set(facts.classes)
    if named:
        raise CheckpointError(
            f"{path}: model.thresholds.by_class: isn't of its classes ({brief(sorted(named)[0])}); export it again"
        )


def _check_shapes(spec: Spec, facts: ModelFacts, shapes: dict[str, list[int]], path: Path) -> None:
    """Raise CheckpointError unless the tensors are those of the spec's model, by name and shape."""
    check_outputs(facts, shapes, path)
    wanted = dict(shapes_of_model(spec.model, len(facts.outputs)))
    # It is in files alone whose table isn't the one that everybody computes.
    if POSITIONS not in shapes:
        wanted.pop(POSITIONS, None)
    problems = [f"missing {brief(name)}" for name in wanted if name not in shapes]
    problems += [f"unknown {brief(name)}" for name in shapes if name not in wanted]
    problems += [
        f"{name} is {tuple(shapes[name])}, expected {shape}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    if problems:
        raise CheckpointError(f"{path}: its tensors aren't those of its spec's model: {name_few(problems, '; ')}")


@cache
def shapes_of_model(spec: ModelSpec, outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters of a model and of its position table, if any. Nothing is allocated."""
    # The largest model has a billion parameters, and only their shapes are asked for.
    with torch.device("meta"):
        model = build_model(spec, outputs)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # A detector of features has no backbone, and not every backbone has a table.
    table = None if model.backbone is None else model.backbone.position_table
    return shapes if table is None else {**shapes, POSITIONS: tuple(table.shape)}


def _whole_number(text: str | None, path: Path) -> int | None:
    if text is None:
        return None
    # isdigit alone takes digits of other scripts, and int() numbers of any length.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CheckpointError(f"{path}: step: expected a whole number, got {cut(text)}")
    return int(text)
