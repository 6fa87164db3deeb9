"""Downloads: where data sets, pretrained weights and trained models are published, for messages and the model zoo."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from adatad.spec.schema import BackboneSpec
from adatad.spec.sizes import resolve_backbone

DATA_SETS = {
    "thumos-14": "crcv.ucf.edu/THUMOS14 (a form for the test videos); 200 validation videos to train, 213 test videos",
    "activitynet-1.3": (
        "activity-net.org (a form; many videos have gone from their hosts); copies at 15 frames per second with a "
        "short side of 256 pixels, named v_<name>.mp4"
    ),
    "multithumos": "MultiTHUMOS' own page for the labels; the videos are those of THUMOS-14",
    "charades": "the PRIOR data page of AI2; the 480p videos, at 30 frames per second",
    "epic_kitchens-100": "epic-kitchens.github.io; copies at 30 frames per second of 512x288 pixels; CC BY-NC",
    "ego4d": "ego4d-data.org (a licence by e-mail); the clips of MQ, copies with a short side of 320 pixels",
    "hacs-1.1.1": "hacs.csail.mit.edu",
}
"""By the name of a data set's folder in data/: where it is published, and what the experiments expect of it."""

TRAINED = {
    "activitynet/s_768x160_adapter": "1gncN-xjArNtgVoBKCwCJCH4ISA3yVqIU",
    "activitynet/b_768x160_adapter": "1tePHMitdwUrWax1nYlbucaqI5LbvZhZo",
    "activitynet/l_768x160_adapter": "1GxwNLc1rRp6x5ug1zd1r_1DmYCZD_tw5",
    "activitynet/h_768x160_adapter": "1Hqpdq7Qclf0-1oF25tWwZLI8Ranp-uBv",
    "activitynet/g_768x160_adapter": "1lfWyWrt1gJOm7YfwCdXi7HiNomHPGvna",
    "activitynet/g_768x224_adapter": "1x4BxA_EA1F1zACBATuiNh13HcFgyS_45",
    "activitynet/g_768x224_adapter_internvideo": "1x4BxA_EA1F1zACBATuiNh13HcFgyS_45",
    "activitynet/g_768x224_adapter_internvideo2": "1x4BxA_EA1F1zACBATuiNh13HcFgyS_45",
    "thumos/s_768x160_adapter": "1_noys-dyuQFGlXigGzW_sLB7I4Q4-zst",
    "thumos/b_768x160_adapter": "1KpZjPDb7W3rTIRkOYbe_ViQNElVI7ZO9",
    "thumos/l_768x160_adapter": "1yijRNA4zeoYnFtTk3N7NyCClihvXFAYK",
    "thumos/h_768x160_adapter": "1Tpl6GTuWhclZ9b5t6Kswori7az51-DFQ",
    "thumos/g_768x160_adapter": "1fpac_NXmQBR-g2Lau5FE49LBePPprgMY",
    "thumos/g_1536x224_adapter": "1_pfJRKnjkLzW4EOQNpms1bMJIeMJXpMC",
    "activitynet/l_768x224_adapter_cls": "1VYAvDrc7O7W4hDmUjjE6y32WmVNQ4ZR_",
    "charades/b_512x160_adapter": "1OZ0-89fs4429CDjatxzx0Uoa021hxjAY",
    "charades/g_512x160_adapter": "1agp_aTzqpMq4CQUtSIPSLlY2PSfDxoI-",
    "charades/h_512x160_adapter": "1WyxiJm3s0UbfLPso6XQpRtqZDxQL0XAZ",
    "charades/l_512x160_adapter": "1U6xSSatrRziA1CqzevYSR0-4L0nrbKFG",
    "charades/s_512x160_adapter": "1ylK8qkX1-Vz5aiU7yiatGGUETam_4qvb",
    "ego4d/l_7200x192_adapter": "15Y_Qe2ksUQ0zmgUTCzMWsWsAmNTFN0RF",
    "epic/l_6144x160_adapter_noun": "17k3f6wirqniLTjKOsIXbfqJPA_iLb88E",
    "epic/l_6144x160_adapter_verb": "16Hq3sHu0S97Ge2AewHT6DOaHSo0TqIlx",
    "multithumos/b_768x160_adapter": "17-TxzyppIsi2J9NeYQNgJVqKMWM_E1jk",
    "multithumos/g_1536x224_adapter": "1o-w_JYJf-EY1zxKpYIRf_9NT5IYEQa70",
    "multithumos/g_768x160_adapter": "1XLo9HreqOICgXwK42HWagecgLV_tDmuW",
    "multithumos/h_768x160_adapter": "1YkufQ9BJs-CYOdwd2j8A9t4PfX5wIQtG",
    "multithumos/l_768x160_adapter": "1Kvywb_gOy8CLLFqLHTWklp677vXM7GFo",
    "multithumos/s_768x160_adapter": "1rpNh10Atpb6pNyltcm-1CoKh9uZHCaua",
    "thumos/g_1536x224_side": "1sIH9D4hpqoUiwNSMa16JoHwn1KZG_IIc",
}
"""Google Drive file of the model that OpenTAD's authors trained, by experiment."""

