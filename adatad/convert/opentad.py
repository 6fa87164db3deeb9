"""Parameter names of OpenTAD's checkpoints and ours, in both directions.

OpenTAD stores the whole model under `module.`: the ViT in `backbone.model.backbone.`, the detector beside it. Entries
that hold nothing of ours are dropped: the position table, which is computed, and `fc_norm`, which is never used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RULES = (
    (r"backbone\.model\.backbone\.patch_embed\.projection\.", "backbone.patch_embed."),
    (r"backbone\.model\.backbone\.ladders\.adapters\.", "backbone.side_adapters."),
    (r"backbone\.model\.backbone\.", "backbone."),
    (r"projection\.", "detector.projection."),
    (r"neck\.fpn_norms\.", "detector.neck.norms."),
    (r"neck\.", "detector.neck."),
    (r"rpn_head\.scale\.(\d+)\.scale$", r"detector.head.scales.\1"),
    (r"rpn_head\.", "detector.head."),
)
"""Beginning of a name there, and here."""

INSIDE = (
    (".mlp.layers.0.0.", ".mlp.fc1."),
    (".mlp.layers.1.", ".mlp.fc2."),
    (".dwconv.", ".depthwise."),
    (".conv.", ".pointwise."),
    (".down_proj.", ".down."),
    (".up_proj.", ".up."),
)
"""Parts of backbone names."""

INSIDE_DETECTOR = (
    (".mlp.3.", ".mlp.2."),
    (".drop_path_attn.scale", ".attn_scale"),
    (".drop_path_mlp.scale", ".mlp_scale"),
)
"""Parts of projection names."""

NORMALIZER = "rpn_head.loss_normalizer"
"""The running count of positives, which is no parameter here: the trainer keeps it."""


def is_dropped(name: str) -> bool:
    """Whether an OpenTAD entry has no place in our model."""
    name = name.removeprefix("module.")
    return name.endswith(".pos_embed") or ".fc_norm." in name or name == NORMALIZER


def our_name(name: str) -> str:
    """Our parameter for an entry of an OpenTAD state dict (with or without `module.`). Raises KeyError for none."""
    bare = name.removeprefix("module.")
    for pattern, replacement in RULES:
        if re.match(pattern, bare):
            result = re.sub("^" + pattern, replacement, bare)
            inside = INSIDE if result.startswith("backbone.") else INSIDE_DETECTOR
            for theirs, ours in inside:
                result = result.replace(theirs, ours)
            return result
    raise KeyError(f"no parameter of an AdaTAD model is called {name!r}")


def name_map(names: Iterable[str]) -> dict[str, str]:
    """{OpenTAD name: our name} of all entries that have a place in our model."""
    return {name: our_name(name) for name in names if not is_dropped(name)}
