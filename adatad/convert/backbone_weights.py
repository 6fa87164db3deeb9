"""Pretrained backbone weights: any known file into a VideoBackbone, or into a file of mmaction2's names for OpenTAD."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adatad.convert.layouts import LEARNED_POSITIONS, MMACTION, TITLES, Encoder, find_encoder, rename
from adatad.convert.learned_positions import TABLE, fit_positions
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
from adatad.models.backbone import VideoBackbone
from adatad.models.vit import sine_table
from adatad.spec.downloads import where_published
from adatad.spec.model_sections import RANDOM
from adatad.spec.presets import PRESETS, Family

MAX_BLOCKS = 1000
"""Upper bound of blocks, above any video transformer's."""


class Loaded(NamedTuple):
    """Summary of loading a file. ignored: the file's names, by reason; positions: the position table in use."""

    title: str
    mapped: int
    ignored: dict[str, list[str]]
    positions: str

    def lines(self) -> list[str]:
        """Return lines for a log."""
        unexpected = sum(map(len, self.ignored.values()))
        # A file that lacks a tensor was refused.
        first = f"format {self.title}: {self.mapped} tensors matched, 0 missing, {unexpected} unexpected; "
        first += f"positions {self.positions}"
        return [first, *(f"  ignored, {reason}: {name_few(names)}" for reason, names in self.ignored.items())]


def initial_weights(backbone: VideoBackbone, weights: str | None) -> list[str]:
    """Load what `model.backbone.weights` names, or leave the backbone random; return lines for the log.

    Raises WeightsError where it names no existing file and isn't `random`.
    """
    if weights == RANDOM:
        return ["random backbone, as model.backbone.weights asks for"]
    if weights is None:
        raise WeightsError(
            "model.backbone.weights: names no pretrained weights; give a file, or say random to train without"
        )
    if not Path(weights).is_file():
        raise WeightsError(f"model.backbone.weights: there is no file {weights}{where_published(weights)}")
    return [f"backbone weights {weights}", *load_backbone_weights(backbone, weights).lines()]


def load_backbone_weights(backbone: VideoBackbone, path: str | Path) -> Loaded:
    """Copy a file's encoder into the backbone; adapters keep their values. Raises WeightsError, with nothing changed,
    if it has another size or other parts."""
    found = find_encoder(read_weight_file(path).tensors, path)
    # Adapters are trained from their own start and in no pretrained file.
    wanted = {name: p for name, p in backbone.named_parameters() if "adapter" not in name}
    here, there = {name: p.shape for name, p in wanted.items()}, {name: t.shape for name, t in found.tensors.items()}
    # Sizes first: a file of another preset would differ in every tensor.
    if sizes_of(there) != sizes_of(here) or found.family != backbone.family:
        file, spec = _named(there, found.family), _named(here, backbone.family)
        raise WeightsError(f"{path}: doesn't fit the backbone: the file is {file}, the spec's {spec}")
    words = fit_table(found, backbone)
    check_parts(found, here, path)
    # Before any weight is copied, since it may still refuse the table.
    positions = words or take_positions(backbone, found.positions, path)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found.tensors[name])
    # By reason for the log: a published file has dozens of tensors that are left out for one and the same.
    ignored: dict[str, list[str]] = {}
    for name, why in found.ignored.items():
        ignored.setdefault(why, []).append(name)
    return Loaded(found.title, len(wanted), ignored, positions)


def fit_table(found: Encoder, backbone: VideoBackbone) -> str | None:
    """Fit a learned table of positions to the backbone's clips; return what was done in words, None without one."""
    table = found.tensors.get(TABLE)
    if table is None:
        return None
    clip = backbone.clip_tubelets, backbone.position_grid
    found.tensors[TABLE] = fitted = fit_positions(table, backbone.class_tokens, found.tubelets, *clip)
    if fitted.shape == table.shape:
        return "those of the file"
    return f"those of the file, resized from {table.shape[1]} to {fitted.shape[1]}"


