"""Parameter names of OpenTAD's checkpoints and ours, in both directions.

OpenTAD stores the whole model under `module.`: the ViT in `backbone.model.backbone.`, the detector beside it. Entries
that hold nothing of ours are dropped: the position table, which is computed, and `fc_norm`, which is never used.
"""

from __future__ import annotations

from collections.abc import Iterable

# How a name begins there, and here; the first that fits counts, in both directions.
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
IN_DETECTOR = (
    (".mlp.3.", ".mlp.2."),
    (".drop_path_attn.scale", ".attn_scale"),
    (".drop_path_mlp.scale", ".mlp_scale"),
)
NORMALIZER = "rpn_head.loss_normalizer"
"""The running count of positives, which is no parameter here: the trainer keeps it."""


def is_dropped(name: str) -> bool:
    """Whether an OpenTAD entry has no place in our model."""
    name = name.removeprefix("module.")
    return name.endswith(".pos_embed") or ".fc_norm." in name or name == NORMALIZER


def our_name(name: str) -> str:
    """Our parameter for an entry of an OpenTAD state dict (with or without `module.`). Raises KeyError for none."""
    bare = name.removeprefix("module.")
    for theirs, ours in PREFIXES:
        if bare.startswith(theirs):
            inside = IN_BACKBONE if ours.startswith("backbone.") else IN_DETECTOR
            result = _replace(ours + bare.removeprefix(theirs), inside)
            return result.removesuffix(".scale") if theirs == "rpn_head.scale." else result
    raise KeyError(f"no parameter of an AdaTAD model is called {name!r}")


def opentad_name(name: str) -> str:
    """The entry of an OpenTAD state dict for one of our parameters, with `module.`. Raises KeyError for none."""
    for theirs, ours in PREFIXES:
        if name.startswith(ours):
            inside = IN_BACKBONE if ours.startswith("backbone.") else IN_DETECTOR
            result = theirs + _replace(name.removeprefix(ours), [(to, of) for of, to in inside])
            return f"module.{result}" + (".scale" if theirs == "rpn_head.scale." else "")
    raise KeyError(f"{name!r} is no parameter of an AdaTAD model")


def _replace(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def name_map(names: Iterable[str]) -> dict[str, str]:
    """{OpenTAD name: our name} of all entries that have a place in our model."""
    return {name: our_name(name) for name in names if not is_dropped(name)}
