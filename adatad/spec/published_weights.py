"""Where the backbone weights that the published rows begin with are found, by file name, for error messages."""

from __future__ import annotations

import shlex
from pathlib import Path

RANDOM = "random"
"""What `model.backbone.weights` says where no pretrained weights are wanted."""
FOLDER = "pretrained"
ZOO = "MCG-NJU/VideoMAE on GitHub, MODEL_ZOO.md"
OPENMMLAB = "https://download.openmmlab.com/mmaction/v1.0/recognition/videomae"
G_ORIGINAL = "vit_g_hybrid_pt_1200e_k710_ft.pth"
CONVERTER = "adatad weights import"


def drive(file_id: str, output: str) -> str:
    """How a file of Google Drive is fetched."""
    return f"gdown {file_id} -O {shlex.quote(output)} (https://drive.google.com/file/d/{file_id}/view)"


def _openmmlab(name: str) -> str:
    return f"curl -L {OPENMMLAB}/{name} -o {FOLDER}/{name}"


SMALL = "vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth"
BASE = "vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-860a3cd3.pth"
LARGE = "vit-large-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-229dbb03.pth"
HUGE = "vit-huge-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth"
GIANT = "vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth"
NOUN, VERB = "vit-large-p16_videomae-epic_noun.pth", "vit-large-p16_videomae-epic_verb.pth"
EGO4D = "vit-large-p16_videomae_k700_mq_ft_internvideo.pth"
FETCH_G = (
    f"hf download OpenGVLab/InternVideoMAE_models mae-g/{G_ORIGINAL} --local-dir {FOLDER} (or OpenGVLab/VideoMAEv2 on "
    "GitHub, docs/MODEL_ZOO.md)"
)
EPIC_PAIR = (
    "1nRuzJI4ej90vFsKCBSugRVOmxrR8urwW and 1h7oLiNN5LTXau4HWmmzS_ekvuNdZkp-b are the noun's and the verb's on Google "
    "Drive, in the order of OpenTAD's page, which doesn't say which is which; the one of this name: "
)

PUBLISHED = {
    SMALL: f"{drive('1BH5BZmdImaZesUfqtW23eBGC341Gui1D', f'{FOLDER}/{SMALL}')}; or the original: {ZOO} (79.0)",
    BASE: f"{_openmmlab(BASE)}; or the original: {ZOO} (81.5)",
    LARGE: f"{_openmmlab(LARGE)}; or the original: {ZOO} (85.2)",
    HUGE: f"{drive('1wWXs7xpkVkQ2cJnvRVKnWZ86QswZC1UI', f'{FOLDER}/{HUGE}')}; or the original: {ZOO} (86.6)",
    GIANT: f"{FETCH_G}; use that, or convert it: {CONVERTER} {FOLDER}/mae-g/{G_ORIGINAL} {FOLDER}/{GIANT}",
    G_ORIGINAL: f"{FETCH_G}; move it to {FOLDER}/{G_ORIGINAL}",
    NOUN: EPIC_PAIR + drive("1nRuzJI4ej90vFsKCBSugRVOmxrR8urwW", f"{FOLDER}/{NOUN}"),
    VERB: EPIC_PAIR + drive("1h7oLiNN5LTXau4HWmmzS_ekvuNdZkp-b", f"{FOLDER}/{VERB}"),
    EGO4D: drive("1MYyXdBCxbGsHWiRPf1gWSjLc56Tsk3cZ", f"{FOLDER}/{EGO4D}"),
}
"""How each is fetched, as a command line. The first eight digits of a file's SHA-256 end the names of OpenMMLab's."""


def where_published(file: str) -> str:
    """For the end of a message about a missing file: "; published: COMMAND", which fetches it to where it is missing,
    or nothing for an unknown name."""
    name = Path(file).name
    place = PUBLISHED.get(name)
    return f"; published: {place.replace(f'{FOLDER}/{name}', shlex.quote(file))}" if place else ""
