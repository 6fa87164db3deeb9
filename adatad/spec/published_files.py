"""What the published rows need besides weights, and where it is found: data sets, and OpenTAD's trained models."""

from __future__ import annotations

import re
from pathlib import Path

from adatad.spec.presets import resolve_backbone
from adatad.spec.schema import BackboneSpec

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
"""Where a data set is published and what the rows expect of it, by the name of its folder in data/."""

TRAINED = {
    "activitynet/s_768x160_adapter": "1SjYsk1bPvBVvnPSy15OodnzJ45VkGWP6",
    "activitynet/b_768x160_adapter": "1_qYleQ-BC1FAjcFPBkot4Y03b04xUUtX",
    "activitynet/l_768x160_adapter": "1H2Wj8TTA0og1TaQtBkThYujP6daW5-Wy",
    "activitynet/h_768x160_adapter": "1IDrkC4rIZvvk2KGht_zn_NFHZdHn9M0d",
    "activitynet/g_768x160_adapter": "1JLCMY14QPG98aDw0tjU83i07SvkZobDi",
    "activitynet/g_768x224_adapter": "1tlv5hlAzUNHgqvq9DzAWOv3fQj6Z2ZJs",
    "activitynet/g_768x224_adapter_internvideo": "1tlv5hlAzUNHgqvq9DzAWOv3fQj6Z2ZJs",
    "activitynet/g_768x224_adapter_internvideo2": "1tlv5hlAzUNHgqvq9DzAWOv3fQj6Z2ZJs",
    "thumos/s_768x160_adapter": "1HGUBroK90KBAkFqQreAVtHCIclJh7DmM",
    "thumos/b_768x160_adapter": "1PFqXL4HcRv4cwqrZnhSwKjG53kEFByLs",
    "thumos/l_768x160_adapter": "1vCbNU82TFjh0b6BRP566Jj1JHC-3qcum",
    "thumos/h_768x160_adapter": "1egFK_6bLiyj1Doo0kZ3wTR5XE9JYyn1e",
    "thumos/g_768x160_adapter": "1QV4a_8ulkSnf4-rQbzw58flgFGCwUT_6",
    "thumos/g_1536x224_adapter": "1sANYRJE0lfbOTZJKj-1jj4S53jVLW3Wf",
}
"""Google Drive file of the model that OpenTAD's authors trained, by row."""


PAGES = {
    "thumos-14": "thumos", "multithumos": "multithumos", "activitynet-1.3": "activitynet", "charades": "charades",
    "epic_kitchens-100": "epic", "ego4d": "ego4d", "hacs-1.1.1": "hacs",
}  # fmt: skip
"""Folder in tools/prepare_data whose README says how a data set's files are made, by the same name."""


def how_made(path: str) -> str:
    """For the end of a message about a missing file that the commands of a data set's page write, or that it names."""
    page = next((PAGES[part] for part in Path(path).parts if part in PAGES), None)
    return f"; made or fetched as tools/prepare_data/{page}/README.md says" if page else ""


def where_data(path: str) -> str:
    """For the end of a message about a missing file of a data set; empty where nothing is known."""
    place = next((DATA_SETS[part] for part in Path(path).parts if part in DATA_SETS), None)
    return f"; published: {place}" if place else ""


def digest_start(file: str) -> str | None:
    """First eight digits of the file's SHA-256, where its name ends in them, as OpenMMLab's do."""
    found = re.search(r"[-_]([0-9a-f]{8})\.pth$", Path(file).name)
    return found[1] if found else None


def about_bytes(spec: BackboneSpec) -> int:
    """Size of the backbone's weights in fp32, less norms and biases; a file may hold a few more."""
    sizes = resolve_backbone(spec)
    block = 4 * sizes.width**2 + 2 * sizes.width * sizes.mlp_width
    return 4 * (sizes.depth * block + 3 * spec.tubelet * sizes.patch**2 * sizes.width)
