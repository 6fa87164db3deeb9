"""Where the backbone weights that the published rows begin with are found, by file name, for error messages."""

from __future__ import annotations

from pathlib import Path

RANDOM = "random"
"""What `model.backbone.weights` says where no pretrained weights are wanted."""
OPENMMLAB = "the OpenMMLab download site, mmaction v1.0, recognition, videomae, under this name"
ZOO = "MCG-NJU/VideoMAE on GitHub, MODEL_ZOO.md"
CONVERSION = (
    "OpenGVLab/VideoMAEv2 on GitHub, docs/MODEL_ZOO.md (a form), as vit_g_hybrid_pt_1200e_k710_ft.pth; use that, or "
    "convert it with tools/model_converters/convert_videomaev2.py"
)
UNKNOWN_PLACE = "no address is known to us; ask where OpenTAD lives, sming256/OpenTAD on GitHub"

PUBLISHED = {
    "vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth": (
        f"Google Drive, file 1xZrJoiYCNO2pxjHo0GezIDoMo1KQPNQN; the original, which is read as well: {ZOO} (79.0)"
    ),
    "vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-860a3cd3.pth": f"{OPENMMLAB}; original: {ZOO} (81.5)",
    "vit-large-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-229dbb03.pth": f"{OPENMMLAB}; original: {ZOO} (85.2)",
    "vit-huge-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth": (
        f"Google Drive, file 1Zx-U8AZv2-P32iKZCouP4ysOgI4qRMnt; the original: {ZOO} (86.6)"
    ),
    "vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth": CONVERSION,
    "vit_g_hybrid_pt_1200e_k710_ft.pth": CONVERSION,
    "vit-large-p16_videomae-epic_noun.pth": UNKNOWN_PLACE,
    "vit-large-p16_videomae-epic_verb.pth": UNKNOWN_PLACE,
    "vit-large-p16_videomae_k700_mq_ft_internvideo.pth": UNKNOWN_PLACE,
}
"""The first eight digits of a file's SHA-256 end the names of OpenMMLab's files."""


def where_published(file: str) -> str:
    """For the end of a message about a missing file: "; it is published at ...", or nothing for an unknown name."""
    place = PUBLISHED.get(Path(file).name)
    return f"; published: {place}" if place else ""