def check_parts(found: Encoder, expected: dict[str, torch.Size], path: object) -> None:
    """Raise WeightsError if an encoder hasn't exactly the expected tensors, by name and shape, or if their values can't
    be weights."""
    there = {name: tensor.shape for name, tensor in found.tensors.items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - there.keys())]
    problems += [f"unknown {brief(name)}" for name in sorted(there.keys() - expected.keys()) + found.unknown]
    both = sorted(expected.keys() & there.keys())
    problems += [f"{n} is {tuple(there[n])}, expected {tuple(expected[n])}" for n in both if there[n] != expected[n]]
    if problems:
        raise WeightsError(f"{path} ({found.title}): doesn't fit the backbone: {name_few(problems, '; ')}")
    check_values(found.tensors, path)


def encoder_shapes(sizes: dict[str, int], family: Family) -> dict[str, torch.Size]:
    """Return the names and shapes of an encoder's tensors for these sizes (see `sizes_of`), as the family's backbone
    without adapters has them."""
    width, mlp, patch = sizes["width"], sizes["MLP width"], sizes["patch"]
    block = {
        "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "mlp.fc1.weight": (mlp, width), "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (width, mlp), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    # 3: colors; and a tubelet of frames goes into one token.
    shapes = {"patch_embed.weight": (width, 3, sizes["tubelet"], patch, patch), "patch_embed.bias": (width,)}
    match family:
        case "videomae":
            block |= {"attn.q_bias": (width,), "attn.v_bias": (width,)}
        case "vjepa2" | "vjepa2.1":
            block |= {"attn.qkv.bias": (3 * width,)}
            shapes |= {"final_norm.weight": (width,), "final_norm.bias": (width,)}
    shapes |= {f"blocks.{n}.{name}": shape for n in range(sizes["depth"]) for name, shape in block.items()}
    return {name: torch.Size(shape) for name, shape in shapes.items()}


@torch.no_grad()
def take_positions(backbone: VideoBackbone, table: Tensor | None, path: object) -> str:
    """Take over a file's position table [1, n, width] if it has the right size; else keep the sine table, as the
    reference does.

    Returns which one is used, in words. Raises WeightsError for one that holds no floats, or NaN.
    """
    if backbone.position_table is None:
        return "none: attention rotates" if table is None else "none: attention rotates (the file's table is left out)"
    if table is None:
        return "computed"
    if table.shape != backbone.position_table.shape:
        shapes = f"{tuple(table.shape)}, not {tuple(backbone.position_table.shape)}"
        return f"computed (the file's table is {shapes}: left out, as the reference does)"
    check_values({"pos_embed": table}, path)
    backbone.position_table.copy_(table)
    return "those of the file"


def sizes_of(shapes: dict[str, torch.Size]) -> dict[str, int]:
    """Return width, depth, MLP width, patch and tubelet of an encoder, from VideoBackbone's names; 0 for what is
    unknown."""
    patch, mlp = shapes.get("patch_embed.weight", ()), shapes.get("blocks.0.mlp.fc1.weight", ())
    # [width, 3, tubelet, patch, patch]
    patch = patch if len(patch) == 5 else (0,) * 5
    # At most four digits: a huge number would be taken for the depth. Such a name ends up among the unknown ones.
    blocks = [int(number) for name in shapes for number in re.findall(r"^blocks\.(\d{1,4})\.", name)]
    depth = max((number for number in blocks if number < MAX_BLOCKS), default=-1) + 1
    # Another rank than a matrix's is no MLP of ours; 0 then differs from every spec's.
    mlp_width = mlp[0] if len(mlp) == 2 else 0
    return {"width": patch[0], "depth": depth, "MLP width": mlp_width, "patch": patch[-1], "tubelet": patch[2]}


def size_in_words(tensors: dict[str, Tensor], path: object) -> tuple[str | None, str]:
    """Return the preset that the encoder of a file fits, None for none of them, and its size in words. Raises
    WeightsError for a file without a known encoder."""
    found = find_encoder(tensors, path)
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    return _preset(shapes, found.family), _named(shapes, found.family)


def _named(shapes: dict[str, torch.Size], family: Family) -> str:
    name = _preset(shapes, family) or "a size without a name"
    return f"{name} ({_listed(sizes_of(shapes))}) of {TITLES[family]}"


def _preset(shapes: dict[str, torch.Size], family: Family) -> str | None:
    """Return the preset of an encoder's sizes, None if it has those of none."""
    # Without the tubelet, which no preset's name fixes.
    four = tuple(sizes_of(shapes).values())[:4]
    sizes = {
        n: (p.width, p.depth, int(p.width * p.mlp_ratio), p.patch) for n, p in PRESETS.items() if p.family == family
    }
    return next((name for name, size in sizes.items() if size == four), None)


IMAGE_PIXELS, CLIP_FRAMES = 224, 16
"""Clip size that the published backbones were trained on; it gives the size of the position table."""
SMALLEST_PATCH = 4
"""Smallest patch in pixels: smaller ones would make a table larger than the backbone."""


def convert_backbone(source: Path, output: Path) -> list[str]:
    """Write a backbone file for OpenTAD (.pth), or with our own names (.safetensors); return lines about what was done.

    The position table, which OpenTAD keeps beside the weights, is computed if the file has none. `output` is written
    atomically. Raises WeightsError.
    """
    # Before the file is read: gigabytes of weights take a minute.
    check_output(output)
    file = read_weight_file(source).tensors
    if output.resolve() == source.resolve():
        raise WeightsError(f"{output}: is the file that is read; name another for what is written")
    found = find_encoder(file, source)
    if found.unknown:
        title = TITLES[found.family]
        raise WeightsError(f"{source} ({found.title}): has parts that {title} doesn't have: {name_few(found.unknown)}")
    if found.family == "vjepa2.1" or found.family in LEARNED_POSITIONS:
        raise WeightsError(f"{source}: needs no conversion: name it in model.backbone.weights as it is")
    if found.family != "videomae" and output.suffix != ".safetensors":
        raise WeightsError(
            f"{output}: OpenTAD has no {TITLES[found.family]}; name a .safetensors file, in our own names"
        )
    sizes = sizes_of({name: tensor.shape for name, tensor in found.tensors.items()})
    if not all(sizes.values()):
        raise WeightsError(f"{source} ({found.title}): isn't a whole encoder: {_listed(sizes)}")
    check_parts(found, encoder_shapes(sizes, found.family), source)
    # Copies: parts of a joint matrix are views of one storage, which safetensors doesn't write.
    ours = {name: tensor.contiguous().clone() for name, tensor in found.tensors.items()}
    if output.suffix == ".safetensors":
        write_safetensors(output, ours)
    else:
        renames = [(to, of) for of, to in MMACTION.renames]
        named = {f"backbone.{rename(name, renames)}": tensor for name, tensor in ours.items()}
        # OpenTAD keeps a table of positions beside the weights; head and norm are passed through under its names.
        named["backbone.pos_embed"] = _positions(found, sizes, source)
        named |= {f"backbone.{n}": t for n, t in file.items() if n.startswith("fc_norm.")}
        named |= {f"cls_head.fc_cls.{n.removeprefix('head.')}": t for n, t in file.items() if n.startswith("head.")}
        write_torch(output, {"meta": {}, "state_dict": named})
    ignored = [f"  left out, {reason}: {brief(name)}" for name, reason in found.ignored.items()]
    return [f"{source}: {found.title}, {_listed(sizes)}", f"{output}: {len(ours)} tensors of the encoder", *ignored]


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def _positions(found: Encoder, sizes: dict[str, int], source: Path) -> torch.Tensor:
    """Return the file's position table, or a computed one for the clips of the published backbones."""
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
