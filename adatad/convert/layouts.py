"""Layouts: the names that projects give to the tensors of VideoMAE's encoder, and how to recognise a file by its keys.

Known are the original VideoMAE and VideoMAEv2 (fine-tuned or pre-trained), InternVideo (their names behind a prefix),
mmaction2 (OpenTAD reads files converted to it), Hugging Face, whole checkpoints of OpenTAD, and our own. Names inside
the encoder are translated to VideoBackbone's; what it has no use for is listed with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from adatad.convert.weight_file import WeightsError, brief, name_few


class Layout(NamedTuple):
    """Naming scheme of a project. patch: name of the patch embedding, by which files are recognised; renames: parts of
    their names, and ours, applied in order."""

    title: str
    patch: str
    renames: tuple[tuple[str, str], ...]


MMACTION = Layout(
    "mmaction2",
    "patch_embed.projection.",
    (("patch_embed.projection.", "patch_embed."), (".mlp.layers.0.0.", ".mlp.fc1."), (".mlp.layers.1.", ".mlp.fc2.")),
)
HUGGING_FACE = Layout(
    "Hugging Face VideoMAE",
    "embeddings.patch_embeddings.projection.",
    (
        ("embeddings.patch_embeddings.projection.", "patch_embed."),
        ("encoder.layer.", "blocks."),
        (".attention.attention.", ".attn."),
        (".attention.output.dense.", ".attn.proj."),
        (".layernorm_before.", ".norm1."),
        (".layernorm_after.", ".norm2."),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    ),
)
ORIGINAL = Layout("VideoMAE", "patch_embed.proj.", (("patch_embed.proj.", "patch_embed."),))
OURS = Layout("AdaTAD", "patch_embed.", ())
LAYOUTS = (MMACTION, HUGGING_FACE, ORIGINAL, OURS)

# Beside the encoder, or without an effect on features. Anything else inside the blocks makes a file another model's.
IGNORED = (
    (r"pos_embed$|position_embeddings$", "position table"),
    (r"^(fc_norm|norm|layernorm)\.", "norm after the last block, which features don't pass"),
    (r"^blocks\.\d+\.(adapter\.|attn\.key\.bias$|attn\.k_bias$)", "adapter, or bias of keys, which softmax cancels"),
    (r"^ladders\.|^side_adapters\.", "adapter"),
    (r"^(head|fc)\.", "classifier"),
)


class Encoder(NamedTuple):
    """Encoder found in a file. title: project that wrote it; tensors: by VideoBackbone's names; ignored: reason by the
    file's name; unknown: names in the file that VideoBackbone has no part for; positions: position table [1, n,
    width]."""

    title: str
    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    unknown: list[str]
    positions: Tensor | None


def find_encoder(tensors: dict[str, Tensor], path: object) -> Encoder:
    """Find the encoder in a file's tensors. Raises WeightsError, naming the file, if it is of no known project."""
    layout, prefix = recognise(tensors, path)
    found = Encoder(_title(layout, prefix), {}, {}, [], tensors.get(f"{prefix}pos_embed"))
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            found.ignored[name] = "outside the encoder"
            continue
        # What has no effect on features is left out by its name here, so that anything else is noticed.
        ours = rename(name.removeprefix(prefix), layout.renames)
        reason = next((reason for pattern, reason in IGNORED if re.search(pattern, ours)), None)
        if reason:
            found.ignored[name] = reason
        elif ours.startswith(("patch_embed.", "blocks.")):
            parts[ours] = tensor
        elif prefix or layout is OURS or ours == "cls_token":
            # Inside the encoder's own prefix every tensor matters; without a prefix others may be a head's.
            found.unknown.append(name)
        else:
            found.ignored[name] = "outside the encoder"
    # Last: queries, keys and values may lie anywhere in the file.
    found.tensors.update(_joined(parts))
    return found


def recognise(tensors: dict[str, Tensor], path: object) -> tuple[Layout, str]:
    """Return the layout of a file and the prefix of the encoder's names. Raises WeightsError."""
    for layout in LAYOUTS:
        key = f"{layout.patch}weight"
        prefixes = [name.removesuffix(key) for name in tensors if name == key or name.endswith(f".{key}")]
        if len(prefixes) == 1:
            return layout, prefixes[0]
        if prefixes:
            # A teacher beside a student, perhaps: which of them is meant isn't ours to guess.
            raise WeightsError(f"{path}: holds several encoders: {name_few(sorted(prefixes))}")
    known = ", ".join(f"{layout.patch}weight" for layout in LAYOUTS)
    raise WeightsError(
        f"{path}: of no known format: none of its {len(tensors)} names ends in {known}; they begin with "
        f"{', '.join(map(brief, list(tensors)[:3]))}"
    )


def _title(layout: Layout, prefix: str) -> str:
    match layout, prefix:
        case _, "backbone.model.backbone.":
            return "OpenTAD checkpoint"
        case layout, "encoder." if layout is ORIGINAL:
            return "VideoMAE, pre-trained"
        case layout, "" if layout is ORIGINAL:
            return "VideoMAE or VideoMAEv2, fine-tuned"
        case layout, _ if layout is ORIGINAL:
            return f"InternVideo (VideoMAE's names behind {prefix})"
    return layout.title


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Replace parts of a name, pair by pair."""
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def _joined(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate queries, keys and values to one matrix, and split a joint bias into ours, without that of keys.

    The bias of keys adds the same number to all scores of a query, so softmax cancels it.
    """
    joined = dict(parts)
    for name in parts:
        stem, _, last = name.rpartition(".attn.")
        # Hugging Face has three matrices; one of them alone stays as it is and is reported as unknown.
        if last == "query.weight":
            three = [joined.pop(f"{stem}.attn.{kind}.weight", None) for kind in ("query", "key", "value")]
            if all(tensor is not None for tensor in three):
                joined[f"{stem}.attn.qkv.weight"] = torch.cat(three)
        elif last in ("query.bias", "value.bias"):
            joined[f"{stem}.attn.{last[0]}_bias"] = joined.pop(name)
        elif last == "qkv.bias":
            query, _, value = joined.pop(name).chunk(3)
            joined[f"{stem}.attn.q_bias"], joined[f"{stem}.attn.v_bias"] = query, value
    return joined
