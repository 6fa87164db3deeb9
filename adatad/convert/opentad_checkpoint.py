"""Whole checkpoints of OpenTAD, both ways: one trained there into our model, and our model as one that is loaded there.

OpenTAD stores the whole model under `module.`: the ViT in `backbone.model.backbone.`, the detector beside it. It loads
strictly, so that a file for it also holds the position table, which is computed here, and what no feature depends on:
the norm that is never used (`fc_norm`) and the running count of positives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from adatad.convert.backbone_weights import Loaded, take_positions
from adatad.convert.layouts import rename
from adatad.convert.weight_file import WeightFile, WeightsError, brief, check_values, name_few, read_weight_file
from adatad.models.detector import TemporalActionDetector
from adatad.models.videomae import VideoMAE

# Prefixes of names there, and here; the first that fits counts, in both directions, so the longer ones come first.
PREFIXES = (
    ("backbone.model.backbone.patch_embed.projection.", "backbone.patch_embed."),
    ("backbone.model.backbone.ladders.adapters.", "backbone.side_adapters."),
    ("backbone.model.backbone.", "backbone."),
    ("projection.", "detector.projection."),
    ("neck.fpn_norms.", "detector.neck.norms."),
    ("neck.", "detector.neck."),
    ("rpn_head.scale.", "detector.head.scales."),
    ("rpn_head.", "detector.head."),
)
IN_BACKBONE = (
    (".mlp.layers.0.0.", ".mlp.fc1."),
    (".mlp.layers.1.", ".mlp.fc2."),
    (".dwconv.", ".depthwise."),
    (".conv.", ".pointwise."),
    (".down_proj.", ".down."),
    (".up_proj.", ".up."),
)
# OpenTAD's MLP has a dropout module in its list of layers where ours has none: the numbers shift by one.
IN_DETECTOR = (
    (".mlp.3.", ".mlp.2."),
    (".drop_path_attn.scale", ".attn_scale"),
    (".drop_path_mlp.scale", ".mlp_scale"),
)
NORMALIZER = "rpn_head.loss_normalizer"
"""Key of the running count of positives, which is no parameter here: the trainer keeps it."""
VIT = "module.backbone.model.backbone."
"""Prefix of the ViT's entries in OpenTAD's state dict."""


def load_opentad(
    model: TemporalActionDetector, path: Path, averages: bool = True, file: WeightFile | None = None
) -> Loaded:
    """Load a whole checkpoint (its moving averages, if it has them) into a model of the same shape, frozen weights too.

    file: its content, if it was read already. Raises WeightsError, with nothing changed, naming what is missing,
    unknown, of another size, or can't be a weight.
    """
    file = file or read_weight_file(path, averages)
    # Frozen weights too: OpenTAD saves the model in full, so that no pretrained file is needed.
    tensors, unknown = by_our_names(file.tensors)
    wanted = dict(model.named_parameters())
    problems = [f"missing {opentad_name(name)}" for name in wanted if name not in tensors]
    problems += [f"unknown {brief(name)}" for name in unknown]
    # Under OpenTAD's names, which the user can look up in that file.
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
    # Before any weight is copied, since it may still refuse the table.
    positions = take_positions(model.backbone, file.tensors.get(f"{VIT}pos_embed".removeprefix("module.")), path)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    ignored = {"without effect on features": [name for name in file.tensors if is_dropped(name)]}
    title = f"OpenTAD checkpoint, {'moving averages' if file.averaged else 'parameters'}"
    return Loaded(title, len(wanted), ignored, positions)


def by_our_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors of an OpenTAD checkpoint by our names, and the names that have no place in any AdaTAD model."""
    ours, unknown = {}, []
    for name, tensor in tensors.items():
        # Listed as ignored by the caller.
        if is_dropped(name):
            continue
        try:
            ours[our_name(name)] = tensor
        except KeyError:
            unknown.append(name)
    return ours, unknown


def opentad_state(model: TemporalActionDetector, normalizer: float) -> dict[str, Tensor]:
    """Return OpenTAD's state dict of a model, in fp32 copies. normalizer: the running count of positives.

    Raises WeightsError for what OpenTAD doesn't have: adapters without temporal convolution, other backbones.
    """
    backbone = model.backbone
    if not isinstance(backbone, VideoMAE):
        raise WeightsError("model.backbone.preset: OpenTAD has no backbone but VideoMAE; export without --opentad")
    if backbone.mode == "plain":
        raise WeightsError("model.backbone.mode plain: OpenTAD has no adapters without temporal convolution")
    state = {opentad_name(name): p.detach().float().clone() for name, p in model.named_parameters()}
    state[f"{VIT}pos_embed"] = backbone.position_table.float().clone()
    if backbone.mode != "side":
        # OpenTAD's model has a norm after its last block whose output is never used; its loader wants the entries.
        state[f"{VIT}fc_norm.weight"] = torch.ones(backbone.width)
        state[f"{VIT}fc_norm.bias"] = torch.zeros(backbone.width)
    state["module.rpn_head.loss_normalizer"] = torch.tensor(float(normalizer))
    return state


def is_dropped(name: str) -> bool:
    """Return whether an OpenTAD entry has no place in our model."""
    name = name.removeprefix("module.")
    return name.endswith(".pos_embed") or ".fc_norm." in name or name == NORMALIZER


def our_name(name: str) -> str:
    """Return our parameter name for an entry of an OpenTAD state dict (with or without `module.`). Raises KeyError."""
    bare = name.removeprefix("module.")
    for theirs, ours in PREFIXES:
        if bare.startswith(theirs):
            inside = IN_BACKBONE if ours.startswith("backbone.") else IN_DETECTOR
            # OpenTAD's Scale is a module around one number; here the number is the parameter itself.
            result = rename(ours + bare.removeprefix(theirs), inside)
            return result.removesuffix(".scale") if theirs == "rpn_head.scale." else result
    raise KeyError(f"no parameter of an AdaTAD model is called {name!r}")


def opentad_name(name: str) -> str:
    """Return OpenTAD's name, with `module.`, for one of our parameters. Raises KeyError."""
    for theirs, ours in PREFIXES:
        if name.startswith(ours):
            inside = IN_BACKBONE if ours.startswith("backbone.") else IN_DETECTOR
            # The same pairs the other way round: each replaced part is unique in both directions.
            result = theirs + rename(name.removeprefix(ours), [(to, of) for of, to in inside])
            return f"module.{result}" + (".scale" if theirs == "rpn_head.scale." else "")
    raise KeyError(f"{name!r} is no parameter of an AdaTAD model")


def name_map(names: Iterable[str]) -> dict[str, str]:
    """Return {OpenTAD name: our name} of all entries that have a place in our model."""
    return {name: our_name(name) for name in names if not is_dropped(name)}
