"""Trained weights as one plain safetensors file, for people who have no use for a checkpoint directory, or as a
checkpoint of OpenTAD, for its tools.

Names are the model's own. A file holds the trained tensors alone, or (merged) all of the model's parameters, so that it
needs no backbone file beside it. The file's header says which, and of which checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from adatad.convert.backbone_weights import initial_weights
from adatad.convert.opentad_checkpoint import opentad_state
from adatad.convert.weight_file import (
    META,
    OWN_META,
    brief,
    check_values,
    read_safetensors,
    write_safetensors,
    write_torch,
)
from adatad.files import check_output
from adatad.models.detector import TemporalActionDetector, build_model
from adatad.models.vit import sine_table
from adatad.spec import Spec
from adatad.training.checkpoint import Checkpoint, CheckpointError, fingerprint
from adatad.training.model_facts import (
    HEAD_BIAS,
    MERGED,
    TRAINED,
    check_outputs,
    cut,
    facts_in_header,
    number_of_outputs,
)


def export(spec: Spec, checkpoint: Checkpoint, output: Path, averages: bool = True, merged: bool = False) -> int:
    """Write a checkpoint's averages (or its last parameters) to `output`, which appears only when whole.

    merged: with the frozen weights of `spec.model.backbone.weights`. Returns the number of tensors.
    """
    check_output(output)
    tensors = dict(checkpoint.ema if averages else checkpoint.parameters)
    if merged:
        tensors = merge(spec, checkpoint, tensors)
    header = {
        "content": MERGED if merged else TRAINED,
        "weights": "moving averages" if averages else "parameters of the last step",
        "step": str(checkpoint.state["progress"]["step"]),
        "frozen_fingerprint": checkpoint.state["frozen_fingerprint"],
        **_facts(checkpoint),
    }
    write_safetensors(output, tensors, header)
    return len(tensors)


def export_opentad(spec: Spec, checkpoint: Checkpoint, output: Path) -> int:
    """Write a checkpoint as OpenTAD's, with its averages and its last parameters, frozen weights in both. Returns the
    number of entries of each. What the file is stands beside them, where OpenTAD doesn't look."""
    check_output(output)
    normalizer = checkpoint.state["normalizer"]
    last = opentad_state(whole_model(spec, checkpoint, checkpoint.parameters), normalizer)
    averages = opentad_state(whole_model(spec, checkpoint, checkpoint.ema), normalizer)
    meta = {OWN_META: _facts(checkpoint)}
    content = {"epoch": checkpoint.state["progress"]["epoch"], "state_dict": last, "state_dict_ema": averages}
    write_torch(output, {**content, META: meta})
    return len(last)


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Of a checkpoint of before names were kept, the spec alone."""
    facts = checkpoint.facts
    return facts.header(checkpoint.spec_yaml) if facts else {"spec": checkpoint.spec_yaml}


def merge(spec: Spec, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All parameters of the model. Raises CheckpointError if its frozen weights aren't those of the training, or if
    they came with a position table of their own."""
    model = whole_model(spec, checkpoint, tensors)
    table = model.backbone.position_table
    if not torch.allclose(table, sine_table(*table.shape[1:]), atol=1e-3):
        raise CheckpointError(
            "the file that model.backbone.weights names has a position table that isn't the sine table, which a merged "
            "file can't hold: export it with --opentad"
        )
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def whole_model(spec: Spec, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> TemporalActionDetector:
    """The model with its frozen weights and these trained tensors. Raises CheckpointError if the frozen weights aren't
    those of the training."""
    if not number_of_outputs({name: tensor.shape for name, tensor in tensors.items()}):
        raise CheckpointError(f"the checkpoint is of no detector: it trains no {HEAD_BIAS}")
    torch.manual_seed(spec.train.seed)
    model = build_model(spec.model, len(tensors[HEAD_BIAS]))
    initial_weights(model.backbone, spec.model.backbone.weights)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise CheckpointError(f"the checkpoint's own spec builds a model without its {brief(name)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in tensors)
    if fingerprint(model) != checkpoint.state["frozen_fingerprint"]:
        raise CheckpointError(
            "the frozen weights that model.backbone.weights names aren't those of the training: no whole model can "
            "be written"
        )
    model.load_state_dict(tensors, strict=False)
    return model


def load_exported(model: nn.Module, trained: list[str], path: Path) -> None:
    """Put a file that `export` wrote, or parameters or averages of a checkpoint, into a model with its frozen weights.
    Raises CheckpointError if it is of another model or another backbone; nothing is changed then."""
    tensors, header = read_safetensors(path)
    content = header.get("content")
    if content not in (None, TRAINED, MERGED):
        raise CheckpointError(f"{path}: content: expected {TRAINED} or {MERGED}, got {cut(content)}")
    check_outputs(facts_in_header(header, path), {name: t.shape for name, t in tensors.items()}, path)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    wanted = shapes if content == MERGED else {name: shapes[name] for name in trained}
    got = {name: tensor.shape for name, tensor in tensors.items()}
    different = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if different:
        raise CheckpointError(
            f"{path}: holds other parameters than this spec trains ({len(different)} differ, such as "
            f"{brief(different[0])})"
        )
    if content == TRAINED and "frozen_fingerprint" not in header:
        raise CheckpointError(
            f"{path}: frozen_fingerprint: is missing, so that nobody knows which frozen weights belong to it; export "
            "it again"
        )
    if content == TRAINED and header["frozen_fingerprint"] != fingerprint(model):
        raise CheckpointError(f"{path}: was trained on other frozen weights than model.backbone.weights gives")
    check_values(tensors, path)
    model.load_state_dict(tensors, strict=False)
