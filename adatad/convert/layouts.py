"""Layouts: the names that projects give to the tensors of encoders, and how to recognise a file by its keys.

Known are the original VideoMAE and VideoMAEv2 (fine-tuned or pre-trained), InternVideo (their names behind a prefix),
mmaction2 (OpenTAD reads files converted to it), Hugging Face, whole checkpoints of OpenTAD, V-JEPA 2 by its authors and
by Hugging Face, InternVideo2 and InternVideo-Next, and our own. Names inside the encoder are translated to those of the
family's backbone (`adatad.models.families`); what it has no use for is listed with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from adatad.convert.learned_positions import CLASS, SPATIAL, TABLE, TEMPORAL, fold_pixel_norm, join_positions
from adatad.convert.weight_file import WeightsError, brief, name_few
from adatad.spec.presets import Family


class Layout(NamedTuple):
    """Naming scheme of a project. patch: name of the patch embedding, by which files are recognised; renames: parts of
    their names, and ours, applied in order; family: the architecture that it is of."""

    title: str
    patch: str
    renames: tuple[tuple[str, str], ...]
    family: Family = "videomae"


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
HUGGING_FACE_VJEPA2 = Layout(
    "Hugging Face V-JEPA 2",
    "embeddings.patch_embeddings.proj.",
    (("embeddings.patch_embeddings.proj.", "patch_embed."), ("layer.", "blocks."), (".attention.", ".attn.")),
    "vjepa2",
)
# In any order: no patch embedding's name here is the end of another's.
LAYOUTS = (MMACTION, HUGGING_FACE, ORIGINAL, OURS, HUGGING_FACE_VJEPA2)

# The names of two families: which of them it is, other keys say.
ORIGINAL_VJEPA2 = ORIGINAL._replace(title="V-JEPA 2", family="vjepa2")
ORIGINAL_VJEPA21 = ORIGINAL._replace(title="V-JEPA 2.1", family="vjepa2.1")
OURS_VJEPA2 = OURS._replace(family="vjepa2")
ORIGINAL_INTERNVIDEO2 = ORIGINAL._replace(
    title="InternVideo2",
    renames=(
        *ORIGINAL.renames, ("cls_token", "patch_embed.class_token"),
        # Hugging Face's library calls each gamma weight.
        (".ls1.gamma", ".attn.scale"), (".ls1.weight", ".attn.scale"),
        (".ls2.gamma", ".mlp.scale"), (".ls2.weight", ".mlp.scale"),
    ),
    family="internvideo2",
)  # fmt: skip
ORIGINAL_INTERNVIDEO_NEXT = ORIGINAL_INTERNVIDEO2._replace(title="InternVideo-Next", family="internvideo-next")
OURS_INTERNVIDEO2, OURS_INTERNVIDEO_NEXT = (
    OURS._replace(family="internvideo2"), OURS._replace(family="internvideo-next")
)  # fmt: skip
TITLES: dict[Family, str] = {
    "videomae": "VideoMAE", "vjepa2": "V-JEPA 2", "vjepa2.1": "V-JEPA 2.1",
    "internvideo2": "InternVideo2", "internvideo-next": "InternVideo-Next",
}  # fmt: skip
"""Families in words."""
LEARNED_POSITIONS: tuple[Family, ...] = ("internvideo2", "internvideo-next")
"""Families whose table of positions is a weight."""

VIDEO_VECTOR = "video_mod_embed"
"""Name of the vector that V-JEPA 2.1 adds to the tokens of videos."""
LEARNED = {"pos_embed": TABLE} | {name: name for name in (SPATIAL, TEMPORAL, CLASS)}
"""Names, in files and here, of a learned table of positions and of its parts."""

# Beside the encoder, or without an effect on features. Anything else inside the blocks makes a file another model's.
EVERYWHERE = (
    (r"pos_embed$|position_embeddings$|^position_table$", "position table"),
    (r"^ladders\.|^side_adapters\.", "adapter"),
    (r"^(head|fc)\.", "classifier"),
)
BESIDE_INTERNVIDEO2 = (
    (r"^(clip|mae|img)_pos_embed", "position table of a decoder, or of images"),
    (r"^(clip_projector|(final_)?clip_decoder|mae_decoder|(clip_)?teacher)\.", "projector, decoder or teacher"),
    (r"^(head|fc|fc_norm)\.", "classifier"),
    (r"^blocks\.\d+\.adapter\.|^side_adapters\.", "adapter"),
)
IGNORED: dict[Family, tuple[tuple[str, str], ...]] = {
    "videomae": (
        *EVERYWHERE,
        (r"^(fc_norm|norm|layernorm)\.", "norm after the last block, which features don't pass"),
        (
            r"^blocks\.\d+\.(adapter\.|attn\.key\.bias$|attn\.k_bias$)",
            "adapter, or bias of keys, which softmax cancels",
        ),
    ),
    "vjepa2": (*EVERYWHERE, (r"^blocks\.\d+\.adapter\.", "adapter")),
    "vjepa2.1": (
        *EVERYWHERE,
        (r"^blocks\.\d+\.adapter\.", "adapter"),
        (r"^norms_block\.[0-2]\.", "norm of an earlier block's tokens"),
        (r"^(patch_embed_img|img_mod_embed)", "of images"),
    ),
    "internvideo2": BESIDE_INTERNVIDEO2,
    "internvideo-next": BESIDE_INTERNVIDEO2,
}


class Encoder(NamedTuple):
    """Encoder found in a file. title: project that wrote it; tensors: by the names of the family's backbone; ignored:
    reason by the file's name; unknown: names in the file that the backbone has no part for; positions: position table
    [1, n, width], where it isn't one of the tensors; family: its architecture; tubelets: those of a learned table, 0
    where the file doesn't say it."""

    title: str
    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    unknown: list[str]
    positions: Tensor | None
    family: Family
    tubelets: int = 0


