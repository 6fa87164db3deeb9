"""Backbone files in mmaction2's naming, which OpenTAD's settings name, out of any file that we read."""

from __future__ import annotations

from pathlib import Path

import torch

from adatad.convert.backbone import check_parts, encoder_shapes, sizes_of
from adatad.convert.layouts import MMACTION, Found, find_encoder
from adatad.convert.weight_file import (
    WeightsError,
    brief,
    check_values,
    name_few,
    read_weight_file,
    write_safetensors,
    write_torch,
)
from adatad.files import check_output
from adatad.models.vit import sine_table

IMAGE_PIXELS, CLIP_FRAMES = 224, 16
"""Of the clips that the published backbones were trained on: they size the position table."""
SMALLEST_PATCH = 4
"""In pixels; smaller ones would make a table larger than the backbone."""


def convert_backbone(source: Path, output: Path) -> list[str]:
    """Write a backbone file for OpenTAD (.pth), or in our own names (.safetensors); returns lines about what was done.

    The table of positions, which OpenTAD keeps beside the weights, is computed if the file has none. `output` appears
    only when whole. Raises WeightsError.
    """
    check_output(output)
    file = read_weight_file(source).tensors
    if output.resolve() == source.resolve():
        raise WeightsError(f"{output}: is the file that is read; name another for what is written")
    found = find_encoder(file, source)
    if found.unknown:
        raise WeightsError(f"{source} ({found.title}): has parts that VideoMAE doesn't have: {name_few(found.unknown)}")
    sizes = sizes_of({name: tensor.shape for name, tensor in found.tensors.items()})
    if not all(sizes.values()):
        raise WeightsError(f"{source} ({found.title}): isn't a whole encoder: {_listed(sizes)}")
    check_parts(found, encoder_shapes(sizes), source)
    ours = {name: tensor.contiguous().clone() for name, tensor in found.tensors.items()}
    if output.suffix == ".safetensors":
        write_safetensors(output, ours)
    else:
        named = {_mmaction_name(name): tensor for name, tensor in ours.items()}
        named["backbone.pos_embed"] = _positions(found, sizes, source)
        named |= {f"backbone.{n}": t for n, t in file.items() if n.startswith("fc_norm.")}
        named |= {f"cls_head.fc_cls.{n.removeprefix('head.')}": t for n, t in file.items() if n.startswith("head.")}
        write_torch(output, {"meta": {}, "state_dict": named})
    ignored = [f"  left out, {reason}: {brief(name)}" for name, reason in found.ignored.items()]
    return [f"{source}: {found.title}, {_listed(sizes)}", f"{output}: {len(ours)} tensors of the encoder", *ignored]


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def _mmaction_name(name: str) -> str:
    for theirs, ours in MMACTION.renames:
        name = name.replace(ours, theirs)
    return f"backbone.{name}"


def _positions(found: Found, sizes: dict[str, int], source: Path) -> torch.Tensor:
    """The file's table, or a computed one for the clips of the published backbones."""
    if found.positions is not None:
        check_values({"pos_embed": found.positions}, source)
        return found.positions
    clips, pixels = sizes["tubelet"], sizes["patch"]
    if CLIP_FRAMES % clips or not SMALLEST_PATCH <= pixels <= IMAGE_PIXELS:
        raise WeightsError(
            f"{source}: patches of {clips} x {pixels} x {pixels} give no table of positions for clips of "
            f"{CLIP_FRAMES} x {IMAGE_PIXELS} x {IMAGE_PIXELS}; write a .safetensors file, which needs none"
        )
    return sine_table(CLIP_FRAMES // clips * (IMAGE_PIXELS // pixels) ** 2, sizes["width"])
