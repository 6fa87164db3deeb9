"""Backbone files in mmaction2's naming, which OpenTAD's settings name, out of any file that we read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from adatad.convert.backbone import name_few, sizes_of
from adatad.convert.layouts import MMACTION, find_encoder
from adatad.convert.weight_file import WeightsError, read_weight_file
from adatad.models.vit import sine_table

IMAGE_PIXELS, CLIP_FRAMES = 224, 16
"""Of the clips that the published backbones were trained on: they size the position table."""


def convert_backbone(source: Path, output: Path) -> list[str]:
    """Write a backbone file for OpenTAD (.pth), or in our own names (.safetensors); returns lines about what was done.

    The table of positions, which OpenTAD keeps beside the weights, is computed if the file has none. `output` appears
    only when whole. Raises WeightsError.
    """
    file = read_weight_file(source).tensors
    found = find_encoder(file, source)
    if found.unknown:
        raise WeightsError(f"{source} ({found.title}): has parts that VideoMAE doesn't have: {name_few(found.unknown)}")
    ours = {name: tensor.contiguous().clone() for name, tensor in found.tensors.items()}
    unfinished = output.with_name(f".{output.name}.unfinished")
    if output.suffix == ".safetensors":
        save_file(ours, unfinished)
    else:
        named = {_mmaction_name(name): tensor for name, tensor in ours.items()}
        named["backbone.pos_embed"] = found.positions if found.positions is not None else _positions(found.tensors)
        named |= {f"backbone.{n}": t for n, t in file.items() if n.startswith("fc_norm.")}
        named |= {f"cls_head.fc_cls.{n.removeprefix('head.')}": t for n, t in file.items() if n.startswith("head.")}
        torch.save({"meta": {}, "state_dict": named}, unfinished)
    unfinished.replace(output)
    sizes = ", ".join(f"{key} {value}" for key, value in sizes_of({n: t.shape for n, t in ours.items()}).items())
    ignored = [f"  left out, {reason}: {name}" for name, reason in found.ignored.items()]
    return [f"{source}: {found.title}, {sizes}", f"{output}: {len(ours)} tensors of the encoder", *ignored]


def _mmaction_name(name: str) -> str:
    for theirs, ours in MMACTION.renames:
        name = name.replace(ours, theirs)
    return f"backbone.{name}"


def _positions(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    width, _, tubelet, _, patch = tensors["patch_embed.weight"].shape
    return sine_table(CLIP_FRAMES // tubelet * (IMAGE_PIXELS // patch) ** 2, width)