def find_encoder(tensors: dict[str, Tensor], path: object) -> Encoder:
    """Find the encoder in a file's tensors. Raises WeightsError, naming the file, if it is of no known project."""
    layout, prefix = recognise(tensors, path)
    # Ours has another name: it is a buffer of the model.
    positions = tensors.get(f"{prefix}pos_embed", tensors.get(f"{prefix}position_table"))
    learned = layout.family in LEARNED_POSITIONS
    positions = None if learned else positions
    found = Encoder(_title(layout, prefix), {}, {}, [], positions, layout.family)
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            found.ignored[name] = "outside the encoder"
            continue
        # What has no effect on features is left out by its name here, so that anything else is noticed.
        ours = rename(name.removeprefix(prefix), layout.renames)
        if layout.family != "videomae":
            ours = re.sub(r"^(norm|layernorm|norms_block\.3)\.", "final_norm.", ours)
        reason = next((reason for pattern, reason in IGNORED[layout.family] if re.search(pattern, ours)), None)
        if reason:
            found.ignored[name] = reason
        elif learned and ours in LEARNED:
            parts[LEARNED[ours]] = tensor
        elif ours.startswith(("patch_embed.", "blocks.")) or (
            layout.family != "videomae" and ours.startswith(("final_norm.", VIDEO_VECTOR))
        ):
            parts[ours] = tensor
        elif prefix or layout.patch == OURS.patch or ours == "cls_token":
            # Inside the encoder's own prefix every tensor matters; without a prefix others may be a head's.
            found.unknown.append(name)
        else:
            found.ignored[name] = "outside the encoder"
    # Last: queries, keys and values may lie anywhere in the file.
    vector, bias = parts.pop(VIDEO_VECTOR, None), parts.get("patch_embed.bias")
    if vector is not None and bias is not None and vector.numel() == bias.numel():
        # Both are added to all tokens of a video.
        parts["patch_embed.bias"] = bias + vector.flatten()
    fold_pixel_norm(parts)
    found = found._replace(tubelets=join_positions(parts))
    found.tensors.update(_joined(parts) if layout.family == "videomae" else _joined_with_keys(parts))
    return found


def recognise(tensors: dict[str, Tensor], path: object) -> tuple[Layout, str]:
    """Return the layout of a file and the prefix of the encoder's names. Raises WeightsError."""
    for layout in LAYOUTS:
        # The patch embedding is in every encoder, once, and each project calls it otherwise.
        key = f"{layout.patch}weight"
        prefixes = [name.removesuffix(key) for name in tensors if name == key or name.endswith(f".{key}")]
        if len(prefixes) == 1:
            return _with_family(layout, prefixes[0], tensors), prefixes[0]
        if prefixes:
            # A teacher beside a student, perhaps: which of them is meant isn't ours to guess.
            raise WeightsError(f"{path}: holds several encoders: {name_few(sorted(prefixes))}")
    known = ", ".join(f"{layout.patch}weight" for layout in LAYOUTS)
    raise WeightsError(
        f"{path}: of no known format: none of its {len(tensors)} names ends in {known}; they begin with "
        f"{', '.join(map(brief, list(tensors)[:3]))}"
    )


def _with_family(layout: Layout, prefix: str, tensors: Iterable[str]) -> Layout:
    """Return the layout of the family whose names these are, where several share them."""
    if layout is OURS:
        if f"{prefix}patch_embed.class_token" in tensors:
            return OURS_INTERNVIDEO_NEXT if f"{prefix}patch_embed.norm.weight" in tensors else OURS_INTERNVIDEO2
        return OURS_VJEPA2 if f"{prefix}final_norm.weight" in tensors else OURS
    if layout is not ORIGINAL:
        return layout
    if f"{prefix}blocks.0.attn.q_norm.weight" in tensors:
        is_next = f"{prefix}patch_embed.norm_before.weight" in tensors
        return ORIGINAL_INTERNVIDEO_NEXT if is_next else ORIGINAL_INTERNVIDEO2
    if f"{prefix}{VIDEO_VECTOR}" in tensors:
        return ORIGINAL_VJEPA21
    # VideoMAE's last norm is called so in pre-trained files alone, whose biases of queries and values are apart.
    first = f"{prefix}blocks.0.attn"
    is_vjepa2 = f"{prefix}norm.weight" in tensors and f"{first}.qkv.bias" in tensors
    return ORIGINAL_VJEPA2 if is_vjepa2 and f"{prefix}cls_token" not in tensors else ORIGINAL


def _title(layout: Layout, prefix: str) -> str:
    match layout, prefix:
        # By the prefix, whatever the layout inside: only whole models of OpenTAD's have it.
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


def _joined_with_keys(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate queries, keys and values to one matrix and one bias. That of keys stays: where keys are turned by
    their places, softmax doesn't cancel it."""
    joined = dict(parts)
    for name in parts:
        stem, _, last = name.rpartition(".attn.")
        if last in ("query.weight", "query.bias"):
            kind = last.partition(".")[2]
            three = [f"{stem}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            # One of them alone stays as it is and is reported as unknown.
            if all(one in joined for one in three):
                joined[f"{stem}.attn.qkv.{kind}"] = torch.cat([joined.pop(one) for one in three])
    return joined


def _joined(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate queries, keys and values to one matrix, and split a joint bias into ours, without that of keys.

    The bias of keys adds the same number to all scores of a query, so softmax cancels it.
    """
    joined = dict(parts)
    # Over the original names, while `joined` changes.
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
