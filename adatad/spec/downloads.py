"""Downloads: where data sets are published, and how missing files are got, for messages and the model zoo."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from adatad.spec.model_sections import BackboneSpec
from adatad.spec.published import by_file
from adatad.spec.sizes import resolve_backbone

# No links that fetch: most need a form or a licence first.
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
"""Places where data sets are published, and what the experiments expect of them, by the name of their folder in
data/."""

ASK = "not known: ask its owner"
DATA_LICENCES = dict.fromkeys(DATA_SETS, ASK) | {
    "epic_kitchens-100": "CC BY-NC (annotations)",
    "ego4d": "Ego4D's own licence, signed by e-mail",
}
"""Licences of the data sets, by the same names, as far as they are known."""

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


def data_licence(path: str) -> str:
    """Return the licence of the data that a path of `data.videos` or `data.annotations` belongs to."""
    parts = Path(path).parts
    if set(pairwise(parts)) & {("data", "demo"), ("data", "demo_hard")}:
        return "MIT (synthetic, made by this project)"
    return next((DATA_LICENCES[part] for part in parts if part in DATA_LICENCES), ASK)


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


def where_published(file: str) -> str:
    """Return the end of a message about a missing weights file: "; fetch it: COMMAND", or nothing for an unknown
    name."""
    entry = by_file(file)
    return f"; fetch it: {entry.fetch(file)}" if entry else ""