PAGES = {
    "thumos-14": "thumos", "multithumos": "multithumos", "activitynet-1.3": "activitynet", "charades": "charades",
    "epic_kitchens-100": "epic", "ego4d": "ego4d", "hacs-1.1.1": "hacs",
}  # fmt: skip
"""Folder in tools/prepare_data whose README says how a data set's files are made, by the same name."""


def how_made(path: str) -> str:
    """Return the end of a message about a missing file that the commands of a data set's page write, or that it
    names."""
    page = next((PAGES[part] for part in Path(path).parts if part in PAGES), None)
    return f"; made or fetched as tools/prepare_data/{page}/README.md says" if page else ""


def where_data(path: str) -> str:
    """Return the end of a message about a missing file of a data set; empty where nothing is known."""
    place = next((DATA_SETS[part] for part in Path(path).parts if part in DATA_SETS), None)
    return f"; published: {place}" if place else ""


def digest_start(file: str) -> str | None:
    """Return the first eight digits of the file's SHA-256, where its name ends in them, as OpenMMLab's do."""
    found = re.search(r"[-_]([0-9a-f]{8})\.pth$", Path(file).name)
    return found[1] if found else None


def about_bytes(spec: BackboneSpec) -> int:
    """Return the bytes of a backbone's weights in fp32 without norms and biases: a file has at least as many."""
    sizes = resolve_backbone(spec)
    # Of a block: query, key, value and projection, and both layers of the MLP; then the patch embedding, 3 colors.
    block = 4 * sizes.width**2 + 2 * sizes.width * sizes.mlp_width
    return 4 * (sizes.depth * block + 3 * spec.tubelet * sizes.patch**2 * sizes.width)


FOLDER = "pretrained"
ZOO = "MCG-NJU/VideoMAE on GitHub, MODEL_ZOO.md"
OPENMMLAB = "https://download.openmmlab.com/mmaction/v1.0/recognition/videomae"
G_ORIGINAL = "vit_g_hybrid_pt_1200e_k710_ft.pth"
CONVERTER = "adatad weights import"


def drive(file_id: str, output: str) -> str:
    """Return how a file of Google Drive is fetched."""
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
"""By file name: how it is fetched, as a command line. OpenMMLab's names end in the first digits of their SHA-256."""


def where_published(file: str) -> str:
    """Return the end of a message about a missing file: "; published: COMMAND", which fetches it to where it is
    missing, or nothing for an unknown name."""
    name = Path(file).name
    place = PUBLISHED.get(name)
    return f"; published: {place.replace(f'{FOLDER}/{name}', shlex.quote(file))}" if place else ""
