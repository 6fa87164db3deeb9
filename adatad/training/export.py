"""Trained weights as one plain safetensors file, for people who have no use for a checkpoint directory, or as a
checkpoint of OpenTAD, for its tools.

Names are the model's own. A file holds the trained tensors alone, or (merged) all of the model's parameters, so that it
needs no backbone file beside it. The file's header says which, and of which checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adatad.convert.backbone import initial_weights
from adatad.convert.checkpoint import opentad_state
from adatad.models.detector import TemporalActionDetector, build_model
from adatad.models.vit import sine_table
from adatad.spec import Spec
from adatad.training.checkpoint import Checkpoint, CheckpointError, fingerprint

TRAINED, MERGED = "trained", "merged"


def export(spec: Spec, checkpoint: Checkpoint, output: Path, averages: bool = True, merged: bool = False) -> int:
    """Write a checkpoint's averages (or its last parameters) to `output`, which appears only when whole.

    merged: with the frozen weights of `spec.model.backbone.weights`. Returns the number of tensors.
    """
    tensors = dict(checkpoint.ema if averages else checkpoint.parameters)
    if merged:
        tensors = merge(spec, checkpoint, tensors)
    facts = {
        "content": MERGED if merged else TRAINED,
        "weights": "moving averages" if averages else "parameters of the last step",
        "step": str(checkpoint.state["progress"]["step"]),
        "frozen_fingerprint": checkpoint.state["frozen_fingerprint"],
    }
    unfinished = output.with_name(f".{output.name}.unfinished")
    save_file(tensors, unfinished, metadata=facts)
    unfinished.replace(output)
    return len(tensors)


def export_opentad(spec: Spec, checkpoint: Checkpoint, output: Path) -> int:
    """Write a checkpoint as OpenTAD's, with its averages and its last parameters, frozen weights in both. Returns the
    number of entries of each."""
    normalizer = checkpoint.state["normalizer"]
    last = opentad_state(whole_model(spec, checkpoint, checkpoint.parameters), normalizer)
    averages = opentad_state(whole_model(spec, checkpoint, checkpoint.ema), normalizer)
    content = {"epoch": checkpoint.state["progress"]["epoch"], "state_dict": last, "state_dict_ema": averages}
    unfinished = output.with_name(f".{output.name}.unfinished")
    torch.save(content, unfinished)
    unfinished.replace(output)
    return len(last)


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
    torch.manual_seed(spec.train.seed)
    model = build_model(spec.model, classes_in(tensors))
    initial_weights(model.backbone, spec.model.backbone.weights)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tensors)
    if fingerprint(model) != checkpoint.state["frozen_fingerprint"]:
        raise CheckpointError(
            "the frozen weights that model.backbone.weights names aren't those of the training: no whole model can "
            "be written"
        )
    model.load_state_dict(tensors, strict=False)
    return model


def classes_in(tensors: dict[str, Tensor]) -> int:
    """Outputs of the head that a checkpoint was trained with."""
    return len(tensors["detector.head.cls_head.bias"])


def holds_frozen_weights(path: Path) -> bool:
    """Whether a file of weights is whole, so that none of pretrained weights is needed beside it: a merged one, or a
    checkpoint of OpenTAD."""
    if path.suffix != ".safetensors":
        return path.is_file()
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("content") == MERGED
    except (OSError, SafetensorError):
        return False


def load_exported(model: nn.Module, trained: list[str], path: Path) -> None:
    """Put a file that `export` wrote into a model with its frozen weights. Raises CheckpointError if it is of another
    model or another backbone; nothing is changed then."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    shapes = {name: p.shape for name, p in model.named_parameters()}
    wanted = shapes if facts.get("content") == MERGED else {name: shapes[name] for name in trained}
    got = {name: tensor.shape for name, tensor in tensors.items()}
    different = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if different:
        raise CheckpointError(
            f"{path}: holds other parameters than this spec trains ({len(different)} differ, such as {different[0]})"
        )
    if facts.get("content") == TRAINED and facts["frozen_fingerprint"] != fingerprint(model):
        raise CheckpointError(f"{path}: was trained on other frozen weights than model.backbone.weights gives")
    model.load_state_dict(tensors, strict=False)
