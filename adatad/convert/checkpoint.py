"""Whole checkpoints of OpenTAD, both ways: one trained there into our model, and our model as one that is loaded there.

OpenTAD loads strictly, so that a file for it also holds the position table, and what no feature depends on: the norm
that is never used and the running count of positives.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from adatad.convert.backbone import Loaded, take_positions
from adatad.convert.opentad import is_dropped, opentad_name, our_name
from adatad.convert.weight_file import WeightFile, WeightsError, brief, check_values, name_few, read_weight_file
from adatad.models.detector import TemporalActionDetector

VIT = "module.backbone.model.backbone."


def load_opentad(
    model: TemporalActionDetector, path: Path, averages: bool = True, file: WeightFile | None = None
) -> Loaded:
    """Put all of a checkpoint (its moving averages, if it has them) into a model of the same shape, frozen weights too.

    file: what was read of it, if it was. Raises WeightsError, with nothing changed, which names what is missing,
    unknown, of another size, or can't be a weight.
    """
    file = file or read_weight_file(path, averages)
    tensors, unknown = _ours(file.tensors)
    wanted = dict(model.named_parameters())
    problems = [f"missing {opentad_name(name)}" for name in wanted if name not in tensors]
    problems += [f"unknown {brief(name)}" for name in unknown]
    problems += [f"unknown {opentad_name(name)}" for name in tensors if name not in wanted]
    problems += [
        f"{opentad_name(name)} is {tuple(tensors[name].shape)}, the spec's {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if problems:
        raise WeightsError(
            f"{path}: isn't an OpenTAD checkpoint of this spec's model: {name_few(problems, '; ')}. Its variant "
            "(model.backbone.mode, preset, adapter) and number of classes must be the spec's"
        )
    check_values(tensors, path)
    # First, since it may refuse a table.
    positions = take_positions(model.backbone, file.tensors.get(f"{VIT}pos_embed".removeprefix("module.")), path)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    ignored = {"without effect on features": [name for name in file.tensors if is_dropped(name)]}
    title = f"OpenTAD checkpoint, {'moving averages' if file.averaged else 'parameters'}"
    return Loaded(title, len(wanted), ignored, positions)


def _ours(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """By our names, and the names that have no place in any AdaTAD model."""
    ours, unknown = {}, []
    for name, tensor in tensors.items():
        if is_dropped(name):
            continue
        try:
            ours[our_name(name)] = tensor
        except KeyError:
            unknown.append(name)
    return ours, unknown


def opentad_state(model: TemporalActionDetector, normalizer: float) -> dict[str, Tensor]:
    """All entries of OpenTAD's state dict for a model, in fp32 copies. normalizer: the running count of positives.

    Raises WeightsError for adapters without temporal convolution, which OpenTAD doesn't have.
    """
    backbone = model.backbone
    if backbone.mode == "plain":
        raise WeightsError("model.backbone.mode plain: OpenTAD has no adapters without temporal convolution")
    state = {opentad_name(name): p.detach().float().clone() for name, p in model.named_parameters()}
    state[f"{VIT}pos_embed"] = backbone.position_table.float().clone()
    if backbone.mode != "side":
        state[f"{VIT}fc_norm.weight"] = torch.ones(backbone.width)
        state[f"{VIT}fc_norm.bias"] = torch.zeros(backbone.width)
    state["module.rpn_head.loss_normalizer"] = torch.tensor(float(normalizer))
    return state
