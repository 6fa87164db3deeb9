"""Licences of pretrained backbone weights, as they were tagged where they are published.

A trained model holds these weights, so their terms go with it. What is said here is no legal advice: whoever passes a
model on looks for themselves.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from adatad.files import FileError, read_bytes
from adatad.spec.model_sections import RANDOM
from adatad.spec.published import by_file

UNKNOWN = "unknown"
NO_WEIGHTS = "no pretrained weights"
OWN = "MIT (this project's built-in backbone)"
VIDEOMAE = "CC-BY-NC-4.0 (VideoMAE)"
VIDEOMAE_V2 = "CC-BY-NC-4.0 (VideoMAEv2)"
VJEPA2 = "MIT (V-JEPA 2)"
INTERNVIDEO2 = "Apache-2.0 (InternVideo2)"


BUILT_IN_BYTES = 1193872
BUILT_IN_SHA256 = "a421cc0d9d4bb18c559cbb0aede556505da4f1adc741f731737afa5a0beb4c45"
"""Of configs/demo/tiny_backbone.safetensors."""
HUB_FOLDERS = {
    re.compile(r"(?:^|--|_)videomaev2-(?:small|base|large|huge|giant)", re.IGNORECASE): VIDEOMAE_V2,
    re.compile(r"(?:^|--|_)videomae-(?:small|base|large|huge|giant)", re.IGNORECASE): VIDEOMAE,
    re.compile(r"(?:^|--|_)vjepa2-vit[lhg]-", re.IGNORECASE): VJEPA2,
    re.compile(r"(?:^|--|_)internvideo2-stage1-1b-224p-k400", re.IGNORECASE): INTERNVIDEO2,
}
"""Names of the hub's repositories, as folders of downloads and of its cache have them."""


def licence_of(weights: str | None) -> str:
    """Return the licence of the weights that `model.backbone.weights` names, with whose they are; `UNKNOWN` if nobody
    has noted it here.

    The built-in backbone is known by its content, published files by their names or by the folder that they lie in.
    """
    if weights in (None, RANDOM):
        return NO_WEIGHTS
    path = Path(weights)
    entry = by_file(path)
    if entry is not None and entry.licence:
        return entry.licence
    if _is_built_in(path):
        return OWN
    return next((terms for folder, terms in HUB_FOLDERS.items() if any(map(folder.search, path.parts))), UNKNOWN)


def _is_built_in(path: Path) -> bool:
    try:
        # By size first: files of gigabytes aren't read for this.
        return path.stat().st_size == BUILT_IN_BYTES and sha256(read_bytes(path)).hexdigest() == BUILT_IN_SHA256
    except (OSError, ValueError, FileError):
        return False
